"""Layers that the networks share: equalised fully connected layers, the mapping network, the point transformer.

Sources: equalised learning rate and second-moment normalisation, Karras et al. 2018 and 2020 (StyleGAN); adaptive
instance normalisation, Huang and Belongie 2017; layer scale, Touvron et al. 2021; the arrangement, CGS-GAN.
"""

import math
from dataclasses import MISSING, asdict, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.ops import LRELU_GAIN, LRELU_SLOPE

CAMERA_DIM = 25  # a label: 16 numbers of cam2world, 9 of the intrinsics


class NetworkConfig:
    """Base of the frozen config dataclasses: JSON-able, and strict when read back."""

    def to_dict(self) -> dict[str, Any]:
        """Values JSON can hold; tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of to_dict. Raises ValueError for unknown and for missing names."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        required = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{cls.__name__} does not know {', '.join(unknown)}; legal are {', '.join(sorted(known))}")
        if missing := sorted(required - set(values)):
            raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def normalize_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """x scaled so that its last axis has mean square 1."""
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()


class FullyConnected(nn.Module):
    """y = x (weight lr_mult / sqrt(in))^T + bias lr_mult, then the activation; equalised learning rate.

    weight_init multiplies the unit-normal initial weight; bias_init is the initial stored bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",  # "linear" or "lrelu" (slope 0.2, then times sqrt(2))
        lr_mult: float = 1.0,
        weight_init: float = 1.0,
        bias_init: float = 0.0,
    ):
        super().__init__()
        if activation not in ("linear", "lrelu"):
            raise ValueError(f"activation={activation!r} is unknown; legal are linear, lrelu")
        self.activation = activation
        self.weight_gain = lr_mult / math.sqrt(in_features)
        self.bias_gain = lr_mult
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * (weight_init / lr_mult))
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """x [..., in] in any dtype, to which the scaled weights are cast; gain multiplies the result."""
        # A positive gain passes through the leaky ReLU, so both gains go into the (smaller) weights.
        gain = gain * LRELU_GAIN if self.activation == "lrelu" else gain
        weight = (self.weight * (self.weight_gain * gain)).to(x.dtype)
        bias = (self.bias * (self.bias_gain * gain)).to(x.dtype)
        y = F.linear(x, weight, bias)
        return F.leaky_relu(y, LRELU_SLOPE) if self.activation == "lrelu" else y


class MappingNetwork(nn.Module):
    """Latent and/or camera to w: normalise each, concatenate, a few leaky-ReLU layers with learning rate x 0.01.

    latent_dim or camera_dim may be 0. With keep_average the module carries the buffer `w_avg`.
    """

    def __init__(self, latent_dim: int, camera_dim: int, w_dim: int, depth: int, keep_average: bool = False):
        super().__init__()
        self.depth = depth
        if camera_dim:
            self.embed = FullyConnected(camera_dim, w_dim)
        in_features = latent_dim + (w_dim if camera_dim else 0)
        for i in range(depth):
            self.add_module(f"fc{i}", FullyConnected(in_features if i == 0 else w_dim, w_dim, "lrelu", lr_mult=0.01))
        if keep_average:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, latent: Tensor | None = None, camera: Tensor | None = None) -> Tensor:
        """latent [B, latent_dim] and camera [B, camera_dim], where the network has them; returns w [B, w_dim]."""
        inputs = []
        if latent is not None:
            inputs.append(normalize_second_moment(latent))
        if camera is not None:
            inputs.append(normalize_second_moment(self.embed(camera)))
        x = torch.cat(inputs, dim=-1)
        for i in range(self.depth):
            x = getattr(self, f"fc{i}")(x)
        return x


class AdaptiveNorm(nn.Module):
    """Instance normalisation over the points of a sample, scaled and shifted by functions of w."""

    EPS = 1e-8

    def __init__(self, features: int, w_dim: int):
        super().__init__()
        self.gamma = FullyConnected(w_dim, features, bias_init=1.0)
        self.beta = FullyConnected(w_dim, features)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [B, P, C], w [B, w_dim] -> [B, P, C]."""
        std, mean = torch.std_mean(x, dim=1, correction=0, keepdim=True)  # [B, 1, C]
        scale = self.gamma(w)[:, None] / (std + self.EPS)
        shift = self.beta(w)[:, None] - mean * scale
        return torch.addcmul(shift, x, scale)


class Attention(nn.Module):
    """Multi-head self-attention; per head the features are laid out as query, key, value."""

    def __init__(self, features: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.c_qkv = FullyConnected(features, 3 * features)
        self.c_proj = FullyConnected(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, P, C] -> [B, P, C]."""
        qkv = self.c_qkv(x).unflatten(-1, (self.num_heads, 3, -1)).transpose(1, 2)  # [B, heads, P, 3, C/heads]
        x = F.scaled_dot_product_attention(*qkv.unbind(3))  # [B, heads, P, C/heads]
        return self.c_proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers, four times as wide inside, with sqrt(2) GELU between."""

    def __init__(self, features: int):
        super().__init__()
        self.c_fc = FullyConnected(features, 4 * features)
        self.c_proj = FullyConnected(4 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, P, C] -> [B, P, C]."""
        return self.c_proj(F.gelu(self.c_fc(x)) * math.sqrt(2))


class TransformerBlock(nn.Module):
    """x + scale_1(w) Attention(norm_1(x, w)), then x + scale_2(w) Mlp(norm_2(x, w)); both scales start at 0."""

    def __init__(self, features: int, w_dim: int, num_heads: int):
        super().__init__()
        self.attn = Attention(features, num_heads)
        self.mlp = Mlp(features)
        self.ln_1 = AdaptiveNorm(features, w_dim)
        self.ln_2 = AdaptiveNorm(features, w_dim)
        self.ls_1 = FullyConnected(w_dim, features, weight_init=0.0)
        self.ls_2 = FullyConnected(w_dim, features, weight_init=0.0)

    def forward(self, x: Tensor, w: Tensor, low_dtype: torch.dtype | None = None) -> Tensor:
        """x [B, P, C], w [B, w_dim] -> [B, P, C]; attention and MLP run in low_dtype, sums and norms in x's type."""
        low_dtype = low_dtype or x.dtype
        update = self.attn(self.ln_1(x, w).to(low_dtype)).to(x.dtype)
        x = torch.addcmul(x, update, self.ls_1(w)[:, None])
        update = self.mlp(self.ln_2(x, w).to(low_dtype)).to(x.dtype)
        return torch.addcmul(x, update, self.ls_2(w)[:, None])
