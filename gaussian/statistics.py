"""Statistics of a generated scene: what shows early that a run goes flat, transparent or out of sight."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussian import Cameras, Gaussians

NEAR_TRANSPARENT = 0.05  # opacity under which a splat hardly shows
_NEAR = 0.2  # the rasterisers' near cut, world units


def scene_statistics(scene: Gaussians, cameras: Cameras) -> dict[str, Tensor]:
    """Per-level means and the whole scene's shares; each value is a tensor whose mean is the figure. No gradient.

    `cameras` is [B, V]; only the first view is used for the share of visible splats.
    """
    with torch.no_grad():
        opacity = scene.opacities()[..., 0]  # [B, N]
        stats: dict[str, Tensor] = {}
        sizes = scene.level_sizes or (scene.num_splats,)
        columns = zip(
            scene.log_scales.mean(-1).split(sizes, 1),
            opacity.split(sizes, 1),
            scene.means.norm(dim=-1).split(sizes, 1),
            strict=True,
        )
        for level, (log_scale, alpha, distance) in enumerate(columns):
            stats[f"Gaussians/level{level}/log_scale"] = log_scale
            stats[f"Gaussians/level{level}/opacity"] = alpha
            stats[f"Gaussians/level{level}/distance"] = distance
        stats["Gaussians/near_transparent"] = (opacity < NEAR_TRANSPARENT).float()
        stats["Gaussians/visible"] = visible(scene.means, cameras[:, 0]).float()
        stats["Gaussians/flatness"] = flatness(scene.means, opacity)
        return stats


def visible(means: Tensor, cameras: Cameras) -> Tensor:
    """Which centres [B,N,3] lie inside the image of their camera [B] and beyond the near cut: bool [B,N]."""
    xy, z = cameras.project(means)
    return (z > _NEAR) & ((xy >= 0) & (xy <= 1)).all(-1)


def flatness(means: Tensor, weights: Tensor) -> Tensor:
    """1 - (geometric mean / arithmetic mean) of the covariance's eigenvalues: 0 for a ball, 1 for a plane. [B].

    `means` [B,N,3], `weights` [B,N] (opacities). Determinant and trace suffice, so no decomposition stalls the device.
    """
    share = (weights / weights.sum(1, keepdim=True).clamp_min(1e-12))[..., None]  # [B, N, 1]
    centred = means - (share * means).sum(1, keepdim=True)
    covariance = (share * centred).mT @ centred  # [B, 3, 3]
    a, b, c = covariance.unbind(1)
    determinant = (a * torch.linalg.cross(b, c)).sum(-1).clamp_min(0)
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-20)
    return 1 - (determinant / mean**3).clamp(0, 1) ** (1 / 3)
