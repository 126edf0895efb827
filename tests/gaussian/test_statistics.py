"""Tests the statistics of scenes whose values are known."""

import dataclasses
import math

import torch

from gaussian import Cameras, Gaussians
from gaussian.spherical_harmonics import Y00
from gaussian.statistics import flatness, scene_statistics, splats_per_pixel, visible


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
    stats = scene_statistics(scene_of(means, logits=math.log(0.01 / 0.99), levels=(4, 6)), frontal(2), 64)
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
    stats = scene_statistics(dataclasses.replace(scene, sh=sh), frontal(), 64)
    assert float(stats["Gaussians/level0/black"].mean()) == 0.5
    assert abs(float(stats["Gaussians/level1/black"].mean()) - 1 / 6) < 1e-6


def test_small_and_transparent_splats_are_counted_by_level():
    """At distance 2 and focal 4 a world unit is 128 of 64 pixels: e^-4 is 2.3 px. The longest axis decides."""
    scene = scene_of(torch.zeros(1, 10, 3), levels=(4, 6))
    log_scales, logits = scene.log_scales.clone(), scene.opacity_logits.clone()
    log_scales[:, 4:7] = math.log(0.4 / 128)
    log_scales[:, 7] = torch.tensor([math.log(0.6 / 128), -9.0, -9.0])
    logits[:, 0] = -4.0
    stats = scene_statistics(dataclasses.replace(scene, log_scales=log_scales, opacity_logits=logits), frontal(), 64)
    figures = {name: float(values.mean()) for name, values in stats.items()}
    assert figures["Gaussians/level0/subpixel"] == 0 and abs(figures["Gaussians/level1/subpixel"] - 0.5) < 1e-6
    assert figures["Gaussians/level0/near_transparent"] == 0.25 and figures["Gaussians/level1/near_transparent"] == 0


def test_splats_per_pixel_are_the_mean_of_their_alpha():
    """A sum over pixels stands for the integral; a splat that is out of sight, or larger than the picture, is cut."""
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    drawn = sum(a * torch.exp(-((x - 32) ** 2 + (y - 32) ** 2) / (2 * s**2)) for a, s in ((0.5, 3.0), (0.9, 5.0)))
    opacity, size = torch.tensor([[0.5, 0.9, 0.0]]), torch.tensor([[3.0, 5.0, 9.0]])
    torch.testing.assert_close(splats_per_pixel(opacity, size, 64), drawn.mean()[None], rtol=1e-3, atol=0)
    assert splats_per_pixel(torch.ones(1, 2), torch.full((1, 2), 1e3), 64).tolist() == [2.0]
    means = torch.tensor([[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
    stats = scene_statistics(scene_of(means), frontal(), 64)
    expected = 0.5 * 2 * math.pi * (128 * math.exp(-4)) ** 2 / 64**2
    assert abs(float(stats["Gaussians/per_pixel"]) - expected) < 1e-4
