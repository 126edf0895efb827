"""The losses against their formulas, and multi-view judging in one batch against separate discriminator calls."""

import math

import pytest
import torch
import torch.nn.functional as F

from gaussian import Cameras, Rendering
from training import losses
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator
from training.presets import resolve


@pytest.fixture
def networks():
    """micro G and D in float64, a fixed differentiable picture of the scene in place of the rasteriser."""
    torch.manual_seed(0)
    config = resolve("micro", data="")
    G, D = Generator(config.generator).double(), Discriminator(config.discriminator).double()
    with torch.no_grad():  # layer scales start at 0, where the scene does not depend on z
        for name, p in G.named_parameters():
            if ".ls_" in name:
                p.add_(0.1 * torch.randn_like(p))
    G.render = fixed_pictures(G, views=2)
    return G, D


def fixed_pictures(G, views):
    """A render() that maps colours and positions of the scene linearly to V different images."""
    width = 6 * 64  # of the first 64 splats
    planes = torch.randn(views, width, 3 * G.resolution**2, dtype=torch.float64) / math.sqrt(width)

    def render(scene, cameras, resolution=None, background=None):
        features = torch.cat([scene.means, scene.sh[:, :, 0]], -1)[:, :64].flatten(1)  # [B, width]
        pose = cameras.labels.mean(-1)[..., None]  # [B, V, 1]
        pixels = (
            torch.einsum("bf,vfp->bvp", features, planes[: cameras.shape[1]]) + pose + background.mean(-1)[..., None]
        )
        rgb = pixels.unflatten(-1, (3, G.resolution, G.resolution))
        return Rendering(rgb=rgb, alpha=rgb[:, :, :1], depth=rgb[:, :, :1])

    return render


def inputs(G, batch=8, views=2):
    labels = torch.randn(batch, views, 25, dtype=torch.float64)
    return (
        torch.randn(batch, G.z_dim, dtype=torch.float64),
        Cameras.from_labels(labels),
        torch.rand(batch, views, 3).double(),
    )


def separate_calls(G, D, z, cameras, background):
    """The published form: one discriminator call of B images per view."""
    scene = G.synthesis(G.mapping(z))
    image = G.render(scene, cameras, background=background).image
    return torch.stack([D(image[:, v], cameras.labels[:, v])[:, 0] for v in range(cameras.shape[1])], dim=1)


def gradient(loss, G):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(G.parameters()), allow_unused=True) if g is not None]
    )


@pytest.mark.parametrize("batch", [2, 4, 8])
def test_all_views_in_one_call_equal_one_call_per_view(networks, batch):
    G, D = networks
    z, cameras, background = inputs(G, batch)
    terms = losses.generator_terms(G, D, z, cameras, background)
    apart = separate_calls(G, D, z, cameras, background)
    torch.testing.assert_close(terms.logits, apart, rtol=1e-10, atol=1e-12)
    together = gradient(terms.adversarial.mean(), G)
    expected = gradient(F.softplus(-apart).mean(1).mean(), G)
    assert (together - expected).norm() < 1e-10 * expected.norm()  # seen: 2e-15


def test_view_major_order_would_not_be_equal(networks):
    """With index v B + b a minibatch-std group mixes other scenes and views: the logits must differ."""
    G, D = networks
    z, cameras, background = inputs(G)
    apart = separate_calls(G, D, z, cameras, background)
    image = G.render(G.synthesis(G.mapping(z)), cameras, background=background).image
    swapped = D(image.transpose(0, 1).flatten(0, 1), cameras.labels.transpose(0, 1).flatten(0, 1), 2 * D.num_groups(8))
    difference = (swapped.view(2, 8).T - apart).abs().max()
    assert difference > 1e-4 * apart.abs().max()


def test_non_saturating_loss_is_the_mean_over_views(networks):
    G, D = networks
    terms = losses.generator_terms(G, D, *inputs(G), knn_neighbours=4)
    torch.testing.assert_close(terms.adversarial, torch.log1p(torch.exp(-terms.logits)).mean(1))
    coarse = terms.scene.anchors.means[:, : G.config.num_points]
    torch.testing.assert_close(terms.center, coarse.mean(1).pow(2).mean(1))


def test_knn_distance_against_a_loop():
    points = torch.randn(3, 20, 3, dtype=torch.float64)
    expected = []
    for scene in points:
        total = []
        for i in range(20):
            squared = ((scene - scene[i]) ** 2).sum(1)
            total.append(squared.sort().values[1:6].mean() / 3)
        expected.append(torch.stack(total).mean())
    torch.testing.assert_close(losses.knn_distance(points, 5), torch.stack(expected), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="1 to 19"):
        losses.knn_distance(points, 20)


def test_knn_gradient_reaches_both_ends():
    points = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: losses.knn_distance(p, 2), points)


def test_r1_is_the_squared_gradient_norm():
    weight = torch.randn(3, 8, 8)

    def linear(image, labels):
        return (image * weight).sum(dim=(1, 2, 3))[:, None]

    penalty = losses.r1_penalty(linear, torch.randn(5, 3, 8, 8), torch.zeros(5, 25))
    torch.testing.assert_close(penalty, weight.square().sum().expand(5))


def test_blur_schedule_and_filter():
    assert losses.blur_sigma_at(0, 10, 200_000) == 10
    assert losses.blur_sigma_at(50_000, 10, 200_000) == 7.5
    assert losses.blur_sigma_at(300_000, 10, 200_000) == 0
    image = torch.zeros(1, 3, 65, 65)
    image[:, :, 32, 32] = 1
    blurred = losses.gaussian_blur(image, 10.0)
    taps = torch.tensor([2.0 ** -((t / 10) ** 2) for t in range(-30, 31)])
    taps = taps / taps.sum()
    torch.testing.assert_close(blurred[0, 1, 2:63, 2:63], taps[:, None] * taps, rtol=1e-5, atol=1e-8)
    assert blurred[0, 0, 0, 0] == 0  # 61 taps reach no further than 30 pixels
    assert losses.gaussian_blur(image, 0.3) is image
