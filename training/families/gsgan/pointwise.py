"""Runs layers on hundreds of thousands of points: fused autograd functions, each with a slow, readable twin.

What they save beside matrix products: the sums of bias gradients are products with a row of ones, which takes a third
of the time of a sum over rows, activations are in place, and a residual's scale goes into the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils.ops import LRELU_SLOPE


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, activate: bool = False) -> Tensor:
    """Computes x weight^T + bias and, if asked, a leaky ReLU. The slow twin of `linear`."""
    y = F.linear(x, weight, bias)
    return F.leaky_relu(y, LRELU_SLOPE) if activate else y


def residual_mlp_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Computes x + w2 gelu(w1 x + b1) + b2, row by row. The slow twin of `residual_mlp`."""
    return x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def _row_sum(grad: Tensor) -> Tensor:
    """Returns the sum over the rows of grad [M, C] as a matrix product."""
    return (grad.new_ones(1, len(grad)) @ grad)[0]


class _Linear(torch.autograd.Function):
    """Computes `linear_reference` on rows [M, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activate: bool) -> Tensor:
        y = torch.addmm(bias, x, weight.t())
        if activate:
            F.leaky_relu_(y, LRELU_SLOPE)
        ctx.activate = activate
        ctx.save_for_backward(x, weight, *([y] if activate else []))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *results = ctx.saved_tensors
        for y in results:
            grad = torch.ops.aten.leaky_relu_backward(grad, y, LRELU_SLOPE, True)
        return grad @ weight if ctx.needs_input_grad[0] else None, grad.t() @ x, _row_sum(grad), None


class _ResidualMlp(torch.autograd.Function):
    """Computes `residual_mlp_reference` on rows [M, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        before = torch.addmm(b1, x, w1.t())
        hidden = F.gelu(before)
        ctx.save_for_backward(x, w1, w2, before, hidden)
        return torch.addmm(x, hidden, w2.t()).add_(b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, w1, w2, before, hidden = ctx.saved_tensors
        g_before = torch.ops.aten.gelu_backward(grad @ w2, before)
        g_x = torch.addmm(grad, g_before, w1)
        return g_x, g_before.t() @ x, _row_sum(g_before), grad.t() @ hidden, _row_sum(grad)


def linear(x: Tensor, weight: Tensor, bias: Tensor, activate: bool = False) -> Tensor:
    """Returns x weight^T + bias [..., out] for x [..., in], with a leaky ReLU if asked; differentiable once.

    weight [out, in] and bias [out] are taken in x's type.
    """
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight.to(x.dtype), bias.to(x.dtype), activate)
    return y.unflatten(0, x.shape[:-1])


def residual_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Returns x + w2 gelu(w1 x + b1) + b2 for x [..., C]; differentiable once. Weights are taken in x's type."""
    weights = [t.to(x.dtype) for t in (w1, b1, w2, b2)]
    y: Tensor = _ResidualMlp.apply(x.flatten(0, -2), *weights)
    return y.view(x.shape)
