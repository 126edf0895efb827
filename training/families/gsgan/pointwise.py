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


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, activate: bool = False) -> Tensor:
    """Computes x weight^T + bias and, if asked, a leaky ReLU. The slow twin of `linear`."""
    y = F.linear(x, weight, bias)
    return F.leaky_relu(y, LRELU_SLOPE) if activate else y


def residual_mlp_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Computes x + w2 gelu(w1 x + b1) + b2, row by row. The slow twin of `residual_mlp`."""
    return x + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def divided_reference(x: Tensor, shared: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes the leaky ReLU of x weight^T + bias, by children, + shared. The slow twin of `divided`."""
    own = linear(x, weight, bias, activate=True)
    return (own.unflatten(-1, (-1, shared.shape[-1])).movedim(-2, 1) + shared[:, None]).flatten(0, 1)


def sibling_attention_reference(
    x: Tensor, first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor, v_bias: Tensor
) -> Tensor:
    """Computes x + sum_j softmax_j(w a_ij + w_bias) (v b_ij + v_bias). The slow twin of `sibling_attention`."""
    other, own = first.chunk(2, dim=-1)
    edges = F.leaky_relu_(other[:, None] + own[:, :, None], LRELU_SLOPE)  # [F, 4 (i), 4 (j), R, C1 + C2]
    for_weights, for_values = edges.split([w.shape[1], v.shape[1]], dim=-1)
    # The softmax of a low type is computed in float32 and rounded once.
    shares = linear(for_weights, w, w_bias).softmax(dim=2)
    return x + (shares * linear(for_values, v, v_bias)).sum(dim=2)


def _row_sum(grad: Tensor) -> Tensor:
    """Returns the sum over the rows of grad [M, C] as a matrix product."""
    return (grad.new_ones(1, len(grad)) @ grad)[0]


def _weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    """Returns grad^T x [out, in] of grad [M, out] and x [M, in], by the product whose second factor is the wider one.

    MKL takes a quarter less time for it than for the other one, in float32.
    """
    return grad.t() @ x if grad.shape[1] <= x.shape[1] else (x.t() @ grad).t()


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
        return grad @ weight if ctx.needs_input_grad[0] else None, _weight_grad(grad, x), _row_sum(grad), None


class _ResidualMlp(torch.autograd.Function):
    """Computes `residual_mlp_reference` on rows [M, C]; native code keeps GELU's slope in place of its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.native = point_ops.usable(x)
        if ctx.native:
            kept = x @ w1.t()
            hidden = point_ops.gelu_(kept, b1)
        else:
            kept = torch.addmm(b1, x, w1.t())
            hidden = F.gelu(kept)
        ctx.save_for_backward(x, w1, w2, kept, hidden)
        return torch.addmm(x, hidden, w2.t().contiguous()).add_(b2)  # this layout of so small a weight saves a tenth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, w1, w2, kept, hidden = ctx.saved_tensors
        g_hidden = grad @ w2
        g_before = g_hidden.mul_(kept) if ctx.native else torch.ops.aten.gelu_backward(g_hidden, kept)
        g_x = torch.addmm(grad, g_before, w1)
        return g_x, _weight_grad(g_before, x), _row_sum(g_before), _weight_grad(grad, hidden), _row_sum(grad)


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
        return g_z @ weight, g_shared, _weight_grad(rows, x.flatten(0, 1)), _row_sum(rows)


class _SiblingAttention(torch.autograd.Function):
    """Computes `sibling_attention_reference` in native code, on x [F, 4, R, C] and first [F, 4, R, 2 (C1 + C2)].

    A bias of the weights is the same for all siblings, so that it changes nothing and has no gradient; one of the
    values is added to their mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
        for_weights, for_values = point_ops.edge_sums(first, w.shape[1], LRELU_SLOPE)
        shares, values = for_weights @ w.t(), for_values @ v.t()
        points = (part.flatten(0, 1) for part in (shares, values))
        y = point_ops.attend_(x.flatten(0, 1), v_bias, *points).view(x.shape)
        ctx.save_for_backward(for_weights, for_values, shares, values, w, v)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        for_weights, for_values, shares, values, w, v = ctx.saved_tensors
        grad = grad.contiguous()
        points = (part.flatten(0, 1) for part in (grad, shares, values))
        g_shares, g_values = (part.flatten(0, 2) for part in point_ops.attend_grad(*points))  # [16 F R, C]
        sums = (for_weights, (g_shares @ w).view(for_weights.shape), for_values, (g_values @ v).view(for_values.shape))
        g_first = point_ops.edge_sums_grad(*sums, LRELU_SLOPE)
        g_w, g_v = (
            _weight_grad(g, part.flatten(0, 3)) for g, part in ((g_shares, for_weights), (g_values, for_values))
        )
        return grad, g_first, g_w, torch.zeros_like(w[:, 0]), g_v, _row_sum(grad.flatten(0, 2))


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


def sibling_attention(x: Tensor, first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor, v_bias: Tensor) -> Tensor:
    """Returns x + sum_j softmax_j(w a_ij + w_bias) (v b_ij + v_bias), per channel: siblings i attend to siblings j.

    (a_ij, b_ij) is the leaky ReLU of the other end's part of sibling j plus the own part of sibling i.
    x: [F, 4, R, C]; first: [F, 4, R, 2 (C1 + C2)], the parts of the other end before the own ones; w: [C, C1];
    v: [C, C2]; biases [C]. Weights are taken in x's type. Differentiable once.
    """
    parameters = [t.to(x.dtype) for t in (w, w_bias, v, v_bias)]
    if not (point_ops.usable(x) and x.shape[1] == point_ops.CHILDREN):
        return sibling_attention_reference(x, first, *parameters)
    y: Tensor = _SiblingAttention.apply(x.contiguous(), first.contiguous(), *parameters)
    return y
