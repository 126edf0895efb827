"""Measures where the latents of a generator lie, and moves in units of that: w = mean + sum of deviations.

Coordinates in which the latents of a generator have variance 1 make one learning rate and one prior fit all families
(Zhu et al. 2020, "Improved StyleGAN embedding: where are the good latents?").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_utils import random
from training.families.base import Generator
from training.visualization.latents import frontal_ws

SAMPLES = 2048  # heads that the statistics are of
SMALLEST = 1e-3  # deviation, as a share of the largest, below which a direction counts as none


@dataclass(frozen=True)
class LatentSpace:
    """Holds the law of a generator's w: its mean and its principal directions, times their standard deviations."""

    mean: Tensor  # [w_dim]
    axes: Tensor  # [D, w_dim], the strongest first; D is at most w_dim
    rms: float  # root mean square distance of a w from the mean

    def ws(self, coordinates: Tensor) -> Tensor:
        """Returns ws [..., w_dim] of coordinates [..., D]; those of the generator's own heads have variance 1."""
        return self.mean + coordinates @ self.axes

    def coordinates(self, ws: Tensor) -> Tensor:
        """Returns the coordinates [..., D] of the points nearest to ws [..., w_dim]."""
        return ((ws - self.mean) @ self.axes.mT) / self.axes.square().sum(-1)


@torch.no_grad()
def measure_latents(G: Generator) -> LatentSpace:
    """Measures the w of 2048 heads; a mapping that heeds a camera is told the data's frontal one."""
    z = random.normal(0, "inversion/z", range(SAMPLES), (G.z_dim,))
    w = frontal_ws(G, z, psi=1.0)[:, 0].float()
    mean = w.mean(0)
    _, sizes, axes = torch.linalg.svd(w - mean, full_matrices=False)
    deviations = sizes / (SAMPLES - 1) ** 0.5
    kept = deviations > SMALLEST * deviations[0]
    return LatentSpace(mean, deviations[kept, None] * axes[kept], float(deviations.square().sum().sqrt()))
