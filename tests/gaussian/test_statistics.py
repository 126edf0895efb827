"""Tests the statistics of scenes whose values are known."""

import dataclasses
import math

import torch

from gaussian import Cameras, Gaussians
from gaussian.spherical_harmonics import Y00
from gaussian.statistics import flatness, scene_statistics, visible


def scene_of(means, logits=0.0, levels=()):
    batch, count, _ = means.shape
    return Gaussians(
        means=means,
        log_scales=torch.full((batch, count, 3), -4.0),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(batch, count, 4),
        opacity_logits=torch.full((batch, count, 1), logits),
        sh=torch.zeros(batch, count, 1, 3),
        level_sizes=levels,
    )


def frontal(batch=1):
    intrinsics = torch.tensor([[4.0, 0, 0.5], [0, 4.0, 0.5], [0, 0, 1]])
    return Cameras.look_at((0.0, 0.0, 2.0), (0.0, 0.0, 0.0), intrinsics=intrinsics).expand(batch, 1)


def test_flatness_tells_a_plane_from_a_ball():
    torch.manual_seed(0)
    ball = torch.nn.functional.normalize(torch.randn(1, 4000, 3), dim=-1)
    plane = ball * torch.tensor([1.0, 1.0, 0.0])
    weights = torch.ones(1, 4000)
    assert flatness(ball, weights) < 0.01 and flatness(plane, weights) > 0.99
    slab = ball * torch.tensor([1.0, 1.0, 0.1])  # eigenvalues 1, 1, 0.01
    expected = 1 - 0.01 ** (1 / 3) / (2.01 / 3)
    torch.testing.assert_close(flatness(slab, weights), torch.tensor([expected]), rtol=0, atol=0.02)


def test_flatness_is_weighted_by_opacity():
    torch.manual_seed(0)
    points = torch.randn(1, 2000, 3)
    points[:, :1000, 2] = 0
    weights = torch.ones(1, 2000)
    weights[:, 1000:] = 1e-6  # only the plane shows
    assert flatness(points, weights) > 0.9


def test_visible_counts_what_the_camera_sees():
    # At distance 2 and focal 4 the image spans +-0.25. Inside, outside, behind the camera, nearer than the near cut.
    means = torch.tensor([[[0.24, 0.0, 0.0], [0.26, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 1.9]]])
    assert visible(means, frontal()[:, 0]).tolist() == [[True, False, False, False]]


def test_statistics_of_a_scene():
    means = torch.zeros(2, 10, 3)
    means[:, 4:, 0] = 0.1
    stats = scene_statistics(scene_of(means, logits=math.log(0.01 / 0.99), levels=(4, 6)), frontal(2))
    figures = {name: float(values.mean()) for name, values in stats.items()}
    assert figures["Gaussians/near_transparent"] == 1 and figures["Gaussians/visible"] == 1
    assert abs(figures["Gaussians/level0/opacity"] - 0.01) < 1e-6
    assert figures["Gaussians/level0/distance"] == 0 and abs(figures["Gaussians/level1/distance"] - 0.1) < 1e-6
    assert figures["Gaussians/level1/log_scale"] == -4


def test_black_splats_are_counted_by_level():
    """Black is what shows no channel: -0.5 / Y00 and below. One channel above it is no longer black."""
    scene = scene_of(torch.zeros(1, 10, 3), levels=(4, 6))
    sh = scene.sh.clone()
    sh[:, :2], sh[:, 4] = -0.5 / Y00, -5.0
    sh[:, 5, 0, :2] = -5.0
    stats = scene_statistics(dataclasses.replace(scene, sh=sh), frontal())
    assert float(stats["Gaussians/level0/black"].mean()) == 0.5
    assert abs(float(stats["Gaussians/level1/black"].mean()) - 1 / 6) < 1e-6
