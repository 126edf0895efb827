"""Tests the surfaces of densities: where they lie, which way they face, their colours, and the level that is found."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.training.meshes.shapes import GEOMETRY, soft_ball
from training.fields.field import RadianceField
from training.meshes import density, lattice
from training.meshes.lattice import Lattice
from training.meshes.surface import Mesh, NoSurfaceError, marching_cubes


@dataclass(frozen=True)
class Ramp(RadianceField):
    """Density that rises behind the plane z = 0.3."""

    rise: torch.Tensor  # [B] per world unit squared

    def sample(self, points, directions):
        return torch.ones_like(points), self.rise[:, None] * (0.3 - points[..., 2])


CAMERAS = GEOMETRY.orbit(torch.linspace(-0.6, 0.5, 5))
CUBE = Lattice((0.0, 0.0, 0.0), 0.5, 40)


def extracted(scene, level=None, cube=CUBE):
    volume = density.density_volume(scene, cube)
    level = density.seen_level(scene, CAMERAS) if level is None else level
    return density.density_mesh(scene, volume, level, cube), level, volume


def test_a_lattice_reaches_the_faces_and_runs_along_x_y_z():
    cube = Lattice((1.0, 2.0, 3.0), 0.5, 3)
    rows, points = zip(*cube.parts(10, torch.device("cpu")), strict=True)
    assert [(r.start, r.stop) for r in rows] == [(0, 10), (10, 20), (20, 27)]
    points = torch.cat(points).view(3, 3, 3, 3)
    assert points[0, 0, 0].tolist() == [0.5, 1.5, 2.5] and points[2, 2, 2].tolist() == [1.5, 2.5, 3.5]
    assert points[2, 0, 1].tolist() == [1.5, 1.5, 3.0] and cube.spacing == 0.5
    moved = cube.transformed(2.0, (0.0, 1.0, 0.0))
    assert moved.centre == (2.0, 5.0, 6.0) and moved.half_width == 1.0
    with pytest.raises(ValueError, match="resolution=1"):
        Lattice((0.0, 0.0, 0.0), 0.5, 1)


def test_memory_is_asked_for_before(monkeypatch):
    CUBE.require_memory()
    monkeypatch.setattr(lattice, "BYTES_A_POINT", 1 << 50)
    with pytest.raises(ValueError, match=r"--resolution=40: 64,000 points take .* at once, and .* are free"):
        CUBE.require_memory()


@pytest.mark.parametrize(("inside", "edge"), [(500.0, 0.002), (2000.0, 0.001), (1000.0, 1e-4)])
def test_a_ball_has_its_radius_its_volume_and_its_colours(inside, edge):
    centre, radius = np.array([0.05, 0.02, -0.04]), 0.3
    mesh, level, _ = extracted(soft_ball(*centre, radius, inside, edge))
    away = mesh.vertices - centre
    radii = np.linalg.norm(away, axis=1)
    assert abs(radii.mean() / radius - 1) < 0.01 and np.ptp(radii) < 0.003, (level, radii.mean())
    assert mesh.volume() == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.03)  # positive: wound outwards
    assert ((mesh.normals() * away).sum(1) / radii).min() > 0.99
    above = mesh.vertices[:, 1] > 0  # y is up
    np.testing.assert_array_equal(mesh.colors, np.stack([above, ~above, 0 * above], axis=1))


def test_the_units_of_the_field_are_not_those_of_the_world():
    mesh, _, _ = extracted(soft_ball(0.2, 0.0, 0.0, 0.6, 100.0, 0.004, unit=2.0))
    radii = np.linalg.norm(mesh.vertices - np.array([0.1, 0.0, 0.0]), axis=1)
    assert abs(radii.mean() / 0.3 - 1) < 0.01 and (mesh.vertices[:, 1] > 0).sum() == mesh.colors[:, 0].sum()


def test_the_level_is_where_half_of_the_light_is_absorbed():
    """A density that rises by k for every unit of depth has absorbed half of the light at a depth of sqrt(2 ln 2 / k),
    where it is sqrt(2 k ln 2).
    """
    k = 400.0
    level = density.seen_level(Ramp(0.5, 1.0, "relu", 0.0, torch.tensor([k])), GEOMETRY.orbit(torch.zeros(1)))
    assert abs(level - math.sqrt(2 * k * math.log(2))) / k < 0.003  # so far from the surface that is seen


def test_a_step_has_the_level_in_its_middle():
    level = extracted(soft_ball(0.0, 0.0, 0.0, 0.3, 200.0, 1e-4))[1]
    assert 5 < level < 160


def test_vertices_lie_on_the_level_where_interpolation_makes_terraces():
    scene = soft_ball(0.0, 0.0, 0.0, 0.3, 1000.0, 0.001)
    mesh, level, volume = extracted(scene, 100.0)
    plain, _ = marching_cubes(volume, level, CUBE)
    exact = 0.3 + 0.001 * math.log(9)  # 100 = 1000 / (1 + exp(.))
    errors = [np.abs(np.linalg.norm(m.vertices, axis=1) - exact).max() for m in (mesh, plain)]
    assert errors[0] < 0.02 * CUBE.spacing and errors[1] > 0.3 * CUBE.spacing  # 0.01 and 0.9 spacings at worst


def test_the_size_of_a_part_changes_nothing(monkeypatch):
    scene = soft_ball(0.0, 0.1, 0.0, 0.3, 100.0, 0.01)
    told = []
    whole = density.density_volume(scene, CUBE, told.append)
    monkeypatch.setattr(density, "POINTS", 999)
    parts = density.density_volume(scene, CUBE)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-12)
    assert sum(told) == pytest.approx(1)


def test_what_leaves_the_cube_is_closed_at_its_faces():
    mesh, _, _ = extracted(soft_ball(0.0, 0.0, 0.0, 0.6, 100.0, 0.01), 50.0)
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # every edge has two triangles
    assert np.abs(mesh.vertices).max() == pytest.approx(0.5) and 0.7 < mesh.volume() < 0.9


def test_what_fills_the_cube_is_the_cube():
    mesh, _ = marching_cubes(np.full((40, 40, 40), 3, np.float32), 2.0, CUBE)
    assert mesh.volume() > 0 and set(np.abs(mesh.vertices).max(1).tolist()) <= {0.5}


def test_what_has_no_surface_says_what_it_has():
    with pytest.raises(NoSurfaceError, match=r"values are .* to 100"):
        extracted(soft_ball(0.0, 0.0, 0.0, 0.3, 100.0, 0.01), 1000.0)
    with pytest.raises(NoSurfaceError, match="no ray of the data's cameras loses half of its light"):
        extracted(soft_ball(0.0, 0.0, 0.0, 0.3, 0.5, 0.01))


def test_the_largest_pieces_stay():
    cube = Lattice((0.0, 0.0, 0.0), 0.5, 32)
    points = cube.places(torch.stack(torch.meshgrid(*3 * [torch.arange(32.0)], indexing="ij"), dim=-1))
    sizes = ((-0.25, 0.1), (0.05, 0.15), (0.35, 0.08))  # x and radius
    balls = [radius - (points - torch.tensor([x, 0.0, 0.0])).norm(dim=-1) for x, radius in sizes]
    mesh, _ = marching_cubes(torch.stack(balls).amax(0).numpy(), 0.0, cube)
    mesh = Mesh(mesh.vertices, mesh.faces, mesh.vertices + 1)
    one, left_out = mesh.largest(1)
    assert left_out == 2 and one.vertices[:, 0].min() > -0.11 and one.vertices[:, 0].max() < 0.21
    np.testing.assert_array_equal(one.colors, one.vertices + 1)
    assert one.volume() == pytest.approx(4 / 3 * math.pi * 0.15**3, rel=0.05)
    two, left_out = mesh.largest(2)
    assert left_out == 1 and two.vertices[:, 0].max() < 0.21 and mesh.largest(3)[1] == 0 == mesh.largest(9)[1]
