"""Tests the protocols of a scene, and that `Gaussians` and its subclasses satisfy them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gaussian import Density, Gaussians, Scene, Splats
from gaussian.statistics import scene_statistics
from tests.gaussian.scenes import anchored, make_cameras, make_scene


@dataclass(frozen=True)
class Ball:
    """Holds balls of density 10 within radius 0.5: a field, not splats."""

    radii: torch.Tensor  # [B]
    half_width: float = 1.0

    @property
    def batch_size(self):
        return len(self.radii)

    @property
    def device(self):
        return self.radii.device

    def map(self, fn):
        return Ball(fn(self.radii), self.half_width)

    def statistics(self, cameras, resolution):
        return {}

    def density(self, points):
        return 10 * (points.norm(dim=-1) < self.radii[:, None]).float()

    def color(self, points):
        return torch.ones_like(points)


def typed(scene: Gaussians) -> Splats:
    """Returns the scene; mypy, unlike isinstance, compares the signatures here."""
    return scene


def test_gaussians_are_splats():
    scene = typed(make_scene(2, 6))
    assert isinstance(scene, Scene) and isinstance(scene, Splats) and not isinstance(scene, Density)
    assert isinstance(anchored(), Splats)
    assert scene.as_gaussians() is scene and scene.as_gaussians(torch.zeros(2, 3)) is scene


def test_a_field_is_a_density_and_not_splats():
    ball = Ball(torch.tensor([0.5, 0.1]))
    assert isinstance(ball, Scene) and isinstance(ball, Density) and not isinstance(ball, Splats)
    assert ball.density(torch.tensor([[[0.2, 0, 0]]]).expand(2, 1, 3)).tolist() == [[10], [0]]
    assert not isinstance(torch.zeros(1), Scene)


def test_statistics_are_those_of_the_function():
    scene, cameras = anchored(), make_cameras(2, 1)
    expected = scene_statistics(scene, cameras, 64)
    assert isinstance(scene, Gaussians) and scene.statistics(cameras, 64).keys() == expected.keys()
    assert "Gaussians/level1/opacity" in expected
    for name, values in scene.statistics(cameras, 64).items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=0)
