"""Adds up what rays meet as EG3D does: between samples, not at them (Barron et al. 2021, mip-NeRF; Max 1995)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.fields.rays import inverse_cdf
from training.fields.volume import Composite, absorption, ray_weights, weighted

SHIFT = -1.0  # added to raw densities before the softplus
SPARE = 0.01  # added to the weights that place the second samples,
TINY = 1e-5  # and again, to each bin


def interval_weights(sigma: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weights [..., K - 1] of the intervals between samples of raw density [..., K] at ascending t.

    The density of an interval is that of the mean of its ends. The second result is the light left at the last sample.
    """
    density = absorption((sigma[..., 1:] + sigma[..., :-1]) / 2, "softplus", SHIFT)
    weights, _ = ray_weights(F.pad(density, (0, 1)), t)
    return weights[..., :-1], 1 - weights[..., :-1].sum(-1)


def composite_intervals(features: Tensor, sigma: Tensor, t: Tensor, order: Tensor | None = None) -> Composite:
    """Adds up features [..., K, C] and distances over the intervals between samples; for `order` see `composite`.

    An interval has the mean of the features at its ends, so that a sample's weight is the mean of those beside it.
    """
    weights, through = interval_weights(sigma, t)
    total = weighted(features, (F.pad(weights, (0, 1)) + F.pad(weights, (1, 0))) / 2, order)
    distance = (weights * (t[..., 1:] + t[..., :-1]) / 2).sum(-1)
    return Composite(total, distance, weights.sum(-1), weights, through)


@torch.no_grad()
def place_fine(t: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Places samples where intervals have weight: [..., N], a constant.

    t: [..., K]; weights: [..., K - 1] of its intervals; u: [..., N] in 0..1. The weights are spread to their
    neighbours (the larger of two, then the mean of two); the bins lie between the midpoints of samples, but for the
    last one, which published code leaves out.
    """
    rows = weights.flatten(0, -2)[:, None]  # [R, 1, K - 1]
    spread = F.avg_pool1d(F.max_pool1d(rows, 2, 1, padding=1), 2, 1).view_as(weights) + SPARE
    middles = (t[..., 1:] + t[..., :-1]) / 2  # [..., K - 1]
    return inverse_cdf(middles[..., :-1], spread[..., 1:-1] + TINY, u, right=True)
