"""Layers that the networks share: equalised fully connected layers, the mapping network, the point transformer.

Sources: equalised learning rate and second-moment normalisation, Karras et al. 2018 and 2020 (StyleGAN); adaptive
instance normalisation, Huang and Belongie 2017; layer scale, Touvron et al. 2021; the arrangement, CGS-GAN.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torch_utils.foreach import scale_and_cast
from torch_utils.ops import LRELU_GAIN, LRELU_SLOPE, add_product

CAMERA_DIM = 25  # a label: 16 numbers of cam2world, 9 of the intrinsics

_LEAST_VARIANCE, _LEAST_STD = 1e-24, 1e-8  # of what adaptive normalisation divides by

WeightAndBias = tuple[Tensor, Tensor | None]  # scaled and in the type of a layer's input


class Equalised(Protocol):
    """States what a layer with equalised learning rate (Karras et al. 2018) tells about its parameters."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    def gains(self) -> tuple[float, float]: ...  # factors of weight and bias


def scaled_parameters(layers: Iterable[tuple[Equalised, torch.dtype]]) -> list[WeightAndBias]:
    """Returns weight and bias of every layer times their gains, in the type beside it: a few kernels for all layers."""
    pairs = list(layers)
    tensors, gains, dtypes = [], [], []
    for layer, dtype in pairs:
        for parameter, gain in zip((layer.weight, layer.bias), layer.gains(), strict=True):
            if parameter is not None:
                tensors.append(parameter)
                gains.append(gain)
                dtypes.append(dtype)
    scaled = iter(scale_and_cast(tensors, gains, dtypes))
    return [(next(scaled), None if layer.bias is None else next(scaled)) for layer, _ in pairs]


