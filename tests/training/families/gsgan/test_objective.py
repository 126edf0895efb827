"""GSGAN's losses: cameras that are swapped and varied, and a contrast over all samples of a step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gaussian import Cameras
from tests.torch_utils.ranks import run_ranks
from tests.training.families.gsgan.small import FFHQ, discriminator_config, make_step, run_config
from torch_utils import distributed
from training.families.base import StepContext
from training.families.gsgan.objective import GsganObjective, GsganObjectiveConfig, info_nce, wide_poses
from training.networks.base import Conditioning
from training.samples import MicroBatch

LATER = 10_000  # images seen long after all fades


def prepared(config: Any, nimg: int = 0) -> tuple[GsganObjective, list[MicroBatch]]:
    """The objective, and its micro-batches with the cameras that the losses see."""
    step, micro = make_step(config, nimg=nimg)
    objective = step.objective
    assert isinstance(objective, GsganObjective)
    return objective, [objective.prepared(part, StepContext(nimg, part.draws)) for part in micro]


def joined(micro: list[MicroBatch], name: str) -> torch.Tensor:
    parts = [getattr(part, name) for part in micro]
    return torch.cat([part.labels if isinstance(part, Cameras) else part for part in parts])


# ---------------------------------------------------------------- cameras


def test_the_swap_fades_from_always_to_its_probability() -> None:
    settings = GsganObjectiveConfig(swap_probability=0.8, swap_fade_kimg=1000)
    found = [settings.swap_probability_at(nimg) for nimg in (0, 250_000, 1_000_000, 5_000_000)]
    assert found == pytest.approx([1.0, 0.95, 0.8, 0.8])
    assert GsganObjectiveConfig(swap_probability=0.3, swap_fade_kimg=0).swap_probability_at(0) == 0.3


@pytest.mark.parametrize(("phase", "told", "labels"), [("G", "g_told", "g_labels"), ("D", "d_told", "d_labels")])
def test_the_mapping_is_told_the_camera_of_the_sample_before(phase: str, told: str, labels: str) -> None:
    """At first always, over the whole batch whatever the split; rendering and D keep the own camera."""
    for batch_gpu in (8, 2):
        _, micro = prepared(run_config(batch_gpu, {"uniform_poses": 0.5}))
        own = joined(micro, labels).view(8, 25)
        assert torch.equal(joined(micro, told), own.roll(1, dims=0))
    _, micro = prepared(run_config(objective={"swap_probability": 0.0, "swap_fade_kimg": 0.0}))
    assert torch.equal(joined(micro, told), joined(micro, labels).view(8, 25))
    _, micro = prepared(run_config(objective={"swap_probability": 0.5, "swap_fade_kimg": 0.0}))
    own, swapped = joined(micro, labels).view(8, 25), joined(micro, told)
    count = sum(torch.equal(a, b) for a, b in zip(own, swapped, strict=True))
    assert 0 < count < 8


def test_some_fakes_get_poses_of_a_wide_range() -> None:
    _, before = prepared(run_config(objective={"uniform_poses": 0.0}))
    _, after = prepared(run_config(objective={"uniform_poses": 0.5}))
    _, always = prepared(run_config(objective={"uniform_poses": 1.0}))
    for name in ("g_labels", "d_labels"):
        old, some, all_ = (joined(micro, name).view(8, 25) for micro in (before, after, always))
        changed = (old != some).any(1)
        assert 0 < changed.sum() < 8 and torch.equal(some[changed], all_[changed])
        cameras = Cameras.from_labels(all_)
        torch.testing.assert_close(cameras.positions.norm(dim=-1), torch.full((8,), 2.7))
        looking = cameras.cam2world[:, :3, 2]
        torch.testing.assert_close(looking, -F.normalize(cameras.positions, dim=-1))
        assert torch.equal(all_[:, 16:], old[:, 16:])
    assert torch.equal(joined(before, "real_labels"), joined(always, "real_labels"))


def test_wide_poses_are_the_published_construction() -> None:
    yaw, height = torch.tensor([math.pi / 2, math.pi / 2 + 0.3, 1.2]), torch.tensor([math.pi / 2, 1.2, 1.9])
    found = wide_poses(yaw, height, FFHQ.orbit(torch.zeros(3)))
    torch.testing.assert_close(found.cam2world[0], torch.tensor(np.diag([1.0, -1, -1, 1])).float() + torch.tensor(
        [[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2.7], [0, 0, 0, 0]]))  # fmt: skip
    torch.testing.assert_close(found.positions[:, 1], 2.7 * (1 - 2 * height / math.pi))
    assert found.positions[1, 0] > 0 > found.positions[2, 0]


# ---------------------------------------------------------------- the contrast


def test_info_nce_is_the_cross_entropy_of_cosines() -> None:
    images, cameras = torch.randn(3, 8), torch.randn(5, 8)
    own = torch.tensor([1, 2, 3])
    cosine = F.cosine_similarity(images[:, None], cameras[None], dim=-1) / 0.1
    expected = torch.logsumexp(cosine, 1) - cosine[torch.arange(3), own]
    torch.testing.assert_close(info_nce(images, cameras, own), expected)
    assert torch.equal(info_nce(3 * images, cameras / 7, own).round(decimals=4), expected.round(decimals=4))


def gradients(rank: int, batch_gpu: int) -> dict[str, np.ndarray]:
    """The summed gradient of every parameter after each phase, with no groups in D that a split would change."""
    augmented = {"augment": "fixed", "augment_p": 0.5}  # flips move cameras, and those of other samples as well
    config = run_config(batch_gpu, augmented, discriminator=discriminator_config(minibatch_std_group=1))
    step, micro = make_step(config, torch.float64)
    found = {}
    for phase in step.phases:
        step.accumulate(phase, 0, micro)
        distributed.all_reduce_gradients(list(phase.module.parameters()), torch.zeros(0))
        found |= {f"{phase.name}/{n}": p.grad.numpy() for n, p in phase.module.named_parameters() if p.grad is not None}
    return found


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys() and len(expected) > 100
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-7, atol=1e-9 * np.abs(value).max() + 1e-14, err_msg=name)


def test_gradients_do_not_depend_on_the_split() -> None:
    expected = gradients(0, 8)
    names = ("D/aux_branch_camera.0.weight", "D/aux_branch_feat.1.weight", "D/b8_pose.conv0.weight")
    assert all(np.abs(expected[name]).max() > 1e-6 for name in names)
    assert not any("aux_branch" in name or "pose" in name for name in expected if name.startswith("R1/"))
    for batch_gpu in (4, 2):
        assert_close(gradients(0, batch_gpu), expected)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_of_ranks_are_those_of_one_process(ranks: int) -> None:
    """The softmax is over the total batch of 8, though no rank has more than 4 or 2 of its images."""
    expected = gradients(0, 2)
    for found in run_ranks(ranks, gradients, 2):
        assert isinstance(found, dict), found
        assert_close(found, expected)


def train(rank: int, steps: int) -> dict[str, np.ndarray]:
    step, micro = make_step(run_config(2))
    for number in range(steps):
        step.run(number, number * 8, micro)
    networks = {"G": step.G, "D": step.phases[1].module, "G_ema": step.averaged["G_ema"]}
    return {f"{key}.{n}": t.numpy() for key, net in networks.items() for n, t in net.state_dict().items()}


def test_steps_of_two_ranks_are_those_of_one_process_to_the_bit() -> None:
    """Four steps, the last with a background. (How gloo sums over four ranks is its own affair.)"""
    alone = train(0, 4)
    for shared in run_ranks(2, train, 4):
        assert isinstance(shared, dict), shared
        assert [n for n, value in alone.items() if not np.array_equal(value, shared[n])] == []


# ---------------------------------------------------------------- losses


def test_what_each_phase_is_made_of() -> None:
    objective, micro = prepared(run_config(8, {"center_weight": 3.0, "style_mixing": 0.0, "blur_sigma": 0.0}), LATER)
    G, D, part, at = objective.G, objective.D, micro[0], StepContext(LATER, micro[0].draws)
    (loss,) = objective.generator_losses(part, at)
    scene = G.synthesis(G.mapping(part.g_z, part.g_told), at)
    output = D.outputs(
        G.render(scene, part.g_cameras, 32, part.g_background, at).image[:, 0], _told(part.g_labels[:, 0])
    )
    own = D.embed_cameras(part.g_labels[:, 0])
    contrast = info_nce(output.extras["pose"], own, torch.arange(8))
    torch.testing.assert_close(loss.report["Loss/G/contrastive"], contrast)
    coarse = scene.anchors.means[:, :12]
    torch.testing.assert_close(loss.report["Loss/G/center"], coarse.mean(1).square().mean(1))
    expected = F.softplus(-output.logits[:, 0]) + contrast
    expected = expected + 10 * loss.report["Loss/G/knn"] + 3 * loss.report["Loss/G/center"]
    torch.testing.assert_close(loss.total, expected)

    (loss,) = objective.discriminator_losses(part, at)
    ws, images = objective.fakes(part, at)
    assert loss.ws is not None and torch.equal(loss.ws, ws) and ws.shape == (8, 9, 24)
    fake, real = D.outputs(images, _told(part.d_labels)), D.outputs(part.real, _told(part.real_labels))
    contrast = info_nce(real.extras["pose"], D.embed_cameras(part.real_labels), torch.arange(8))
    expected = F.softplus(fake.logits[:, 0]) + F.softplus(-real.logits[:, 0]) + contrast
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-5)


def _told(labels: torch.Tensor) -> Conditioning:
    return Conditioning(labels)


def test_the_logit_follows_no_camera() -> None:
    objective, _ = prepared(run_config(8))
    images = torch.randn(2, 3, 32, 32)
    one, other = (objective.D.outputs(images, _told(torch.randn(2, 25))) for _ in range(2))
    assert torch.equal(one.logits, other.logits) and torch.equal(one.extras["pose"], other.extras["pose"])
    assert not torch.allclose(one.extras["camera"], other.extras["camera"])


def test_style_mixing_takes_the_later_ws_of_another_latent() -> None:
    objective, (part, *_) = prepared(run_config(8, {"style_mixing": 1.0}), LATER)
    at = StepContext(LATER, part.draws)
    mixed = objective.mapped(part.g_z, part.g_cameras[:, 0], part.g_told, at)
    plain = objective.G.mapping(part.g_z, part.g_told)
    same = (mixed == plain).all(-1)  # [8, num_ws]
    assert same[:, 0].all() and not same[:, -1].any() and (same[:, :-1] >= same[:, 1:]).all()
    assert len(same.sum(1).unique()) > 2
    off, _ = prepared(run_config(8, {"style_mixing": 0.0}), LATER)
    assert torch.equal(off.mapped(part.g_z, part.g_cameras[:, 0], part.g_told, at), plain)


@pytest.mark.parametrize(
    ("changes", "run", "message"),
    [
        ({"swap_probability": 1.5}, {}, "--gpc-reg-prob=1.5: must be a probability"),
        ({"uniform_poses": -0.1}, {}, "--prob-uniform=-0.1: must be a probability"),
        ({"style_mixing": 2.0}, {}, "--style-mixing-prob=2.0: must be a probability"),
        ({"swap_fade_kimg": -1.0}, {}, "--gpc-reg-fade-kimg=-1.0: must be finite"),
        ({"contrastive_weight": math.inf}, {}, "--contrastive=inf: must be finite"),
        ({"center_weight": -1.0}, {}, "--center-dists=-1.0: must be finite"),
        ({"knn_neighbours": 12}, {}, "--knn-num-ks=12: legal are 1 to 11"),
        ({"loss": "relativistic"}, {}, "--objective=relativistic: GSGAN's cameras"),
        ({}, {"label_noise": 0.1}, "--disc-c-noise=0.1: has no effect on GSGAN"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], run: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_config(8, changes, **run).check()
