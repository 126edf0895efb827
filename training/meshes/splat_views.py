"""Looks at splats from all around, for the depth at which half of the light is absorbed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras, Gaussians, Splats, render
from gaussian.cameras import pixel_centres
from gaussian.rotations import quats_to_matrices
from training.families.base import Generator
from training.images import quantize
from training.meshes.fusion import DepthViews, Progress
from training.meshes.lattice import Lattice
from training.meshes.surface import NoSurfaceError

VISIBLE = 0.1  # least opacity of splats that the cube is laid round
OUTERMOST = 1e-3  # share of them at either end of an axis that may lie outside
MARGIN = 1.05  # by which the cube is larger
BINS = 32  # of depth, over the ball round the cube's middle that holds the splats
CHANNELS = 16  # of the images that find the depths
LEAST_SHARE = 0.05  # of a pixel that the splats of its depth have; with less, the middle of the bin is the depth
STEEPEST = 4.0  # slope of a splat's plane, depth over width
AT_ONCE = 8  # views


def bounding_lattice(splats: Gaussians, resolution: int) -> Lattice:
    """Returns a lattice over a cube that holds the splats of one scene, without the outermost thousandth at each end.

    Splats reach two standard deviations about their middles. Raises NoSurfaceError if none is visible.
    """
    visible = splats.opacities()[0, :, 0] >= VISIBLE
    if not bool(visible.any()):
        raise NoSurfaceError(f"no splat has an opacity of {VISIBLE} or more")
    means, reach = splats.means[0, visible], 2 * splats.scales()[0, visible].amax(-1, keepdim=True)
    low = torch.quantile((means - reach).double(), OUTERMOST, dim=0)
    high = torch.quantile((means + reach).double(), 1 - OUTERMOST, dim=0)
    x, y, z = ((low + high) / 2).tolist()
    return Lattice((x, y, z), float((high - low).max()) / 2 * MARGIN, resolution)


def sphere_cameras(lattice: Lattice, distance: float, count: int) -> Cameras:
    """Returns cameras [count] spread evenly over a sphere about the middle of a cube, which see the ball inside of it.

    distance: from the middle, world units; at least what the ball needs. The places are those of a Fibonacci lattice.
    """
    # The ball through the middles of the cube's edges holds what lies in a cube, but for its corners.
    radius = lattice.half_width * math.sqrt(2)
    distance = max(distance, 1.5 * radius)
    k = torch.arange(count, dtype=torch.float64)
    height = 1 - (2 * k + 1) / count
    angle = k * math.pi * (3 - math.sqrt(5))
    ring = (1 - height**2).sqrt()
    way = torch.stack([ring * angle.sin(), height, ring * angle.cos()], dim=-1)
    focal = math.sqrt(distance**2 - radius**2) / (2 * radius)
    intrinsics = torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float64)
    middle = way.new_tensor(lattice.centre)
    return Cameras.look_at(middle + distance * way, middle, intrinsics=intrinsics).to(dtype=torch.float32)


def look_around(
    G: Generator,
    scene: Any,  # of splats, a batch of one
    lattice: Lattice,
    views: int,
    resolution: int,  # pixels
    progress: Progress | None = None,
) -> DepthViews:
    """Returns what `views` cameras round the lattice's cube see, at the distance of the data's cameras."""
    assert isinstance(scene, Splats)
    cameras = sphere_cameras(lattice, G.geometry.radius, views).to(scene.device)
    black = torch.zeros(3, device=scene.device)
    depths, images = [], []
    with torch.no_grad():
        splats = scene.as_gaussians()
        for start in range(0, views, AT_ONCE):
            some = cameras[start : start + AT_ONCE].reshape(1, -1)
            out = G.render(scene, some, resolution, black)
            depths.append(median_depth(splats, some, resolution, G.rasterizer)[0])
            images.append(quantize(2 * out.rgb / out.alpha.clamp(min=1e-6) - 1)[0].permute(0, 2, 3, 1))
            if progress is not None:
                progress(len(depths[-1]) / views)
    return DepthViews(cameras, torch.cat(depths), torch.cat(images))


def median_depth(splats: Gaussians, cameras: Cameras, resolution: int, backend: str = "auto") -> Tensor:
    """Returns the depth [B, V, H, W] at which half of the light of a ray is absorbed, infinite where less than that is.

    First the range of the splats' depths is cut into bins, whose shares of a pixel are rendered as colours: they say in
    which bin the half is crossed. Then the splats that lie there, as seen at their own pixels, or in a neighbouring
    bin, are rendered with the depths that they have across their extent (`depth_planes`); the mean of these counts.
    Light that leaks through to the far side of a thing does not, as it does in `Rendering.depth`.
    """
    place, z = cameras.project(splats.means[:, None])  # [B, V, N, 2], [B, V, N]
    low, high = z.amin(-1, keepdim=True), z.amax(-1, keepdim=True)
    width = (high - low).clamp(min=1e-6) / BINS
    bins = ((z - low) / width).floor().clamp(0, BINS - 1)

    def shown(colors: Tensor) -> Tensor:
        nothing = z.new_zeros(colors.shape[-1])
        return render(splats, cameras, resolution, nothing, colors=colors, with_depth=False, backend=backend).rgb

    numbers = torch.arange(BINS, device=z.device).split(CHANNELS)
    reached = torch.cat([shown((bins[..., None] == some).to(z)) for some in numbers], dim=2).cumsum(2) >= 0.5
    rough = low[..., None] + width[..., None] * (reached.to(torch.uint8).argmax(2) + 0.5)  # [B, V, H, W]
    rough = torch.where(reached[:, :, -1], rough, torch.inf)

    column, row = (place * resolution).clamp(0, resolution - 1).long().unbind(-1)
    kept = (rough.flatten(2).gather(2, row * resolution + column) - z).abs() < 1.5 * width
    planes = depth_planes(splats, cameras)  # [B, V, N, 3]
    count, *total = shown(torch.cat([torch.ones_like(planes[..., :1]), planes], dim=-1) * kept[..., None]).unbind(2)
    places = pixel_centres(resolution, cameras.intrinsics)
    across, down, _ = cameras.rays(places, places).unbind(-1)
    depth = (total[0] + total[1] * across + total[2] * down) / count.clamp(min=1e-6)
    depth = torch.where(count > LEAST_SHARE, depth, rough)
    reach = 1.5 * width[..., None]
    return torch.where(reached[:, :, -1], depth.clamp(rough - reach, rough + reach), torch.inf)


def depth_planes(splats: Gaussians, cameras: Cameras) -> Tensor:
    """Returns [B, V, N, 3] numbers a, b, c: on the ray (x, y, 1) of a camera a splat is densest at z = a + b x + c y.

    Linear about the ray through the splat's middle, as in RaDe-GS (Zhang et al. 2024); slopes are limited.
    """
    turn, shift = cameras.world2cam[..., :3, :3], cameras.world2cam[..., None, :3, 3]
    middle = splats.means[:, None] @ turn.mT + shift  # [B, V, N, 3] camera axes
    axes = turn[:, :, None] @ quats_to_matrices(splats.unit_quats())[:, None]  # [B, V, N, 3, 3] columns: splat's axes
    scales = splats.scales()[:, None].clamp(min=1e-6)
    local = (middle[..., None, :] @ axes)[..., 0, :] / scales  # the middle in units of the standard deviations
    pull = (axes @ (local / scales)[..., None])[..., :2, 0]  # inverse covariance times the middle, x and y
    z = middle[..., 2:]
    slope = -(z**2) * pull / (local**2).sum(-1, keepdim=True).clamp(min=1e-12)
    slope = slope * (STEEPEST * z / slope.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return torch.cat([z - (slope * middle[..., :2] / z).sum(-1, keepdim=True), slope], dim=-1)
