"""Computes statistics of generated scenes that show early when a run goes flat, transparent or out of sight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gaussian.spherical_harmonics import Y00

if TYPE_CHECKING:  # `Gaussians.statistics` calls this module
    from gaussian.cameras import Cameras
    from gaussian.gaussians import Gaussians

NEAR_TRANSPARENT = 0.05  # opacity below which a splat counts as near transparent
BLACK = 1e-5  # RGB up to which a splat counts as black; an 8-bit step is 4e-3
SUBPIXEL = 0.5  # pixels of standard deviation along the longest axis below which a splat counts as smaller than a pixel
_NEAR = 0.2  # the rasterisers' near cut, world units


def scene_statistics(scene: Gaussians, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
    """Returns statistics per level and of the whole scene, by name; the mean of each tensor is the figure.

    cameras: [B, V]; only the first view counts for what is seen, in pictures of `resolution` pixels. Nothing carries a
    gradient.
    """
    with torch.no_grad():
        opacity = scene.opacities()[..., 0]  # [B, N]
        transparent = (opacity < NEAR_TRANSPARENT).float()
        log_scale = scene.log_scales.mean(-1)
        xy, z = cameras[:, 0].project(scene.means)
        seen = _inside(xy, z)
        pixels = cameras[:, 0].intrinsics[:, :1, 0] * resolution / z.clamp_min(_NEAR)  # [B, N] of a world unit
        longest = pixels * scene.log_scales.amax(-1).exp()
        by_level = {
            "log_scale": log_scale,
            "opacity": opacity,
            "distance": scene.means.norm(dim=-1),
            "black": (Y00 * scene.sh[:, :, 0] + 0.5 <= BLACK).all(-1).float(),  # seen from no special side
            "near_transparent": transparent,
            "subpixel": (longest < SUBPIXEL).float(),
        }
        sizes = scene.level_sizes or (scene.num_splats,)
        parts = {name: values.split(sizes, 1) for name, values in by_level.items()}
        stats = {f"Gaussians/level{i}/{name}": parts[name][i] for i in range(len(sizes)) for name in by_level}
        stats["Gaussians/near_transparent"] = transparent
        stats["Gaussians/visible"] = seen.float()
        stats["Gaussians/per_pixel"] = splats_per_pixel(opacity * seen, pixels * log_scale.exp(), resolution)
        stats["Gaussians/flatness"] = flatness(scene.means, opacity)
        return stats


def splats_per_pixel(opacity: Tensor, size: Tensor, resolution: int) -> Tensor:
    """Returns how much opacity lies over a pixel of the picture on average, whatever hides what: [B].

    opacity: [B, N], 0 for a splat that is not in the picture; size: [B, N] geometric mean of the standard deviations in
    pixels. A splat adds 2 pi size^2 opacity, the integral of its alpha if it were round, and at most the whole picture.
    """
    area = (2 * math.pi * size.square()).clamp_max(resolution**2)
    return (opacity * area).sum(1) / resolution**2


def visible(means: Tensor, cameras: Cameras) -> Tensor:
    """Tells which centres [B, N, 3] lie inside the image of their camera [B] and beyond the near cut: bool [B, N]."""
    return _inside(*cameras.project(means))


def _inside(xy: Tensor, z: Tensor) -> Tensor:
    return (z > _NEAR) & ((xy >= 0) & (xy <= 1)).all(-1)


def flatness(means: Tensor, weights: Tensor) -> Tensor:
    """Returns 1 - (geometric / arithmetic mean) of the covariance's eigenvalues [B]: 0 for a ball, 1 for a plane.

    means: [B, N, 3]; weights: [B, N], the opacities. Determinant and trace suffice, so that no decomposition
    stalls the device.
    """
    share = (weights / weights.sum(1, keepdim=True).clamp_min(1e-12))[..., None]  # [B, N, 1]
    centred = means - (share * means).sum(1, keepdim=True)
    covariance = (share * centred).mT @ centred  # [B, 3, 3]
    a, b, c = covariance.unbind(1)
    determinant = (a * torch.linalg.cross(b, c)).sum(-1).clamp_min(0)
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-20)
    return 1 - (determinant / mean**3).clamp(0, 1) ** (1 / 3)
