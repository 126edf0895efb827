"""Tests surfaces from depth: of ray-cast heads, whose surface is known, and of shells of splats."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from gaussian import Cameras, Gaussians, render
from tests.training.meshes.shapes import GEOMETRY, ShellGenerator, head_views, shell
from training.meshes import fusion
from training.meshes.fusion import DepthViews, fuse, fused_mesh
from training.meshes.lattice import Lattice
from training.meshes.splat_views import bounding_lattice, depth_planes, look_around, median_depth, sphere_cameras
from training.meshes.surface import NoSurfaceError

HEAD_HEIGHT = 0.8  # world units, about: from the chest to the crown
CUBE = Lattice((0.0, -0.05, 0.0), 0.4, 56)


@pytest.fixture(scope="module")
def head():
    return head_views(3, sphere_cameras(CUBE, 2.7, 40), 96)


def test_a_heads_mesh_lies_on_its_analytic_surface(head):
    mesh = fused_mesh(head.views, fuse(head.views, CUBE), CUBE)
    _, nearest = cKDTree(head.points).query(mesh.vertices)
    off = np.abs(((mesh.vertices - head.points[nearest]) * head.normals[nearest]).sum(1))
    # Mean 0.0016 world units, which is 0.2 % of the head's height and 0.11 of the lattice's spacing.
    assert off.mean() < 0.0025 * HEAD_HEIGHT and np.quantile(off, 0.99) < CUBE.spacing, off.mean()
    back, _ = cKDTree(mesh.vertices).query(head.points)
    assert back.max() < 3 * CUBE.spacing  # all of the head is there
    facing = (mesh.normals() * head.normals[nearest]).sum(1)
    assert np.median(facing) > 0.98 and mesh.volume() > 0
    assert np.abs(mesh.colors - head.colors[nearest]).mean() < 0.03


def test_the_coarse_lattice_leaves_nothing_out(head):
    volume = fuse(head.views, CUBE)
    projection = fusion._projection(head.views)
    points = torch.cat([p for _, p in CUBE.parts(10**4, torch.device("cpu"))])
    slow = torch.cat([fusion._distances(head.views, projection, p, CUBE.spacing) for p in points.split(10**4)])
    slow = slow.view(volume.shape).numpy()
    assert ((slow > 0) == (volume > 0)).all()
    close = np.abs(slow) < 0.25
    np.testing.assert_allclose(slow[close], volume[close], rtol=0, atol=1e-6)


def test_more_points_at_once_change_nothing(head, monkeypatch):
    told = []
    whole = fuse(head.views, CUBE, told.append)
    monkeypatch.setattr(fusion, "PAIRS", 40 * 777)
    np.testing.assert_allclose(fuse(head.views, CUBE), whole, rtol=0, atol=1e-6)
    assert sum(told) == pytest.approx(1)


def test_what_no_view_sees_is_outside_and_what_all_see_hidden_is_inside():
    """One camera before a wall that fills its image: the wall's inside begins there, and the world beside is empty."""
    cube = Lattice((0.0, 0.0, 0.0), 0.5, 24)
    camera = GEOMETRY.frontal().reshape(1)
    views = DepthViews(camera, torch.full((1, 64, 64), 2.6), torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    volume = fuse(views, cube)
    x, z = cube.places(torch.arange(24.0)[:, None].expand(24, 3)).numpy()[:, [0, 2]].T
    middle = volume[:, 12]  # [x, z]
    assert (middle[np.abs(x) < 0.25][:, z < 0.05] > 0).all() and (middle[:, z > 0.15] < 0).all()
    assert (middle[np.abs(x) > 0.45] < 0).all()
    nothing = dataclasses.replace(views, depth=torch.full((1, 64, 64), torch.inf))
    assert (fuse(nothing, cube) == -1).all()
    with pytest.raises(NoSurfaceError, match="values are -1 to -1"):
        fused_mesh(nothing, fuse(nothing, cube), cube)


@pytest.mark.parametrize("opacity", [0.99, 0.5])
def test_a_shell_of_splats_has_its_radius(opacity):
    centre, radius = torch.tensor([0.05, 0.02, -0.03]), 0.3
    splats = shell(6000, radius, 0.008, 0.1, opacity, centre)
    cube = bounding_lattice(splats, 64)
    assert np.abs(np.array(cube.centre) - centre.numpy()).max() < 0.002 and 0.31 < cube.half_width < 0.34
    told = []
    views = look_around(ShellGenerator(), splats, cube, 24, 128, told.append)
    mesh = fused_mesh(views, fuse(views, cube), cube)
    away = mesh.vertices - centre.numpy()
    radii = np.linalg.norm(away, axis=1)
    assert abs(radii.mean() / radius - 1) < 0.01 and np.quantile(np.abs(radii / radius - 1), 0.99) < 0.02, radii.mean()
    assert mesh.volume() > 0 and ((mesh.normals() * away).sum(1) / radii).mean() > 0.98
    assert mesh.colors[away[:, 1] > 0.05].min() > 0.75 and mesh.colors[away[:, 1] < -0.05].max() < 0.25
    assert sum(told) == pytest.approx(1)


def test_light_that_leaks_through_to_the_far_side_does_not_count():
    """The mean depth of a shell that lets a fifth of the light through lies far inside of it."""
    splats = shell(6000, 0.3, 0.008, 0.1, 0.4, torch.zeros(3))
    camera = GEOMETRY.frontal().reshape(1, 1)
    out = render(splats, camera, 64)
    depth = median_depth(splats, camera, 64)
    assert depth.shape == (1, 1, 64, 64)
    here = depth[0, 0, 28:36, 28:36]
    mean = (out.depth / out.alpha)[0, 0, 0, 28:36, 28:36]
    assert (here - 2.4).abs().max() < 0.006 and (mean - 2.4).min() > 0.02
    assert depth[0, 0, 0, 0] == torch.inf


def test_a_view_alone_has_the_depth_that_it_has_among_others():
    splats = shell(500, 0.3, 0.03, 0.1, 0.9, torch.zeros(3))
    cameras = GEOMETRY.orbit(torch.tensor([0.0, 1.0, 2.5])).reshape(1, 3)
    together = median_depth(splats, cameras, 32)
    alone = torch.cat([median_depth(splats, cameras[:, k : k + 1], 32) for k in range(3)], dim=1)
    assert torch.equal(together.isinf(), alone.isinf()) and bool(together.isfinite().any())
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_depth_of_a_splat_is_where_it_is_densest_along_a_ray():
    g = torch.Generator().manual_seed(0)
    quats = torch.nn.functional.normalize(torch.randn(1, 20, 4, generator=g, dtype=torch.float64), dim=-1)
    log_scales = torch.tensor([0.05, 0.04, 0.02], dtype=torch.float64).log().expand(1, 20, 3)
    means = 0.1 * torch.randn(1, 20, 3, generator=g, dtype=torch.float64)
    splats = Gaussians(means, log_scales, quats, torch.zeros_like(means[..., :1]), torch.zeros_like(means)[:, :, None])
    camera = GEOMETRY.orbit(torch.tensor([0.4], dtype=torch.float64), 0.2).reshape(1, 1)
    a, b, c = depth_planes(splats, camera)[0, 0].unbind(-1)
    middles = means[0] @ camera.world2cam[0, 0, :3, :3].mT + camera.world2cam[0, 0, :3, 3]
    x, y = (middles[:, :2] / middles[:, 2:]).unbind(-1)
    for dx, dy in ((0.0, 0.0), (1e-4, 0.0), (0.0, -1e-4)):
        ray = torch.stack([x + dx, y + dy, torch.ones_like(x)], dim=-1) @ camera.cam2world[0, 0, :3, :3].mT
        origin = camera.positions[0, 0] - means[0]
        inverse = _inverse_covariances(splats)
        nearest = -torch.einsum("ni,nij,j->n", ray, inverse, torch.zeros(3).double()) - torch.einsum(
            "ni,nij,nj->n", ray, inverse, origin
        )
        z = nearest / torch.einsum("ni,nij,nj->n", ray, inverse, ray)
        torch.testing.assert_close(a + b * (x + dx) + c * (y + dy), z, rtol=0, atol=1e-6)


def _inverse_covariances(splats: Gaussians) -> torch.Tensor:
    from gaussian.rotations import quats_to_matrices

    axes = quats_to_matrices(splats.unit_quats())[0]
    return axes @ torch.diag_embed(splats.scales()[0] ** -2) @ axes.mT


def test_cameras_all_around_see_what_the_cube_holds():
    cube = Lattice((0.1, 0.2, -0.1), 0.4, 2)
    cameras = sphere_cameras(cube, 2.7, 50)
    middle = torch.tensor(cube.centre)
    assert isinstance(cameras, Cameras) and len(cameras) == 50
    torch.testing.assert_close((cameras.positions - middle).norm(dim=-1), torch.full((50,), 2.7))
    ball = middle + 0.4 * 2**0.5 * torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    place, z = cameras.project(ball)
    assert bool(((place > -1e-4) & (place < 1 + 1e-4)).all()) and bool((z > 0).all())
    assert float((cameras.positions - middle).mean(0).norm()) < 0.06  # from all sides alike
    close = sphere_cameras(cube, 0.1, 8)  # cameras inside of the thing see nothing of it
    assert float((close.positions - middle).norm(dim=-1).min()) > 0.8


def test_splats_that_nobody_sees_have_no_cube():
    splats = shell(50, 0.3, 0.01, 1.0, 0.01, torch.zeros(3))
    with pytest.raises(NoSurfaceError, match=r"no splat has an opacity of 0\.1 or more"):
        bounding_lattice(splats, 16)


def test_vertices_that_no_view_sees_take_the_nearest_colour(head):
    front = dataclasses.replace(
        head.views, cameras=head.views.cameras[:1], depth=head.views.depth[:1], rgb=head.views.rgb[:1]
    )
    mesh = fused_mesh(head.views, fuse(head.views, CUBE), CUBE)
    colors = fusion.seen_colors(front, mesh, fusion.TRUNCATION * CUBE.spacing)
    assert colors.shape == mesh.vertices.shape and colors.min() > 0
    blind = dataclasses.replace(front, depth=torch.full_like(front.depth, torch.inf))
    assert (fusion.seen_colors(blind, mesh, 0.1) == 0.5).all()
