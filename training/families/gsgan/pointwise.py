"""Runs layers on hundreds of thousands of points: fused autograd functions, each with a slow, readable twin.

What they save beside matrix products: the sums of bias gradients are products with a row of ones, which takes a third
of the time of a sum over rows, activations are in place, and a residual's scale goes into the weights. On CPUs what
stands between two products is one pass of native code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils import point_ops
from torch_utils.ops import LRELU_SLOPE
from training.families.gsgan.in_blocks import row_sum, weight_grad


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, activate: bool = False) -> Tensor:
    """Computes x weight^T + bias and, if asked, a leaky ReLU. The slow twin of `linear`."""
    y = F.linear(x, weight, bias)
    return F.leaky_relu(y, LRELU_SLOPE) if activate else y


def divided_reference(x: Tensor, shared: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes the leaky ReLU of x weight^T + bias, by children, + shared. The slow twin of `divided`."""
    own = linear(x, weight, bias, activate=True)
    return (own.unflatten(-1, (-1, shared.shape[-1])).movedim(-2, 1) + shared[:, None]).flatten(0, 1)


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
        return grad @ weight if ctx.needs_input_grad[0] else None, weight_grad(grad, x), row_sum(grad), None


class _Divided(torch.autograd.Function):
    """Computes `divided_reference` on x [F, R, C_in] and shared [F, R, C] in native code; the result [F, 4, R, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        z = x @ weight.t()
        ctx.save_for_backward(x, weight, bias, z)
        return point_ops.divide(z, bias, shared, LRELU_SLOPE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, bias, z = ctx.saved_tensors
        g_z, g_shared = point_ops.divide_grad(grad.contiguous(), z, bias, LRELU_SLOPE)
        rows = g_z.flatten(0, 1)
        return g_z @ weight, g_shared, weight_grad(rows, x.flatten(0, 1)), row_sum(rows)


def linear(x: Tensor, weight: Tensor, bias: Tensor, activate: bool = False) -> Tensor:
    """Returns x weight^T + bias [..., out] for x [..., in], with a leaky ReLU if asked; differentiable once.

    weight [out, in] and bias [out] are taken in x's type.
    """
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight.to(x.dtype), bias.to(x.dtype), activate)
    return y.unflatten(0, x.shape[:-1])


def divided(x: Tensor, shared: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the children lrelu(x weight^T + bias)[.., k] + shared [A r, B, P, C] of points, r on each.

    x: [A, B, P, C_in]; shared [A, B, P, C]; weight [r C, C_in], bias [r C] in any type, taken in x's. Differentiable
    once.
    """
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    dense = shared.dtype == x.dtype and len(weight) == point_ops.CHILDREN * shared.shape[-1]
    if not (dense and point_ops.usable(x)):
        return divided_reference(x, shared, weight, bias)
    y: Tensor = _Divided.apply(x.flatten(1, 2).contiguous(), shared.flatten(1, 2).contiguous(), weight, bias)
    return y.flatten(0, 1).unflatten(1, x.shape[1:3])
