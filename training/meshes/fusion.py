"""Fuses depth that cameras see into one volume: a truncated signed distance (Curless and Levoy 1996)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras
from training.meshes.lattice import Lattice
from training.meshes.surface import Mesh, marching_cubes

TRUNCATION = 4.0  # spacings of the lattice in front of a surface and behind it in which distances count
COARSE = 4  # spacings of the lattice in one of that which is filled first
PAIRS = 2**20  # of a point and a view that are looked at together
SHARPNESS = 4  # power of the cosine between normal and view with which a view counts for a vertex's colour
Progress = Callable[[float], object]  # is told which share of the work was done since its last call


@dataclass(frozen=True)
class DepthViews:
    """Holds what V cameras see of one opaque thing."""

    cameras: Cameras  # [V]
    depth: Tensor  # [V, H, W] camera z of the surface, world units; infinite where the camera looks past it
    rgb: Tensor  # [V, H, W, 3] uint8, defined where depth is finite


def fuse(views: DepthViews, lattice: Lattice, progress: Progress | None = None) -> np.ndarray:
    """Returns the mean signed distance [R, R, R] to the surface in units of the truncation: -1..1, positive inside.

    A view says of a point how far behind the surface it lies along the view, up to the truncation; of points farther
    behind it says nothing, and of those that it looks through on its way past everything, that they are outside. Points
    behind everything in all views are inside, points that no view sees are outside.

    A lattice four times as coarse is filled first. The finer one is where that one comes within two of its spacings of
    the surface, and has the sign of the coarse one elsewhere.
    """
    projection = _projection(views)
    size = max(1, PAIRS // len(views.depth))
    device = views.depth.device
    rough = Lattice(lattice.centre, lattice.half_width, (lattice.resolution - 2) // COARSE + 2)
    coarse = torch.cat([_distances(views, projection, p, rough.spacing) for _, p in rough.parts(size, device)])
    signs, close = _upsampled(coarse.view((rough.resolution,) * 3), lattice)
    volume = signs.flatten()
    rows = close.flatten().nonzero()[:, 0]
    for part in rows.split(size):
        points = lattice.places(lattice.indices(part))
        volume[part] = _distances(views, projection, points, lattice.spacing)
        if progress is not None:
            progress(len(part) / len(rows))
    return volume.view((lattice.resolution,) * 3).cpu().numpy()


def _upsampled(coarse: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Returns, over a lattice [R, R, R], signs (-1 or 1) of values over a coarse one, and what is near a surface.

    A point is near one if a corner of its coarse cell is, or if these corners do not agree.
    """

    def over(corners: Tensor) -> Tensor:
        size = (lattice.resolution,) * 3
        return F.interpolate(corners.to(coarse)[None, None], size, mode="trilinear", align_corners=True)[0, 0]

    close = over(coarse.abs() < 2 / TRUNCATION) > 1e-3
    share = over(coarse > 0)
    close |= (share > 1e-3) & (share < 1 - 1e-3)
    return share.sub_(0.5).sign_(), close


def _projection(views: DepthViews) -> Tensor:
    """Returns matrices [V, 3, 4] that map world points to (column z, row z, z), columns and rows in pixels."""
    height, width = views.depth.shape[1:]
    pixels = views.cameras.intrinsics.new_tensor([[width], [height], [1]])
    return (pixels * views.cameras.intrinsics) @ views.cameras.world2cam[..., :3, :]


def _seen(views: DepthViews, projection: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns [V, P] of points [P, 3]: the flat pixel that they lie in, their camera z, and whether they have one."""
    height, width = views.depth.shape[1:]
    x, y, z = torch.baddbmm(
        projection[:, :, 3:], projection[:, :, :3], points.T.expand(len(projection), -1, -1)
    ).unbind(1)
    x, y = x / z, y / z
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixel = torch.where(inside, y.long() * width + x.long(), 0)
    return pixel, z, inside


def _distances(views: DepthViews, projection: Tensor, points: Tensor, spacing: float) -> Tensor:
    """Returns the mean signed distances [P] of points [P, 3], truncated for a lattice of that spacing; see `fuse`."""
    pixel, z, inside = _seen(views, projection, points)
    behind = (z - views.depth.flatten(1).gather(1, pixel)) / (TRUNCATION * spacing)
    counts = inside & (behind < 1)
    total = torch.where(counts, behind.clamp(min=-1), 0.0).sum(0)
    count = counts.sum(0)
    hidden = inside.any(0).to(total) * 2 - 1  # where nothing counts
    return torch.where(count > 0, total / count.clamp(min=1), hidden)


def fused_mesh(views: DepthViews, volume: np.ndarray, lattice: Lattice) -> Mesh:
    """Returns the surface in what `fuse` returned, in the views' colours. Raises NoSurfaceError if there is none."""
    mesh, _ = marching_cubes(volume, 0.0, lattice)
    return dataclasses.replace(mesh, colors=seen_colors(views, mesh, TRUNCATION * lattice.spacing))


def seen_colors(views: DepthViews, mesh: Mesh, tolerance: float) -> np.ndarray:
    """Returns colours [V, 3] of a mesh's vertices: the mean of those of the views that see them, the more straight on.

    A view sees a vertex if its surface there is nearer than the vertex by `tolerance` at most. Vertices that no view
    sees are in the colour of the nearest vertex that one does, or grey.
    """
    projection, depths = _projection(views), views.depth.flatten(1)
    images = views.rgb.flatten(1, 2)  # [V, H W, 3]
    vertices, normals = (torch.from_numpy(a).to(depths.device) for a in (mesh.vertices, mesh.normals()))
    size = max(1, PAIRS // len(depths))
    parts = []
    for points, normal in zip(vertices.split(size), normals.split(size), strict=True):
        pixel, z, inside = _seen(views, projection, points)
        towards = F.normalize(views.cameras.positions[:, None] - points, dim=-1)
        weight = (towards * normal).sum(-1).clamp(min=0) ** SHARPNESS
        visible = inside & ((z - depths.gather(1, pixel)).abs() < tolerance)
        weight = torch.where(visible, weight, 0.0)  # [V, P]
        colors = images.gather(1, pixel[..., None].expand(-1, -1, 3)) / 255  # [V, P, 3]
        total = torch.einsum("vp,vpc->pc", weight, colors)
        parts.append(torch.cat([total, weight.sum(0)[:, None]], dim=1))
    sums = torch.cat(parts).cpu().numpy()
    return _filled(mesh.vertices, sums[:, :3], sums[:, 3])


def _filled(vertices: np.ndarray, totals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    known = weights > 1e-6
    colors = np.full_like(totals, 0.5)
    colors[known] = totals[known] / weights[known, None]
    if known.any() and not known.all():
        _, nearest = cKDTree(vertices[known]).query(vertices[~known])
        colors[~known] = colors[known][nearest]
    return np.clip(colors, 0, 1).astype(np.float32)
