"""Defines the colour rules of splats: the published one, and one with a floor that black splats can leave again.

A splat shows max(0, Y00 sh + 0.5), which passes no gradient where it is 0. A splat that turned black therefore stays
black whatever the loss asks for, and can only fade out: within minutes most of the finest level is lost. Under the
rule "inward" sh stops just above black, and gradients that would raise it pass all the same.

The floor is put under the splats alone. Anchors, which no picture shows, hand their colour down as published, so that
the sum over the levels keeps its meaning: a child can be bright under a parent whose raw colour lies below black.
A raw colour does not run away below black, where all that the loss says of it is upwards.
"""

from typing import Any

import torch
from torch import Tensor

from gaussian.spherical_harmonics import Y00

RULES = ("published", "inward")
# Of the colour that a black splat shows: small beside an 8-bit step (4e-3), and above 0 whichever way a back end rounds
# Y00 sh + 0.5 in float32 (by 6e-8 at most), so that its own max(0, .) passes the gradient on.
DARKEST = 1e-6
SH_FLOOR = (DARKEST - 0.5) / Y00


def inward_floor_reference(sh: Tensor) -> Tensor:
    """Does what `inward_floor` does by means of autograd. The slow twin."""
    clipped = sh <= SH_FLOOR
    floored = torch.where(clipped, SH_FLOOR + (sh - sh.detach()), sh)  # straight through
    if floored.requires_grad:
        floored.register_hook(lambda grad: torch.where(clipped & (grad > 0), 0, grad))
    return floored


class _InwardFloor(torch.autograd.Function):
    """Computes `inward_floor_reference` from its result, which the rasteriser keeps anyway."""

    @staticmethod
    def forward(ctx: Any, sh: Tensor) -> Tensor:
        floored = sh.clamp_min(SH_FLOOR)
        ctx.save_for_backward(floored)
        return floored

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (floored,) = ctx.saved_tensors
        return grad.masked_fill((floored <= SH_FLOOR) & (grad > 0), 0)  # descent would lower it


def inward_floor(sh: Tensor) -> Tensor:
    """Limits degree-0 coefficients from below to those of a black splat, in float32 or float64.

    The gradient is that of max(sh, SH_FLOOR), and where that is clipped, also what would raise sh under descent.
    """
    return _InwardFloor.apply(sh)
