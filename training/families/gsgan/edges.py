"""Lets points look at others before they divide: attention over edges, whose weights and values come from differences.

For a point i and its neighbours j: x_i + scale * sum_j softmax_j(W(x_j - x_i)) V([x_i, x_j - x_i]), per channel, where
W and V are two layers each. Features are laid out [A, B, P, C]: A points per first point, B scenes, P first points.

The first layer of W and of V is linear in x_i and x_j, so it runs once per point and not once per edge.
Source: Hyun and Heo 2024 (GSGAN), after the graph attention of SP-GAN (Li et al. 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_utils.ops import LRELU_GAIN, add_product
from training.families.gsgan.config import RATIO
from training.families.gsgan.neighbour_attention import neighbour_attention
from training.families.gsgan.sibling_attention import sibling_attention
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

    def first_layers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the weight of both first layers for a point x, and the biases of W's and of V's.

        The weight [C/2 + 2 C, C] makes a = W x, b = V_2 x and c = (V_1 - V_2) x: on an edge W has a_j - a_i, since it
        sees x_j - x_i, and V, which sees [x_i, x_j - x_i], has b_j + c_i.
        """
        w, w_bias = _matrix(self.conv_w, 0)
        v, v_bias = _matrix(self.conv_x, 0)
        v_own, v_difference = v.chunk(2, dim=1)
        return torch.cat([w, v_difference, v_own - v_difference]), w_bias, v_bias

    def second_layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns weight and bias of W's second layer, then of V's."""
        return (*_matrix(self.conv_w, 1, LRELU_GAIN), *_matrix(self.conv_x, 1, LRELU_GAIN))


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
        low = y.to(low_dtype or y.dtype)
        attended = neighbour_attention(low, nearest, *self.first_layers(), *self.second_layers())
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
        return sibling_attention(rows, *self.first_layers(), w, w_bias, *scaled).view(x.shape)
