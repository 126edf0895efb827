"""Runs a residual MLP on hundreds of thousands of points, and heads on what it makes, with slow, readable twins.

On CPUs rows are worked on in blocks, so that what is four times as wide as a point's features stays in the cache from
the first product to the second, and on the way back; GELU and its slope are one pass of native code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils import point_ops
from training.families.gsgan.in_blocks import ROWS, Sum, blocks, row_sum, weight_grad


def residual_mlp_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Computes x + w2 gelu(w1 x + b1) + b2, row by row. The slow twin of `residual_mlp`."""
    return x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def read_mlp_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, heads: Tensor) -> Tensor:
    """Computes what heads [S, C] make of the MLP's results: [S, M]. The slow twin of `read_mlp`."""
    return heads @ residual_mlp_reference(x, w1, b1, w2, b2).flatten(0, -2).t()


def residual_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Returns x + w2 gelu(w1 x + b1) + b2 for x [..., C]; differentiable once. Weights are taken in x's type."""
    y: Tensor = _ResidualMlp.apply(x.flatten(0, -2), *(t.to(x.dtype) for t in (w1, b1, w2, b2)))
    return y.view(x.shape)


def read_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, heads: Tensor) -> Tensor:
    """Returns what heads [S, C] make of `residual_mlp` for x [..., C]: [S, M]; differentiable once.

    Heads are linear: multiplied with w2 they read the inner features themselves, four times as many, and the widest
    products shrink from C to S rows. Results are of x's type, but for the share of b2.
    """
    weights = (t.to(x.dtype) for t in (w1, b1, heads, heads @ w2))
    y: Tensor = _ReadMlp.apply(x.flatten(0, -2), *weights)
    return y + (heads @ b2)[:, None]


class _Inner:
    """Holds what the first layer and GELU made of blocks of rows: the inner features, and what their slope needs."""

    def __init__(self, x: Tensor, w1: Tensor, b1: Tensor):
        self.native = point_ops.usable(x)
        # Without native code all rows are one block, whose length may be unknown: an exported network leaves it open.
        self.blocks = blocks(len(x), ROWS * torch.get_num_threads()) if self.native else [slice(None)]
        self.w1, self.b1 = w1, b1

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns GELU(w1 x + b1) of a block, and its slope or, without native code, its argument."""
        if self.native:
            kept = x @ self.w1.t()
            return point_ops.gelu_(kept, self.b1), kept
        kept = torch.addmm(self.b1, x, self.w1.t())
        return F.gelu(kept), kept

    def before(self, g_hidden: Tensor, kept: Tensor) -> Tensor:
        """Returns the gradient before GELU for that behind it, which it may overwrite."""
        return g_hidden.mul_(kept) if self.native else torch.ops.aten.gelu_backward(g_hidden, kept)


class _ResidualMlp(torch.autograd.Function):
    """Computes `residual_mlp_reference` on rows [M, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.inner = inner = _Inner(x, w1, b1)
        outer = w2.t().contiguous()  # this layout of so small a weight saves a tenth
        y, found = torch.empty_like(x), []
        for rows in inner.blocks:
            hidden, kept = inner.of(x[rows])
            torch.addmm(x[rows], hidden, outer, out=y[rows]).add_(b2)
            found += [hidden, kept]
        ctx.save_for_backward(x, w1, w2, *found)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, w1, w2, *found = ctx.saved_tensors
        g_x, (g_w1, g_b1, g_w2, g_b2) = torch.empty_like(grad), (Sum() for _ in range(4))
        for rows, hidden, kept in zip(ctx.inner.blocks, found[::2], found[1::2], strict=True):
            g_before = ctx.inner.before(grad[rows] @ w2, kept)
            torch.addmm(grad[rows], g_before, w1, out=g_x[rows])
            g_w1.add(weight_grad(g_before, x[rows]))
            g_b1.add(row_sum(g_before))
            g_w2.add(weight_grad(grad[rows], hidden))
            g_b2.add(row_sum(grad[rows]))
        return g_x, *(g.of_type(x.dtype) for g in (g_w1, g_b1, g_w2, g_b2))


class _ReadMlp(torch.autograd.Function):
    """Computes own x + inner gelu(w1 x + b1) on rows [M, C]: [S, M]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, own: Tensor, inner: Tensor) -> Tensor:
        ctx.inner = layer = _Inner(x, w1, b1)
        y, found = x.new_empty(len(own), len(x)), []
        for rows in layer.blocks:
            hidden, kept = layer.of(x[rows])
            y[:, rows] = torch.addmm(own @ x[rows].t(), inner, hidden.t())
            found += [hidden, kept]
        ctx.save_for_backward(x, w1, own, inner, *found)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, w1, own, inner, *found = ctx.saved_tensors
        g_x, (g_w1, g_b1, g_own, g_inner) = torch.empty_like(x), (Sum() for _ in range(4))
        for rows, hidden, kept in zip(ctx.inner.blocks, found[::2], found[1::2], strict=True):
            g = grad[:, rows].contiguous()
            g_before = ctx.inner.before(g.t() @ inner, kept)
            torch.addmm(g.t() @ own, g_before, w1, out=g_x[rows])
            g_w1.add(weight_grad(g_before, x[rows]))
            g_b1.add(row_sum(g_before))
            g_own.add(g @ x[rows])
            g_inner.add(g @ hidden)
        return g_x, *(g.of_type(x.dtype) for g in (g_w1, g_b1, g_own, g_inner))
