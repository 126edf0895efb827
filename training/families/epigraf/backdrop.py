"""Paints what lies behind the cube: a network over a sphere that reaches to infinity (Zhang et al. 2020, NeRF++).

Modules and parameters carry the names of the published EpiGRAF checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops import LRELU_GAIN, LRELU_SLOPE
from training.families.epigraf import poses
from training.families.epigraf.config import GeneratorConfig
from training.families.epigraf.discriminator import Waves
from training.fields.rays import stratified
from training.fields.volume import ENDLESS, absorption, composite
from training.networks.layers import FullyConnected

NUM_WS = 4
WAVES = 6  # frequencies of each coordinate
PERIOD = 64.0


class ModulatedLinear(nn.Module):
    """Computes x (weight * s(w))^T + bias, s an affine function of w: demodulated with a leaky ReLU, or an output."""

    def __init__(self, in_features: int, out_features: int, w_dim: int, hidden: bool = True):
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.affine = FullyConnected(w_dim, in_features, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns [B, P, out] for x [B, P, in] and w [B, w_dim]."""
        weight = self.weight * self.affine(w)[:, None]  # [B, out, in]
        if not self.hidden:
            return x @ (weight / math.sqrt(weight.shape[2])).transpose(1, 2) + self.bias
        weight = weight * (weight.square().sum(dim=2, keepdim=True) + 1e-8).rsqrt()
        return F.leaky_relu(x @ weight.transpose(1, 2) + self.bias, LRELU_SLOPE) * LRELU_GAIN


class Block(nn.Module):
    """Runs one or two layers, and reads colour and raw density off the result."""

    def __init__(self, inner: int, outer: int, w_dim: int, first: bool):
        super().__init__()
        if first:
            self.scalar_enc = Waves(WAVES, PERIOD)
        else:
            self.conv0 = ModulatedLinear(inner, outer, w_dim)
        self.conv1 = ModulatedLinear(inner if first else outer, outer, w_dim)
        self.to_out = ModulatedLinear(outer, 4, w_dim, hidden=False)


class Sphere(nn.Module):
    """Makes colour and raw density of points outside of the unit sphere, given on it with their inverse radius."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        first, second = config.backdrop_widths
        self.blocks = nn.ModuleList(
            [Block(4 * 2 * WAVES, first, config.w_dim, True), Block(first, second, config.w_dim, False)]
        )

    def layers(self) -> list[ModulatedLinear]:
        """Returns the layers that follow w."""
        return [module for module in self.modules() if isinstance(module, ModulatedLinear)]

    def forward(self, points: Tensor, ws: Tensor) -> Tensor:
        """Returns RGB and raw density [B, P, 4] for points [B, P, 4] and ws [B, 4, w_dim]."""
        first: Any
        second: Any
        first, second = self.blocks
        w = ws.unbind(1)
        x = poses.fourier(points.flatten(0, 1) * PERIOD, first.scalar_enc.frequencies).unflatten(0, points.shape[:2])
        x = first.conv1(x, w[0])
        out = first.to_out(x, w[1])
        x = second.conv1(second.conv0(x, w[1]), w[2])
        result: Tensor = out + second.to_out(x, w[3])
        return result

    def rays(self, origins: Tensor, directions: Tensor, ws: Tensor, inverse: Tensor) -> Tensor:
        """Returns RGB [B, R, 3] that rays [B, R, 3] meet outside of the sphere of the camera, last of all the farthest.

        inverse: [..., K] that broadcasts to [B, R, K], inverse radii from the nearest sample on, descending.
        """
        points = outside(origins, directions, inverse)  # [B, R, K, 4]
        values = self(points.flatten(1, 2), ws).unflatten(1, points.shape[1:3])
        density = absorption(values[..., 3], "softplus")
        return composite(values[..., :3], density, -points[..., 3], ENDLESS).features


def inverse_radii(config: GeneratorConfig, draws: Tensor | None, like: Tensor) -> Tensor:
    """Returns inverse radii [..., K], from the start down to 0, each moved by a draw [..., K] if there are any."""
    return stratified(config.backdrop_start, 0.0, config.backdrop_samples, draws, "inside", like=like)


def outside(origins: Tensor, directions: Tensor, inverse: Tensor) -> Tensor:
    """Returns where rays of cameras on the unit sphere meet spheres around it: [B, R, K, 4], unit vector and 1/radius.

    origins: [B, R, 3], of which the direction counts; directions: [B, R, 3] of length 1, both in the axes of the field.
    """
    origin = F.normalize(origins, dim=-1)
    middle = -(directions * origin).sum(-1, keepdim=True)  # along the ray, the point nearest to the centre
    nearest = origin + middle * directions
    squared = nearest.square().sum(-1, keepdim=True).clamp_max(1 - 1e-6)
    leaving = origin + (middle + (1 - squared).sqrt()) * directions  # where the ray leaves the unit sphere
    axis = F.normalize(torch.linalg.cross(origin, leaving), dim=-1)
    miss = squared.sqrt()  # [B, R, 1]
    angle = (torch.asin(miss) - torch.asin(miss * inverse))[..., None]  # [B, R, K, 1]
    axis, leaving = axis[:, :, None], leaving[:, :, None]
    along = (axis * leaving).sum(-1, keepdim=True) * axis * (1 - angle.cos())
    turned = leaving * angle.cos() + torch.linalg.cross(axis, leaving) * angle.sin() + along  # Rodrigues
    turned = F.normalize(turned, dim=-1)
    return torch.cat([turned, inverse.expand(turned.shape[:-1])[..., None]], dim=-1)
