"""Lets points look at others before they divide: attention over edges, whose weights and values come from differences.

For a point i and its neighbours j: x_i + scale * sum_j softmax_j(W(x_j - x_i)) V([x_i, x_j - x_i]), per channel, where
W and V are two layers each. Features are laid out [A, B, P, C]: A points per first point, B scenes, P first points.

The first layer of W and of V is linear in x_i and x_j, so it runs once per point and not once per edge.
Source: Hyun and Heo 2024 (GSGAN), after the graph attention of SP-GAN (Li et al. 2021).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops import LRELU_GAIN, LRELU_SLOPE, add_product
from training.families.gsgan.config import RATIO
from training.families.gsgan.pointwise import linear, sibling_attention
from training.networks.discriminator import ConvLayer
from training.networks.layers import AdaptiveNorm, FullyConnected


def _two_layers(in_features: int, hidden: int, out_features: int, filter_key: bool) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ConvLayer(in_features, hidden, 1, filter_key=filter_key),
            ConvLayer(hidden, out_features, 1, activate=False, filter_key=filter_key),
        ]
    )


class EdgeLayers(nn.Module):
    """Holds W and V as the published 1x1 convolutions, and runs them on edges."""

    def __init__(self, features: int, filter_key: bool):
        super().__init__()
        self.conv_w = _two_layers(features, features // 2, features, filter_key)
        self.conv_x = _two_layers(2 * features, features, features, filter_key)

    def first_layers(self, x: Tensor) -> Tensor:
        """Returns the first layers' parts for x [..., C]: of the other end, then of the own, [..., 2 (C/2 + C)].

        The first C/2 are W's, W(x_j - x_i) = W x_j + (bias - W x_i), the rest V's,
        V [x_i, x_j - x_i] = V_2 x_j + ((V_1 - V_2) x_i + bias).
        """
        w, w_bias = _matrix(self.conv_w, 0)
        v, v_bias = _matrix(self.conv_x, 0)
        v_own, v_difference = v.chunk(2, dim=1)
        weight = torch.cat([w, v_difference, -w, v_own - v_difference])
        bias = torch.cat([torch.zeros_like(w_bias), torch.zeros_like(v_bias), w_bias, v_bias])
        return linear(x, weight, bias)

    def second_layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns weight and bias of W's second layer, then of V's."""
        return (*_matrix(self.conv_w, 1, LRELU_GAIN), *_matrix(self.conv_x, 1, LRELU_GAIN))

    def attend(self, first: Tensor, dim: int) -> Tensor:
        """Returns the attended values [..., C] for the first layers' sums [..., C/2 + C], with edges along `dim`."""
        features = F.leaky_relu_(first, LRELU_SLOPE)
        w, w_bias, v, v_bias = self.second_layers()
        for_weights, for_values = features.split([w.shape[1], v.shape[1]], dim=-1)
        # The softmax of a low type is computed in float32 and rounded once.
        shares = linear(for_weights, w, w_bias).softmax(dim=dim)
        return (shares * linear(for_values, v, v_bias)).sum(dim=dim)


def _matrix(layers: nn.ModuleList, index: int, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns weight [out, in] and bias of a layer, in the layout of a linear one; gain is that of the activation."""
    layer: Any = layers[index]
    return layer.weight.flatten(1) * (layer.weight_gain * gain), layer.bias


class NeighbourEdges(EdgeLayers):
    """Attends among the points nearest in feature space, normalised and scaled by w."""

    def __init__(self, features: int, w_dim: int, neighbours: int, filter_key: bool):
        super().__init__(features, filter_key)
        self.neighbours = neighbours
        self.norm = AdaptiveNorm(features, w_dim)
        self.ls = FullyConnected(w_dim, features, weight_init=0.0)

    def forward(self, x: Tensor, w: Tensor, low_dtype: torch.dtype | None = None) -> Tensor:
        """Returns features [A, B, P, C] for x of the same shape and w [B, w_dim]."""
        a, batch, points, _ = x.shape
        rows = x.transpose(0, 1).flatten(1, 2)  # [B, N, C] with N = A P
        y = self.norm(rows, self.norm.gamma(w)[:, None], self.norm.beta(w)[:, None])
        nearest = nearest_others(y, self.neighbours)  # [B, N, K]
        other, own = self.first_layers(y.to(low_dtype or y.dtype)).chunk(2, dim=-1)
        index = nearest.flatten(1)[..., None].expand(-1, -1, other.shape[-1])  # [B, N K, C/2 + C]
        gathered = other.gather(1, index).unflatten(1, (-1, self.neighbours))  # [B, N, K, C/2 + C]
        attended = self.attend(gathered + own[:, :, None], dim=2)
        rows = add_product(rows, attended.to(rows.dtype), self.ls(w)[:, None])
        return rows.view(batch, a, points, -1).transpose(0, 1).contiguous()


@torch.no_grad()
def nearest_others(y: Tensor, count: int) -> Tensor:
    """Returns the `count` rows nearest to each row of y [B, N, C], without the row itself, the first: [B, N, count]."""
    squared = y.square().sum(-1)
    distance = torch.baddbmm(squared[:, None] + squared[:, :, None], y, y.transpose(1, 2), alpha=-2)
    return distance.topk(count + 1, largest=False, sorted=True).indices[..., 1:]


class SiblingEdges(EdgeLayers):
    """Attends among the children of one parent, the point itself included."""

    def __init__(self, features: int, filter_key: bool):
        super().__init__(features, filter_key)
        self.ls = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Returns features [A, B, P, C] for x of the same shape, in its type; siblings are RATIO consecutive in A."""
        w, w_bias, v, v_bias = self.second_layers()
        scaled = v * self.ls[:, None], v_bias * self.ls  # goes into the weights: no pass over the points
        rows = x.flatten(1, 2).unflatten(0, (-1, RATIO))  # [A / 4, 4, B P, C]
        return sibling_attention(rows, self.first_layers(rows), w, w_bias, *scaled).view(x.shape)
