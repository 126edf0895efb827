"""Draws triangle meshes by a z-buffer: which triangle a pixel shows, where, how far away.

There is no gradient: what is drawn guides samples and is compared with, and stays as it is. Every triangle asks the
pixels of its own window alone, so that the work grows with the triangles and with what they cover. On CPUs native code
draws in float32 (`native_mesh`); plain tensor operations are its twin, and what runs everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussian import Cameras, SceneRecord
from training.morphable import native_mesh

NEAREST = 1e-3  # world units before the camera at which triangles end
ROUNDING = 1e-6  # of barycentric weights: neighbours both claim their common edge, so that no pixel falls between


@dataclass(frozen=True)
class Fragments(SceneRecord):
    """Holds what pixels show of B meshes."""

    triangle: Tensor  # [B, H, W] int64 which; -1 for none
    weights: Tensor  # [B, H, W, 3] of its corners there, sum 1; 0 where there is none
    depth: Tensor  # [B, H, W] camera z, world units; 0 where there is none

    @property
    def mask(self) -> Tensor:
        """Where there is any, [B, H, W]."""
        return self.triangle >= 0


@dataclass(frozen=True)
class _Setup:
    """Holds the triangles of all meshes in image space, M = B F of them."""

    xy: Tensor  # [M, 3, 2] pixels; the centre of the first is 0
    z: Tensor  # [M, 3] camera z
    low: Tensor  # [M, 2] first column and row of the window
    size: Tensor  # [M, 2] its columns and rows; 0 for what is not drawn


@torch.no_grad()
def rasterize(
    vertices: Tensor,  # [B, V, 3] world units
    triangles: Tensor,  # [F, 3] int64, counter-clockwise as seen from outside
    cameras: Cameras,  # [B]
    resolution: int | tuple[int, int],  # pixels, one number or (height, width)
    budget: int | None = None,  # pixels of the windows of all triangles of all meshes; None: as many as there are
) -> Fragments:
    """Draws the outside of B meshes, each from its own camera, as seen at the centres of the pixels.

    On a GPU, without a budget the host waits for the number of the windows' pixels. Where a budget does not suffice,
    all depths are NaN. Raises ValueError for cameras of another shape.
    """
    batch, count = len(vertices), len(triangles)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if tuple(cameras.shape) != (batch,):
        raise ValueError(f"cameras must have leading shape [{batch}], got {list(cameras.shape)}")
    xy, z = _projected(vertices, cameras, (width, height))
    if budget is None and native_mesh.usable(xy):
        return Fragments(*native_mesh.draw(xy, z, triangles, (height, width), NEAREST, ROUNDING))
    setup = _set_up(xy, z, triangles, (width, height))
    tri, column, row, spoilt = _candidates(setup, budget)
    weights = _barycentric(setup.xy[tri], torch.stack([column, row], dim=-1).to(vertices.dtype))
    inside = (weights >= -ROUNDING).all(-1)
    depth = 1 / (weights / setup.z[tri]).sum(-1)
    depth = torch.where(inside, depth, torch.inf)
    pixel = (tri // count * height + row) * width + column
    nearest = depth.new_full((batch * height * width,), torch.inf).scatter_reduce(0, pixel, depth, "amin")
    wins = inside & (depth <= nearest[pixel])
    owner = torch.where(wins, tri, batch * count)
    owner = torch.full_like(nearest, batch * count, dtype=torch.int64).scatter_reduce(0, pixel, owner, "amin")
    return _resolved(setup, owner.view(batch, height, width), count, spoilt)


def _projected(vertices: Tensor, cameras: Cameras, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns vertices in pixels [B, V, 2], the centre of the first being 0, and their camera z [B, V]."""
    place, z = cameras.project(vertices)
    edge = torch.stack([place.new_full((), length) for length in size])  # width, height; a tensor of them would wait
    return place * edge - 0.5, z


def _set_up(xy: Tensor, z: Tensor, triangles: Tensor, size: tuple[int, int]) -> _Setup:
    edge = torch.stack([xy.new_full((), length) for length in size])
    xy, z = xy[:, triangles].flatten(0, 1), z[:, triangles].flatten(0, 1)  # [M, 3, 2], [M, 3]
    low = xy.amin(1).ceil().clamp(min=0).minimum(edge)
    high = xy.amax(1).floor().clamp(min=-1).minimum(edge - 1)
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    drawn = (z > NEAREST).all(1) & (area < 0)  # y runs down, so what is seen from outside turns clockwise
    window = torch.where(drawn[:, None], (high - low + 1).clamp(min=0), 0)
    return _Setup(xy, z, low.long(), window.nan_to_num(0).long())


