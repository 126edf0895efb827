"""Makes the background of GSGAN: splats on a sphere around the scene, from layers whose weights follow w.

Source: Hyun and Heo 2024 (GSGAN); modulation as in StyleGAN2 (Karras et al. 2020). Modules and parameters carry the
names of the published checkpoints. Features are laid out [A, B, P, C] as in point_generator.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops import LRELU_GAIN, LRELU_SLOPE
from training.families.gsgan import hierarchy
from training.families.gsgan.config import RATIO, GeneratorConfig, published_constants
from training.families.gsgan.hierarchy import Attributes
from training.networks.layers import FullyConnected
from training.networks.point_encoding import Fourier

RADIUS = 3.0  # of the sphere that the splats lie on, world units
LARGEST = -2.0  # upper bound of a first splat's scale, ln of world units
RULE = hierarchy.ScaleRule(math.log(0.05), math.log(4) / 3, (-10.0, 0.0))
CLAMP = 256.0  # of activations
HEADS = tuple((name, rows, 0.01 if weight < 1 else 1.0) for name, rows, weight in hierarchy.HEADS)


class ModulatedLinear(nn.Module):
    """Computes x (weight * s(w))^T + bias, s an affine function of w; then a clamp."""

    def __init__(self, in_features: int, out_features: int, w_dim: int, weight_init: float = 1.0, hidden: bool = True):
        super().__init__()
        self.hidden = hidden  # demodulated and with a leaky ReLU, or else an output
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * weight_init)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.affine = FullyConnected(w_dim, in_features, bias_init=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns [A, B, P, out] for x [A, B, P, in] and w [B, w_dim]."""
        weight = self.weight * self.affine(w)[:, None]  # [B, out, in]
        if self.hidden:
            weight = weight * (weight.square().sum(dim=2, keepdim=True) + 1e-8).rsqrt()
        else:
            weight = weight / math.sqrt(weight.shape[2])
        y = x @ weight.transpose(1, 2) + self.bias
        if self.hidden:
            y = F.leaky_relu(y, LRELU_SLOPE) * LRELU_GAIN
        return y.clamp(-CLAMP, CLAMP)


class ResidualModulatedLinear(ModulatedLinear):
    """Adds the result, scaled per channel, to x."""

    def __init__(self, features: int, w_dim: int):
        super().__init__(features, features, w_dim)
        self.layerscale = nn.Parameter(torch.full((1, 1, features), 0.01))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns [A, B, P, C] for x of the same shape and w [B, w_dim]."""
        return torch.addcmul(x, super().forward(x, w), self.layerscale)


class BackgroundUpsample(nn.Module):
    """Divides every splat into RATIO: (its features + what is new in each child) / sqrt(2)."""

    def __init__(self, features: int, w_dim: int):
        super().__init__()
        self.subpixel = ModulatedLinear(features, RATIO * features, w_dim)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns [4 A, B, P, C] for x [A, B, P, C]."""
        own = self.subpixel(x, w).unflatten(-1, (RATIO, -1)).movedim(-2, 1)  # [A, 4, B, P, C]
        return ((x[:, None] + own) * math.sqrt(0.5)).flatten(0, 1)


class BackgroundGenerator(nn.Module):
    """Makes two levels of splats on the sphere, from directions and the last w."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        width, w_dim = config.background_width, config.w_dim
        if config.published_keys:  # constants on record; the values in use stand above
            for name, value in published_constants(config).items():
                owner, _, key = name.partition(".")
                if owner == "point_gen_bg":
                    self.register_buffer(key, value)
        self.conv_in = Fourier(width)

        def refining() -> list[nn.Module]:
            return [ResidualModulatedLinear(width, w_dim) for _ in range(2)]

        self.network = nn.ModuleDict(
            {
                "block_0": nn.ModuleList(refining()),
                "block_1": nn.ModuleList([BackgroundUpsample(width, w_dim), *refining()]),
            }
        )
        self.out_layers = nn.ModuleDict()
        for level in range(2):
            heads = [head for head in HEADS if config.published_keys or level or head[0] != "xyz"]  # it is never read
            self.out_layers[f"block_{level}"] = nn.ModuleDict(
                {
                    name: nn.ModuleDict({"out_block": ModulatedLinear(width, rows, w_dim, weight, hidden=False)})
                    for name, rows, weight in heads
                }
            )

    def modulation_layers(self) -> list[FullyConnected]:
        """Returns the layers that read w."""
        return [module.affine for module in self.modules() if isinstance(module, ModulatedLinear)]

    def forward(self, points: Tensor, w: Tensor) -> list[Attributes]:
        """Returns the splats of both levels (M = B P) for points [P, 3], of any length but 0, and w [B, w_dim]."""
        sphere = RADIUS * F.normalize(points, dim=-1)
        xyz = sphere.t().repeat(1, len(w))[None]  # [1, 3, M]
        x = self.conv_in(points).expand(1, len(w), -1, -1)  # [1, B, P, C]
        x = self._refined(0, x, w)
        first = hierarchy.first_splats(self._raw(0, x, w), LARGEST, xyz)
        x = self._refined(1, x, w)
        second = hierarchy.children(self._raw(1, x, w), hierarchy.frame_of(first, RULE), RULE)
        return [first, second._replace(xyz=RADIUS * F.normalize(second.xyz, dim=1))]

    def _refined(self, level: int, x: Tensor, w: Tensor) -> Tensor:
        layers: Any = self.network[f"block_{level}"]
        for layer in layers:
            x = layer(x, w)
        return x

    def _raw(self, level: int, x: Tensor, w: Tensor) -> Attributes:
        """Returns the heads' outputs of a level for features x [A, B, P, C]; there is no position on the first one."""
        heads: Any = self.out_layers[f"block_{level}"]

        def output(name: str) -> Tensor:
            y: Tensor = heads[name]["out_block"](x, w)
            return y.flatten(1, 2).transpose(1, 2)  # [A, rows, M]

        xyz = output("xyz") if level else x.new_zeros(())
        return Attributes(xyz, output("scale"), torch.cat([output(n) for n in ("rotation", "color", "opacity")], dim=1))
