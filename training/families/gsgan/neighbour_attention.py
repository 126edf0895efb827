"""Lets points attend to those that an index names, with a slow, readable twin.

Of a point's edges there are many times as many numbers as of the point. On CPUs points are worked on in blocks, so that
no more than a block's edges are held beside their shares and values, and what stands between the products is one pass
of native code; PyTorch's would be a dozen, with a gather and its transpose among them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils import point_ops
from torch_utils.ops import LRELU_SLOPE
from training.families.gsgan.in_blocks import Sum, blocks, row_sum, weight_grad

POINTS = 128  # of a block, for each thread


def neighbour_attention_reference(
    x: Tensor, index: Tensor, first: Tensor, w_first: Tensor, v_first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor,
    v_bias: Tensor,
) -> Tensor:  # fmt: skip
    """Computes sum_j softmax_j(w a_ij + w_bias) (v b_ij + v_bias). The slow twin of `neighbour_attention`."""
    seen, other, own = F.linear(x, first).split([len(w_first), len(v_first), len(v_first)], dim=-1)
    ends = torch.cat([seen, other], dim=-1)
    rows = index.flatten(1)[..., None].expand(-1, -1, ends.shape[-1])  # [B, N K, C1 + C2]
    sums = (
        ends.gather(1, rows).unflatten(1, index.shape[1:]) + torch.cat([w_first - seen, own + v_first], -1)[:, :, None]
    )
    for_weights, for_values = F.leaky_relu(sums, LRELU_SLOPE).split([len(w_first), len(v_first)], dim=-1)
    # The softmax of a low type is computed in float32 and rounded once.
    shares = F.linear(for_weights, w, w_bias).softmax(dim=2)
    return (shares * F.linear(for_values, v, v_bias)).sum(dim=2)


def neighbour_attention(
    x: Tensor, index: Tensor, first: Tensor, w_first: Tensor, v_first: Tensor, w: Tensor, w_bias: Tensor, v: Tensor,
    v_bias: Tensor,
) -> Tensor:  # fmt: skip
    """Returns sum_j softmax_j(w a_ij + w_bias) (v b_ij + v_bias) [B, N, C], per channel, over the neighbours j of i.

    x: [B, N, C]; index: [B, N, K], the rows of x that are a row's neighbours; the rest as in `sibling_attention`.
    Weights are taken in x's type. Differentiable once.
    """
    parameters = [t.to(x.dtype) for t in (first, w_first, v_first, w, w_bias, v, v_bias)]
    if not (point_ops.usable(x) and index.shape[2] <= point_ops.MOST_NEIGHBOURS):
        return neighbour_attention_reference(x, index, *parameters)
    first, w_first, v_first, *second = parameters
    v_first = torch.cat([v_first.new_zeros(len(first) - len(v_first)), v_first])  # of own alone
    scenes = torch.arange(len(x), device=x.device)[:, None, None] * x.shape[1]
    rows = (index + scenes).flatten(0, 1)
    y: Tensor = _NeighbourAttention.apply(x.flatten(0, 1).contiguous(), rows, first, w_first, v_first, *second)
    return y.view(x.shape)


class _NeighbourAttention(torch.autograd.Function):
    """Computes `neighbour_attention` in native code on x [M, C] and index [M, K], with v_first behind zeros.

    As among siblings, a bias of the weights changes nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, first: Tensor, w_first: Tensor, v_first: Tensor, w: Tensor, w_bias: Tensor,
        v: Tensor, v_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.blocks = blocks(len(x), POINTS * torch.get_num_threads())
        made = torch.addmm(v_first, x, first.t())
        y, found = torch.empty_like(x), []
        for rows in ctx.blocks:
            for_weights, for_values = point_ops.neighbour_sums(made, rows, index[rows], w_first, LRELU_SLOPE)
            shares, values = for_weights @ w.t(), for_values @ v.t()
            y[rows] = point_ops.attend_all_(v_bias, shares, values)
            found += [shares, values]
        ctx.save_for_backward(x, index, first, w_first, w, v, made, *found)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, index, first, w_first, w, v, made, *found = ctx.saved_tensors
        g_made, grad = torch.zeros_like(made, dtype=torch.float32), grad.contiguous()
        sums = [Sum() for _ in range(3)]
        for rows, shares, values in zip(ctx.blocks, found[::2], found[1::2], strict=True):
            for_weights, for_values = point_ops.neighbour_sums(made, rows, index[rows], w_first, LRELU_SLOPE)
            g_shares, g_values = point_ops.attend_all_grad(grad[rows], shares, values)
            edges = for_weights, g_shares @ w, for_values, g_values @ v
            g_seen = point_ops.neighbour_sums_grad(g_made, rows, index[rows], *edges, LRELU_SLOPE)
            for_weights, for_values, g_shares, g_values = (
                part.flatten(0, 1) for part in (for_weights, for_values, g_shares, g_values)
            )
            parts = row_sum(g_seen), weight_grad(g_shares, for_weights), weight_grad(g_values, for_values)
            for total, part in zip(sums, parts, strict=True):
                total.add(part)
        g_w_first, g_w, g_v = (total.of_type(x.dtype) for total in sums)
        g_made, g_bias = g_made.to(x.dtype), row_sum(grad)
        g_parameters = weight_grad(g_made, x), g_w_first, row_sum(g_made), g_w, torch.zeros_like(g_bias), g_v, g_bias
        return g_made @ first, None, *g_parameters