def _candidates(setup: _Setup, budget: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the triangle, column and row of every pixel of every window, [C] each, and NaN if these are not all."""
    areas = setup.size.prod(1)
    used = areas.cumsum(0)
    spoilt = torch.zeros((), dtype=setup.z.dtype, device=areas.device)
    if budget is None:
        total = int(used[-1])
    else:  # what is left goes to the first triangle, beyond its window
        total = budget
        spoilt = torch.where(used[-1] > budget, torch.nan, spoilt)
        areas = torch.where(used <= budget, areas, 0)
        areas = torch.cat([(budget - areas.sum() + areas[:1]), areas[1:]])
    starts = areas.cumsum(0) - areas
    tri = torch.repeat_interleave(torch.arange(len(areas), device=areas.device), areas, output_size=total)
    local = torch.arange(total, device=areas.device) - starts[tri]
    size, low = setup.size[tri], setup.low[tri]
    real = local < size.prod(1)
    local, low = torch.where(real, local, 0), torch.where(real[:, None], low, 0)
    width = size[:, 0].clamp(min=1)
    return tri, low[:, 0] + local % width, low[:, 1] + local // width, spoilt


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _barycentric(corners: Tensor, places: Tensor) -> Tensor:
    """Returns weights [..., 3] of corners [..., 3, 2] in image space at places [..., 2]."""
    a, b, c = (corners[..., i, :] - places for i in range(3))
    parts = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], dim=-1)
    return parts / parts.sum(-1, keepdim=True)


def _resolved(setup: _Setup, owner: Tensor, count: int, spoilt: Tensor) -> Fragments:
    """Returns what the owners [B, H, W] of pixels show; M stands for none."""
    covered = owner < len(setup.z)
    tri = torch.where(covered, owner, 0)
    rows, columns = (torch.arange(n, device=owner.device, dtype=setup.xy.dtype) for n in owner.shape[1:])
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).expand(*owner.shape, 2)
    inverse = _barycentric(setup.xy[tri], places) / setup.z[tri]  # 1 / z is linear in the image
    depth = 1 / inverse.sum(-1)
    weights = torch.where(covered[..., None], inverse * depth[..., None], 0)
    return Fragments(torch.where(covered, tri % count, -1), weights, torch.where(covered, depth, 0) + spoilt)


def interpolate(fragments: Fragments, triangles: Tensor, values: Tensor) -> Tensor:
    """Returns values [B, V, C] of vertices where the pixels see them, [B, C, H, W]; 0 where they see nothing."""
    corners = triangles[fragments.triangle.clamp(min=0)]  # [B, H, W, 3]
    batch = torch.arange(len(values), device=values.device)[:, None, None, None]
    return torch.einsum("bhwk,bhwkc->bchw", fragments.weights, values[batch, corners])


@dataclass(frozen=True)
class Painting(SceneRecord):
    """Holds what pixels show of B meshes on the whole of their area. Where nothing is covered all is 0."""

    values: Tensor  # [B, C, H, W] means over what is covered
    depth: Tensor  # [B, H, W] camera z, likewise
    share: Tensor  # [B, H, W] how much of a pixel is covered, 0..1


def paint(fragments: Fragments, triangles: Tensor, values: Tensor, samples: int) -> Painting:
    """Returns values [B, V, C] of vertices for pixels, each of which has samples x samples fragments."""
    layers = torch.cat([interpolate(fragments, triangles, values), fragments.depth[:, None]], dim=1)
    share = torch.nn.functional.avg_pool2d(fragments.mask[:, None].to(layers.dtype), samples)
    means = torch.nn.functional.avg_pool2d(layers, samples) / share.clamp(min=1e-6)
    return Painting(means[:, :-1], means[:, -1], share[:, 0])


def close_holes(depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Fills what a mask leaves out in patches of less than a twentieth of the image, as CGOF does.

    depth, mask: [B, H, W]. Pixels are neighbours along rows and columns. Filled pixels get the mean depth of the ring
    of pixels around all holes of their image. The published code counts the face itself as a patch, and overwrites its
    depth where it is as small; here a patch is a hole.
    """
    size = mask.shape[-2] * mask.shape[-1]
    labels = _patches(~mask)  # [B, H W]
    counts = torch.zeros_like(labels).scatter_add(1, labels, (~mask).flatten(1).long())
    hole = (~mask.flatten(1) & (counts.gather(1, labels) < size / 20)).view_as(mask)
    grown = torch.nn.functional.max_pool2d(hole.float()[:, None], 3, 1, 1)[:, 0] > 0
    ring = grown & ~hole
    mean = (depth * ring).sum((1, 2)) / ring.sum((1, 2)).clamp(min=1)
    return torch.where(hole, mean[:, None, None], depth), mask | hole


def _patches(mask: Tensor) -> Tensor:
    """Returns for every pixel of masks [B, H, W] the first pixel of its patch, [B, H W] int64.

    Every patch hangs its first pixel under that of a neighbour where that one is smaller, and pixels then look at
    where their first pixel hangs (Shiloach and Vishkin 1982): so patches double, however they wind.
    """
    batch, size = mask.shape[0], mask[0].numel()
    root = torch.arange(size, device=mask.device).expand(batch, -1).contiguous()
    index = root[0].view(mask.shape[1:])
    pairs = [(index[:, 1:], index[:, :-1]), (index[1:], index[:-1])]
    one, two = (torch.cat([pair[i].flatten() for pair in pairs]) for i in range(2))
    joined = mask.flatten(1)[:, one] & mask.flatten(1)[:, two]  # [B, E]
    for _ in range(size.bit_length()):
        a, b = root[:, one], root[:, two]
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        root = root.scatter_reduce(1, high, torch.where(joined, low, high), "amin")
        root = root.gather(1, root).gather(1, root)
    return root
