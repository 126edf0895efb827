"""Lets the children of a point attend to each other, with a slow, readable twin.

Four products run over sixteen edges a family. On CPUs families are worked on in blocks, so that their edges stay in the
cache from one product to the next, and what stands between the products is one pass of native code. A child's edge to
itself has no difference: its weight is one number per channel for all points, and takes no product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils import point_ops
from torch_utils.ops import LRELU_SLOPE
from training.families.gsgan.in_blocks import Sum, blocks, row_sum, weight_grad

FAMILIES = 1024  # of a block, for each thread


def sibling_attention_reference(
    x: Tensor, first: Tensor, w_first: Tensor, v_first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor, v_bias: Tensor
) -> Tensor:
    """Computes x + sum_j softmax_j(w a_ij + w_bias) (v b_ij + v_bias). The slow twin of `sibling_attention`."""
    seen, other, own = F.linear(x, first).split([len(w_first), len(v_first), len(v_first)], dim=-1)
    for_weights = F.leaky_relu(seen[:, None] - seen[:, :, None] + w_first, LRELU_SLOPE)  # [F, 4 (i), 4 (j), R, C1]
    for_values = F.leaky_relu(other[:, None] + own[:, :, None] + v_first, LRELU_SLOPE)
    # The softmax of a low type is computed in float32 and rounded once.
    shares = F.linear(for_weights, w, w_bias).softmax(dim=2)
    return x + (shares * F.linear(for_values, v, v_bias)).sum(dim=2)


def sibling_attention(
    x: Tensor, first: Tensor, w_first: Tensor, v_first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor, v_bias: Tensor
) -> Tensor:
    """Returns x + sum_j softmax_j(w a_ij + w_bias) (v b_ij + v_bias), per channel: siblings i attend to siblings j.

    a_ij is the leaky ReLU of seen_j - seen_i + w_first, b_ij that of other_j + own_i + v_first, where `first` makes
    seen, other and own of a point. x: [F, 4, R, C]; first: [C1 + 2 C2, C]; w_first: [C1]; v_first: [C2]; w: [C, C1];
    v: [C, C2]; w_bias, v_bias: [C]. Weights are taken in x's type. Differentiable once.
    """
    parameters = [t.to(x.dtype) for t in (first, w_first, v_first, w, w_bias, v, v_bias)]
    if not (point_ops.usable(x) and x.shape[1] == point_ops.CHILDREN):
        return sibling_attention_reference(x, *parameters)
    first, w_first, v_first, w, w_bias, v, v_bias = parameters
    v_first = torch.cat([v_first.new_zeros(len(first) - len(v_first)), v_first])  # of own alone
    alone = w @ F.leaky_relu(w_first, LRELU_SLOPE)  # the scores for i = j
    y: Tensor = _SiblingAttention.apply(x, first, w_first, v_first, w, w_bias, v, v_bias, alone)
    return y


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the blocks of families, R to each of F, of x [F, 4, R, C]."""
    size = FAMILIES * torch.get_num_threads()
    for families in blocks(len(x), max(size // x.shape[2], 1)):
        for rows in blocks(x.shape[2], size):
            yield families, rows


def _children_first(x: Tensor, families: slice, rows: slice) -> Tensor:
    """Returns a block of x [F, 4, R, C] as [4, families, C]."""
    return x[families, :, rows].transpose(0, 1).flatten(1, 2).contiguous()


def _put(y: Tensor, block: Tensor, families: slice, rows: slice) -> None:
    """Puts a block [4, families, C] into y [F, 4, R, C]; inverts `_children_first`."""
    place = y[families, :, rows].transpose(0, 1)
    place.copy_(block.view(place.shape))


class _SiblingAttention(torch.autograd.Function):
    """Computes `sibling_attention` in native code, with v_first behind zeros.

    A bias of the weights is the same for all siblings, so that it changes nothing and has no gradient; one of the
    values is added to their mean.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, w_first: Tensor, v_first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor,
        v_bias: Tensor, alone: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.blocks = list(_blocks(x))
        y, found = torch.empty_like(x), []
        for block in ctx.blocks:
            points = _children_first(x, *block)
            made = torch.addmm(v_first, points.flatten(0, 1), first.t()).view(*points.shape[:2], -1)
            for_weights, for_values = point_ops.edge_sums(made, w_first, LRELU_SLOPE)
            values = for_values @ v.t()
            shares = torch.empty_like(values)
            torch.mm(for_weights.flatten(0, 1), w.t(), out=shares[: point_ops.PAIRS].flatten(0, 1))
            _put(y, point_ops.attend_(points, v_bias, alone, shares, values), *block)
            found += [made, shares, values]
        ctx.save_for_backward(x, first, w_first, w, v, *found)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, first, w_first, w, v, *found = ctx.saved_tensors
        g_x, sums = torch.empty_like(x), [Sum() for _ in range(7)]
        for block, made, shares, values in zip(ctx.blocks, found[::3], found[1::3], found[2::3], strict=True):
            points, g = (_children_first(part, *block) for part in (x, grad))
            for_weights, for_values = point_ops.edge_sums(made, w_first, LRELU_SLOPE)
            g_shares, g_values = point_ops.attend_grad(g, shares, values)
            g_made, g_seen = point_ops.edge_sums_grad(for_weights, g_shares @ w, for_values, g_values @ v, LRELU_SLOPE)
            points, g, for_weights, for_values, g_shares, g_values, g_made = (
                part.flatten(0, 1) for part in (points, g, for_weights, for_values, g_shares, g_values, g_made)
            )
            _put(g_x, torch.addmm(g, g_made, first), *block)
            parts = (
                weight_grad(g_made, points),
                row_sum(g_seen),
                row_sum(g_made),
                weight_grad(g_shares, for_weights),
                weight_grad(g_values, for_values),
                row_sum(g),
                -row_sum(g_shares),  # of `alone`: what all scores of a softmax share changes nothing
            )
            for total, part in zip(sums, parts, strict=True):
                total.add(part)
        g_first, g_w_first, g_v_first, g_w, g_v, g_v_bias, g_alone = (total.of_type(x.dtype) for total in sums)
        return g_x, g_first, g_w_first, g_v_first, g_w, torch.zeros_like(g_v_bias), g_v, g_v_bias, g_alone
