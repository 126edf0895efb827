"""The z-buffer against rays cast at every triangle, hole filling against golden numbers and SciPy's labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from gaussian import Cameras
from tests.training.families.cgof.golden import GOLDEN, stand_in
from training.morphable import native_mesh
from training.morphable.head import procedural_head
from training.morphable.rasterize import close_holes, interpolate, rasterize

INTRINSICS = torch.tensor([[4.2647, 0.03, 0.48], [0, 4.0, 0.53], [0, 0, 1]], dtype=torch.float64)


def cameras(count: int) -> Cameras:
    torch.manual_seed(1)
    way = torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=-1)
    return Cameras.look_at(2.7 * way, (0.0, 0.0, 0.0), intrinsics=INTRINSICS)


def cast(vertices: Tensor, triangles: Tensor, camera: Cameras, resolution: int) -> tuple[Tensor, Tensor]:
    """Depth [R, R] and triangle [R, R] of one mesh, by intersecting every ray with every triangle: the slow twin."""
    place = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    v, u = torch.meshgrid(place, place, indexing="ij")
    local = torch.stack([u, v, torch.ones_like(u)], -1).flatten(0, 1) @ torch.linalg.inv(camera.intrinsics).T
    ways, start = local @ camera.cam2world[:3, :3].T, camera.positions
    a, b, c = vertices[triangles].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    t = ((a - start) * normal).sum(-1) / (ways @ normal.T)  # [P, F]; along a way of camera z 1
    points = start + t[..., None] * ways[:, None]
    inside = torch.ones_like(t, dtype=torch.bool)
    for one, two in ((a, b), (b, c), (c, a)):
        inside &= (torch.linalg.cross((two - one).expand_as(points), points - one) * normal).sum(-1) >= 0
    t = torch.where(inside & (t > 0) & (ways @ normal.T < 0), t, math.inf)
    depth, which = t.min(1)
    which = torch.where(depth.isfinite(), which, -1)
    return depth.nan_to_num(posinf=0).view(resolution, resolution), which.view(resolution, resolution)


def soup(count: int, size: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    middles = 0.25 * torch.randn(2, count, 1, 3, dtype=torch.float64)
    return (middles + size * torch.randn(2, count, 3, 3, dtype=torch.float64)).flatten(1, 2), torch.arange(
        3 * count
    ).view(count, 3)


@pytest.mark.parametrize("size", [0.02, 0.3])
def test_every_pixel_shows_what_a_ray_meets(size: float) -> None:
    vertices, triangles = soup(60, size)
    seen = cameras(2)
    found = rasterize(vertices, triangles, seen, 24)
    for b in range(2):
        depth, which = cast(vertices[b], triangles, seen[b], 24)
        assert torch.equal(found.triangle[b], which) and (which >= 0).any()
        torch.testing.assert_close(found.depth[b], depth, rtol=0, atol=1e-9)
    places = interpolate(found, triangles, vertices)
    _, z = seen.project(places.flatten(2).transpose(1, 2))
    covered = found.mask.flatten(1)
    torch.testing.assert_close(z[covered], found.depth.flatten(1)[covered], rtol=0, atol=1e-9)


def test_a_batch_is_its_samples_and_a_budget_changes_nothing_or_shows() -> None:
    vertices, triangles = soup(60, 0.1)
    seen = cameras(2)
    both, alone = rasterize(vertices, triangles, seen, 16), rasterize(vertices[1:], triangles, seen[1:], 16)
    assert torch.equal(both.triangle[1:], alone.triangle) and torch.equal(both.depth[1:], alone.depth)
    ample = rasterize(vertices, triangles, seen, 16, budget=100_000)
    assert torch.equal(both.triangle, ample.triangle) and torch.equal(both.weights, ample.weights)
    assert torch.equal(both.depth, ample.depth)
    assert rasterize(vertices, triangles, seen, 16, budget=600).depth.isnan().all()
    wide = rasterize(vertices, triangles, seen, (8, 16))
    square = seen.crop((0.0, -0.5, 1.0, 1.5))  # twice as high, padded
    assert torch.equal(rasterize(vertices, triangles, square, 16).triangle[:, 4:12], wide.triangle)


@pytest.mark.skipif(not native_mesh.usable(torch.zeros(1)), reason="no compiler")
@pytest.mark.parametrize("size", [0.02, 0.3])
def test_native_code_draws_what_tensors_draw(size: float) -> None:
    model, (points, facets) = procedural_head(), soup(60, size)
    seen = cameras(2).to(dtype=torch.float32)
    for vertices, triangles in ((points.float(), facets), (model.shape.expand(2, -1, -1), model.triangles)):
        native, tensors = (rasterize(vertices, triangles, seen, (40, 56), budget) for budget in (None, 500_000))
        same = native.triangle == tensors.triangle
        assert same.float().mean() > 0.999 and native.mask.any()  # on an edge either neighbour may win
        torch.testing.assert_close(native.depth, tensors.depth, rtol=0, atol=1e-5)  # 2.7 away; worst seen 7e-7
        torch.testing.assert_close(native.weights[same], tensors.weights[same], rtol=0, atol=1e-5)  # worst seen 3e-7
    beyond = rasterize(torch.full((1, 3, 3), torch.nan), torch.tensor([[0, 1, 2]]), seen[:1], 8)
    assert not beyond.mask.any() and not beyond.depth.any() and not beyond.weights.any()
    with pytest.raises(IndexError, match="triangles must name vertices 0 to 2"):
        rasterize(torch.zeros(1, 3, 3), torch.tensor([[0, 1, 3]]), seen[:1], 8)


def test_the_head_has_no_cracks() -> None:
    model = procedural_head()
    seen = Cameras.look_at((0.0, 0.0, 2.7), (0.0, 0.0, 0.0), intrinsics=INTRINSICS.float()).reshape(1)
    mask = rasterize(model.shape[None], model.triangles, seen, 96).mask[0].numpy()
    assert mask.mean() > 0.1 and np.array_equal(mask, scipy.ndimage.binary_fill_holes(mask))


def test_holes_are_closed_as_published() -> None:
    golden = GOLDEN["close_hole_32px"]
    depth, mask = stand_in(32)
    hole = torch.zeros_like(mask)
    hole[20:22, 14:18] = True
    depth, mask = torch.where(hole, 0.0, depth), mask & ~hole
    assert int(mask.sum()) == golden["mask_sum_before"]
    filled, closed = close_holes(depth[None], mask[None])
    assert int(closed.sum()) == golden["mask_sum_after"]
    assert filled[0][hole].std() < 1e-12
    assert float(filled[0][hole][0]) == pytest.approx(golden["filled_depth"], abs=1e-6)


def test_patches_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 32, 32, generator=generator) < 0.55
    spiral = torch.ones(32, 32, dtype=torch.bool)  # a hole of a single line that winds inwards
    path = [(8, c) for c in range(8, 16)] + [(r, 15) for r in range(8, 14)] + [(13, c) for c in range(9, 16)]
    path += [(r, 9) for r in range(10, 14)] + [(10, c) for c in range(9, 14)]
    spiral[tuple(zip(*path, strict=True))] = False
    masks[0] = spiral
    _, closed = close_holes(torch.zeros(masks.shape), masks)
    for mask, found in zip(masks.numpy(), closed.numpy(), strict=True):
        labels, _ = scipy.ndimage.label(~mask)
        counts = np.bincount(labels.ravel())
        expected = mask | ((labels > 0) & (counts[labels] < 32 * 32 / 20))
        assert np.array_equal(found, expected)
