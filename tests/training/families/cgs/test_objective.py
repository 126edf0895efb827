"""CGS-GAN's losses: all views are judged in one batch, as in one discriminator call per view."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from gaussian import Cameras
from tests.training.gan import micro_config, micro_networks
from torch_utils.random import Draws
from training.families.base import StepContext
from training.families.cgs.objective import CgsObjective
from training.presets import resolve
from training.samples import MicroBatch

AT_REST_OF_BLUR = StepContext(nimg=10**7)  # long after the blur has gone


@pytest.fixture
def make():
    """make(batch) gives G, D, the objective and a micro-batch in float64."""

    def made(batch=8, views=2):
        config = micro_config()
        G, D = micro_networks(config, torch.float64)
        return G, D, CgsObjective(config, G, D), micro_batch(G, batch, views)

    return made


def micro_batch(G, batch, views):
    labels = torch.randn(batch, views, 25, dtype=torch.float64)
    images = torch.randn(batch, 3, G.resolution, G.resolution, dtype=torch.float64)
    z = torch.randn(batch, G.z_dim, dtype=torch.float64)
    return MicroBatch(
        draws=Draws(0, range(batch)),
        real=images,
        real_labels=labels[:, 0],
        g_z=z,
        g_cameras=Cameras.from_labels(labels),
        g_labels=labels,
        g_background=torch.rand(batch, views, 3).double(),
        d_z=z,
        d_cameras=Cameras.from_labels(labels[:, :1]),
        d_labels=labels[:, 0],
        d_background=torch.rand(batch, 3).double(),
        first=False,
    )


def separate_calls(G, D, micro):
    """Judges as published: one discriminator call of B images per view."""
    image = G.render(G.synthesis(G.mapping(micro.g_z)), micro.g_cameras, background=micro.g_background).image
    return torch.stack([D(image[:, v], micro.g_labels[:, v])[:, 0] for v in range(micro.g_labels.shape[1])], dim=1)


def gradient(loss, G):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(G.parameters()), allow_unused=True) if g is not None]
    )


@pytest.mark.parametrize("batch", [4, 8])
def test_all_views_in_one_call_equal_one_call_per_view(make, batch):
    G, D, objective, micro = make(batch)
    (loss,) = objective.generator_losses(micro, AT_REST_OF_BLUR)
    apart = separate_calls(G, D, micro)
    torch.testing.assert_close(loss.report["Logits/G"], apart, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss.report["Loss/G/adversarial"], torch.log1p(torch.exp(-apart)).mean(1))
    together = gradient(loss.report["Loss/G/adversarial"].mean(), G)
    expected = gradient(F.softplus(-apart).mean(1).mean(), G)
    assert (together - expected).norm() < 1e-10 * expected.norm()  # seen: 2e-15


def test_view_major_order_would_not_be_equal(make):
    """With index v B + b a minibatch-std group mixes other scenes and views: the logits must differ."""
    G, D, _, micro = make()
    apart = separate_calls(G, D, micro)
    image = G.render(G.synthesis(G.mapping(micro.g_z)), micro.g_cameras, background=micro.g_background).image
    labels = micro.g_labels.transpose(0, 1).flatten(0, 1)
    swapped = D(image.transpose(0, 1).flatten(0, 1), labels, 2 * D.num_groups(8))
    difference = (swapped.view(2, 8).T - apart).abs().max()
    assert difference > 1e-4 * apart.abs().max()


def test_the_geometry_terms_are_weighted_into_the_total(make):
    G, _, objective, micro = make()
    (loss,) = objective.generator_losses(micro, AT_REST_OF_BLUR)
    coarse = G.synthesis(G.mapping(micro.g_z)).anchors.means[:, : G.config.num_points]
    torch.testing.assert_close(loss.report["Loss/G/center"], coarse.mean(1).pow(2).mean(1))
    expected = loss.report["Loss/G/adversarial"] + 20 * loss.report["Loss/G/knn"] + loss.report["Loss/G/center"]
    torch.testing.assert_close(loss.total, expected)


def test_r1_is_lazy_and_halved(make):
    """gamma / 2 times the interval, as it acts in every interval-th step only (StyleGAN2, appendix B)."""
    _, _, objective, micro = make()
    objective.D.requires_grad_(True)
    (loss,) = objective.r1_losses(micro, AT_REST_OF_BLUR)
    torch.testing.assert_close(loss.total, 0.5 / 2 * 16 * loss.report["Loss/D/r1_penalty"])
    rates = objective.learning_rates(objective.config.stage_at(0))
    assert rates["G"] == 0.002 and rates["D"] == pytest.approx(0.002 * 16 / 17)


def test_the_discriminator_hands_out_the_ws_of_its_fakes_once(make):
    G, _, objective, micro = make()
    (loss,) = objective.discriminator_losses(micro, AT_REST_OF_BLUR)
    assert torch.equal(loss.ws, G.mapping(micro.d_z))


def test_no_blur_by_one_name():
    settings = resolve("tiny", data="").objective
    assert settings.blurred and settings.blur_sigma == 1.25
    assert settings.changed(blurred=False) == dataclasses.replace(settings, blur_sigma=0.0)
    assert settings.changed(blurred=True) == settings
