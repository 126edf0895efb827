"""Computes statistics of generated scenes that show early when a run goes flat, transparent or out of sight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gaussian.spherical_harmonics import Y00

if TYPE_CHECKING:  # `Gaussians.statistics` calls this module
    from gaussian.cameras import Cameras
    from gaussian.gaussians import Gaussians

NEAR_TRANSPARENT = 0.05  # opacity below which a splat counts as near transparent
BLACK = 1e-5  # RGB up to which a splat counts as black; an 8-bit step is 4e-3
_NEAR = 0.2  # the rasterisers' near cut, world units


def scene_statistics(scene: Gaussians, cameras: Cameras) -> dict[str, Tensor]:
    """Returns statistics per level and of the whole scene, by name; the mean of each tensor is the figure.

    cameras: [B, V]; only the first view counts for the share of visible splats. Nothing carries a gradient.
    """
    with torch.no_grad():
        opacity = scene.opacities()[..., 0]  # [B, N]
        black = (Y00 * scene.sh[:, :, 0] + 0.5 <= BLACK).all(-1).float()  # [B, N], seen from no special side
        stats: dict[str, Tensor] = {}
        sizes = scene.level_sizes or (scene.num_splats,)
        columns = zip(
            scene.log_scales.mean(-1).split(sizes, 1),
            opacity.split(sizes, 1),
            scene.means.norm(dim=-1).split(sizes, 1),
            black.split(sizes, 1),
            strict=True,
        )
        for level, (log_scale, alpha, distance, dark) in enumerate(columns):
            stats[f"Gaussians/level{level}/log_scale"] = log_scale
            stats[f"Gaussians/level{level}/opacity"] = alpha
            stats[f"Gaussians/level{level}/distance"] = distance
            stats[f"Gaussians/level{level}/black"] = dark
        stats["Gaussians/near_transparent"] = (opacity < NEAR_TRANSPARENT).float()
        stats["Gaussians/visible"] = visible(scene.means, cameras[:, 0]).float()
        stats["Gaussians/flatness"] = flatness(scene.means, opacity)
        return stats


def visible(means: Tensor, cameras: Cameras) -> Tensor:
    """Tells which centres [B, N, 3] lie inside the image of their camera [B] and beyond the near cut: bool [B, N]."""
    xy, z = cameras.project(means)
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
