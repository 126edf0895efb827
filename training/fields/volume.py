"""Adds up what a ray meets: emission and absorption along it, as sums over samples (Max 1995; NeRF, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "softplus": F.softplus}
ENDLESS = 1e10  # world units that the last sample of a ray stands for, unless said otherwise: it is opaque or clear


@dataclass(frozen=True)
class Composite:
    """Holds what rays of any leading shape show, of K samples each."""

    features: Tensor  # [..., C] sum of weight times feature: premultiplied, nothing behind it
    distance: Tensor  # [...] sum of weight times t, world units along the ray; not divided by alpha
    alpha: Tensor  # [...] sum of weights, 0..1
    weights: Tensor  # [..., K]
    through: Tensor  # [...] share of the light that reaches the last sample, before that one absorbs any


def absorption(sigma: Tensor, activation: str, shift: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """Returns the density per world unit that raw values stand for: activation(sigma + noise + shift).

    Raises ValueError for an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} does not exist; legal are {', '.join(ACTIVATIONS)}")
    if noise is not None:
        sigma = sigma + noise
    return ACTIVATIONS[activation](sigma + shift if shift else sigma)


def ray_weights(density: Tensor, t: Tensor, last_delta: float = ENDLESS) -> tuple[Tensor, Tensor]:
    """Returns the weights [..., K] of samples with densities [..., K] at ascending t [..., K], and `through` [...].

    Sample k stands for what lies up to sample k + 1, the last one for `last_delta`. Weight k is alpha_k times the
    product of all earlier 1 - alpha_j, taken as the exponential of the sum of densities. Published codes add 1e-10 to
    each factor, to keep gradients finite; here they are finite without.
    """
    delta = torch.cat([t[..., 1:] - t[..., :-1], torch.full_like(t[..., :1], last_delta)], dim=-1)
    depth = density * delta  # [..., K] optical
    before = F.pad(depth[..., :-1].cumsum(-1), (1, 0))
    reached = torch.exp(-before)
    return -torch.expm1(-depth) * reached, reached[..., -1]


def composite(
    features: Tensor,
    density: Tensor,
    t: Tensor,
    last_delta: float = ENDLESS,
    last_back: bool = False,
    order: Tensor | None = None,
) -> Composite:
    """Adds up features [..., K, C] of samples with densities [..., K] (see `absorption`) at ascending t [..., K].

    last_back: all light that is left goes to the last sample, so alpha is 1 (pi-GAN).
    order: [..., K] int64 whose features are in an order of their own: sample k has number order[k]. None: in that of t.
    """
    weights, through = ray_weights(density, t, last_delta)
    if last_back:
        rest = 1 - weights.sum(-1, keepdim=True)
        weights = torch.cat([weights[..., :-1], weights[..., -1:] + rest], dim=-1)
    total = weighted(features, weights, order)
    return Composite(total, (weights * t).sum(-1), weights.sum(-1), weights, through)


def weighted(features: Tensor, weights: Tensor, order: Tensor | None = None) -> Tensor:
    """Returns the sum [..., C] of weights [..., K] times features [..., K, C]; for `order` see `composite`.

    Weights are brought into the order of the features, which are C times as many.
    """
    if order is not None:
        weights = torch.zeros_like(weights).scatter(-1, order, weights)
    return (weights[..., None, :] @ features).squeeze(-2)