def normalize_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scales x so that its last axis has mean square 1."""
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()


class FullyConnected(nn.Module):
    """Computes y = x (weight lr_mult / sqrt(in))^T + bias lr_mult, then the activation (equalised learning rate).

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
        input_gain: float = 1.0,  # a factor on x, taken into the weights at run time
    ):
        super().__init__()
        if activation not in ("linear", "lrelu"):
            raise ValueError(f"activation={activation!r} is unknown; legal are linear, lrelu")
        self.activation = activation
        self.weight_gain = input_gain * lr_mult / math.sqrt(in_features)
        self.bias_gain = lr_mult
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * (weight_init / lr_mult))
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))

    def gains(self, gain: float = 1.0) -> tuple[float, float]:
        """Returns the factors of weight and bias for a result that is `gain` times as large."""
        # A positive gain passes through the leaky ReLU, so both gains go into the (smaller) weights.
        gain = gain * LRELU_GAIN if self.activation == "lrelu" else gain
        return self.weight_gain * gain, self.bias_gain * gain

    def matrix(self) -> Tensor:
        """Returns the weight [out, in] as it acts, before the activation."""
        return self.weight * self.weight_gain

    def _scaled(self, dtype: torch.dtype, gain: float) -> tuple[Tensor, Tensor]:
        weight, bias = scale_and_cast([self.weight, self.bias], self.gains(gain), [dtype, dtype])
        return weight, bias

    def _activated(self, y: Tensor) -> Tensor:
        return F.leaky_relu(y, LRELU_SLOPE) if self.activation == "lrelu" else y

    def forward(self, x: Tensor, gain: float = 1.0, scaled: WeightAndBias | None = None) -> Tensor:
        """Returns [..., out] for x [..., in], in x's type; gain multiplies the result.

        scaled: weight and bias as `scaled_parameters` made them, for a gain of 1.
        """
        return self._activated(F.linear(x, *(self._scaled(x.dtype, gain) if scaled is None else scaled)))

    def transposed(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Returns the transpose [out, M] of the result for x [M, in], computed in that layout."""
        weight, bias = self._scaled(x.dtype, gain)
        return self._activated(torch.addmm(bias[:, None], weight, x.t()))


class MappingNetwork(nn.Module):
    """Maps latent and/or camera to w: normalises each, joins them, then leaky-ReLU layers with learning rate x 0.01.

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
        """Returns w [B, w_dim] of latent [B, latent_dim] and camera [B, camera_dim], where the network has them."""
        inputs = []
        if latent is not None:
            inputs.append(normalize_second_moment(latent))
        if camera is not None:
            inputs.append(normalize_second_moment(self.embed(camera)))
        x = torch.cat(inputs, dim=-1)
        layers = [getattr(self, f"fc{i}") for i in range(self.depth)]
        for layer, scaled in zip(layers, scaled_parameters((layer, x.dtype) for layer in layers), strict=True):
            x = layer(x, scaled=scaled)
        return x


class AdaptiveNorm(nn.Module):
    """Normalises over the points of a sample; holds the layers that give its scale and shift from w."""

    def __init__(self, features: int, w_dim: int):
        super().__init__()
        self.gamma = FullyConnected(w_dim, features, bias_init=1.0)
        self.beta = FullyConnected(w_dim, features)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Returns [B, P, C] for x [B, P, C], gamma and beta [B, 1, C]; differentiable once."""
        return _AdaptiveNorm.apply(x, gamma, beta)


def adaptive_norm_reference(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Normalises x [B, P, C] over its points, scales by gamma and adds beta, [B, 1, C]: AdaptiveNorm's slow twin."""
    x = x - x.mean(dim=1, keepdim=True)
    # 1e-24 gives features that are equal in all points the gradient 0, in place of 0/0.
    std = (x.square().mean(dim=1, keepdim=True) + _LEAST_VARIANCE).sqrt()
    return torch.addcmul(beta, x, gamma / (std + _LEAST_STD))


class _AdaptiveNorm(torch.autograd.Function):
    """Computes adaptive_norm_reference; the gradient is one formula, in half the passes over x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        std = (x.square().mean(dim=1, keepdim=True) + _LEAST_VARIANCE).sqrt()
        divisor = std + _LEAST_STD
        scale = gamma / divisor
        ctx.save_for_backward(x, std, divisor, scale)
        return torch.addcmul(beta, x, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, std, divisor, scale = ctx.saved_tensors
        points = x.shape[1]
        beta = grad.sum(dim=1, keepdim=True)
        gamma = (grad * x).sum(dim=1, keepdim=True) / divisor
        # x has no mean any more, so that only the direct part of its gradient has one.
        direct = torch.addcmul(beta * scale / -points, grad, scale)
        return torch.addcmul(direct, x, gamma * scale / (std * -points)), gamma, beta


class Attention(nn.Module):
    """Attends among the points with several heads; per head the features are laid out as query, key, value."""

    def __init__(self, features: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.c_qkv = FullyConnected(features, 3 * features)
        self.c_proj = FullyConnected(features, features)

    def forward(self, x: Tensor, scaled: Sequence[WeightAndBias | None] = (None, None)) -> Tensor:
        """Returns [B, P, C] for x [B, P, C] in x's type; the softmax is taken in float32 or better.

        scaled: what `scaled_parameters` returns for c_qkv and c_proj.
        """
        qkv = (
            self.c_qkv(x, scaled=scaled[0]).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        )  # [3, B, heads, P, C/heads]
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            # PyTorch's fused CPU kernel is up to eight times slower in bfloat16 than these two products.
            q, k, v = qkv.flatten(1, 2).unbind(0)
            scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))  # [B heads, P, P]
            y = torch.bmm(scores.softmax(dim=-1, dtype=torch.float32).to(x.dtype), v).unflatten(0, (len(x), -1))
        else:
            y = F.scaled_dot_product_attention(*qkv.contiguous().unbind(0))
        return self.c_proj(y.transpose(1, 2).flatten(2), scaled=scaled[1])


class Mlp(nn.Module):
    """Runs two layers, four times as wide inside, with sqrt(2) GELU between."""

    def __init__(self, features: int):
        super().__init__()
        self.c_fc = FullyConnected(features, 4 * features)
        self.c_proj = FullyConnected(4 * features, features, input_gain=math.sqrt(2))

    def forward(self, x: Tensor, scaled: Sequence[WeightAndBias | None] = (None, None)) -> Tensor:
        """Returns [B, P, C] for x [B, P, C]; scaled: what `scaled_parameters` returns for c_fc and c_proj."""
        return self.c_proj(F.gelu(self.c_fc(x, scaled=scaled[0])), scaled=scaled[1])


class TransformerBlock(nn.Module):
    """Adds scale_1(w) Attention(norm_1(x, w)) to x, then scale_2(w) Mlp(norm_2(x, w)); both scales start at 0."""

    def __init__(self, features: int, w_dim: int, num_heads: int):
        super().__init__()
        self.attn = Attention(features, num_heads)
        self.mlp = Mlp(features)
        self.ln_1 = AdaptiveNorm(features, w_dim)
        self.ln_2 = AdaptiveNorm(features, w_dim)
        self.ls_1 = FullyConnected(w_dim, features, weight_init=0.0)
        self.ls_2 = FullyConnected(w_dim, features, weight_init=0.0)

    def modulation_layers(self) -> list[FullyConnected]:
        """Returns the layers whose outputs for w are the `modulation` of forward, in its order."""
        return [self.ln_1.gamma, self.ln_1.beta, self.ls_1, self.ln_2.gamma, self.ln_2.beta, self.ls_2]

    def forward(self, x: Tensor, modulation: Sequence[Tensor], low_dtype: torch.dtype | None = None) -> Tensor:
        """Returns [B, P, C] for x [B, P, C] and the modulation, 6 times [B, 1, C].

        Attention and MLP run in low_dtype, sums and norms in x's type.
        """
        gamma_1, beta_1, scale_1, gamma_2, beta_2, scale_2 = modulation
        low_dtype = low_dtype or x.dtype
        layers = (self.attn.c_qkv, self.attn.c_proj, self.mlp.c_fc, self.mlp.c_proj)
        scaled = scaled_parameters((layer, low_dtype) for layer in layers)
        x = add_product(x, self.attn(self.ln_1(x, gamma_1, beta_1).to(low_dtype), scaled[:2]).to(x.dtype), scale_1)
        return add_product(x, self.mlp(self.ln_2(x, gamma_2, beta_2).to(low_dtype), scaled[2:]).to(x.dtype), scale_2)


def stacked_linear(x: Tensor, layers: Sequence[FullyConnected]) -> tuple[Tensor, ...]:
    """Returns the outputs [B, out] of equally shaped linear layers for one input x [B, in], as one matrix product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    y = F.linear(x * layers[0].weight_gain, weight, bias * layers[0].bias_gain)
    return y.unflatten(1, (len(layers), -1)).unbind(1)
