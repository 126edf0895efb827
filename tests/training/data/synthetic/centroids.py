"""Finds where pictures and splats have their centres of mass, for tests of the camera convention."""

import torch

from gaussian import Cameras, Gaussians, render


def centroid(weights: torch.Tensor) -> torch.Tensor:
    """Returns the centres of mass [N, 2] (x, y) of images [N, H, W], in pixels."""
    height, width = weights.shape[-2:]
    x = (weights.sum(-2) * (torch.arange(width) + 0.5)).sum(-1)
    y = (weights.sum(-1) * (torch.arange(height) + 0.5)).sum(-1)
    return torch.stack([x, y], dim=-1) / weights.sum((-1, -2))[:, None]


def splat_centroid(point: tuple, cameras: Cameras, resolution: int) -> torch.Tensor:
    splat = Gaussians(
        means=torch.tensor([[point]]),
        log_scales=torch.full((1, 1, 3), 0.012).log(),
        quats=torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        opacity_logits=torch.full((1, 1, 1), 3.0),
        sh=torch.zeros(1, 1, 1, 3),
    )
    return centroid(render(splat, cameras[None], resolution, backend="torch").alpha[0, :, 0])
