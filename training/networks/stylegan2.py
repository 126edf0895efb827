"""Builds the synthesis network of StyleGAN2 (Karras et al. 2020): ws to an image, or to feature planes, of any depth.

The mapping network is `training.networks.layers.MappingNetwork`. Modules and parameters carry the names of EG3D's
checkpoints (Chan et al. 2022), so that published weights of its descendants load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils import convolution, ops
from training.networks.layers import FullyConnected

_MASK = 0xFFFFFFFF


def num_ws(resolution: int) -> int:
    """Returns how many ws a network of that size reads: two at 4 px, two more for every doubling."""
    return 2 * int(math.log2(resolution)) - 2


def channel_counts(resolution: int, base: int, maximum: int) -> tuple[int, ...]:
    """Returns the channels at 4, 8, ..., `resolution`: base / size, at most `maximum`.

    Raises ValueError for a size that is no power of two from 4 on, and where no channel is left.
    """
    if resolution < 4 or resolution & (resolution - 1):
        raise ValueError(f"a synthesis network makes images of 4, 8, 16, ... px, not of {resolution}")
    counts = tuple(min(base // size, maximum) for size in block_resolutions(resolution))
    if min(counts) < 1:
        raise ValueError(f"{base} channels / pixels leave none at {resolution} px")
    return counts


def block_resolutions(resolution: int) -> tuple[int, ...]:
    """Returns 4, 8, ..., `resolution`."""
    return tuple(4 << i for i in range(int(math.log2(resolution)) - 1))


def hashed_noise(keys: Tensor, layer: int, size: int) -> Tensor:
    """Draws standard normal noise [B, 1, size, size] where the keys are: a function of key, layer and pixel alone.

    keys: int64 [B], 0 and up. Two rounds of an integer hash (the finaliser of MurmurHash3, Appleby) per number, then
    Box and Muller's method. Drawing it on the CPU, as samples are, would cost more than the network.
    """
    pixel = torch.arange(size * size, device=keys.device)
    stream = _hash(_hash(keys & _MASK) + 0x9E3779B1 * (layer + 1) & _MASK)[:, None]  # [B, 1]
    first, second = (_hash(_hash(stream ^ (2 * pixel + i) * 0x85EBCA77 & _MASK) + stream & _MASK) for i in range(2))
    u, angle = ((first + 0.5) * 2.0**-32).double(), second * (2 * math.pi * 2.0**-32)
    return ((-2 * u.log()).sqrt() * angle.cos()).float().view(-1, 1, size, size)


def _hash(x: Tensor) -> Tensor:
    """Mixes 32-bit numbers, held in int64, so that every bit of the result depends on every bit of x."""
    x = ((x ^ x >> 16) * 0x85EBCA6B) & _MASK
    x = ((x ^ x >> 13) * 0xC2B2AE35) & _MASK
    return x ^ x >> 16


def modulated_conv_reference(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool, up: bool = False) -> Tensor:
    """Convolves every sample [C, H, W] with weights [O, C, k, k] of its own, scaled by its styles [C], one by one.

    demodulate: scales each output channel so that unit-normal features stay unit-normal (StyleGAN2, equation 3).
    up: doubles the size by a transposed convolution and the resampling filter. The slow twin of `ModulatedConv`.
    """
    results = []
    for sample, style in zip(x, styles, strict=True):
        own = weight * style[:, None, None]
        if demodulate:
            own = own * (own.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        if up:
            y = F.conv_transpose2d(sample[None], own.transpose(0, 1), stride=2)
            results.append(4 * ops.blur_reference(y, padding=1))
        else:
            results.append(F.conv2d(sample[None], own, padding=weight.shape[-1] // 2))
    return torch.cat(results)


def modulated_conv(x: Tensor, weight: Tensor, styles: Tensor, up: bool = False, gain: float = 1.0) -> Tensor:
    """Computes `modulated_conv_reference`, demodulated, times `gain`, for the whole batch at once, in x's type.

    Styles scale the input, and demodulation the output, of one convolution with the common weights.
    """
    power = weight.square().sum(dim=(2, 3))  # [O, C]
    scale = (styles.square() @ power.t() + 1e-8).rsqrt()  # [B, O]
    x = x * styles.to(x.dtype)[:, :, None, None]
    if up:
        y = F.conv_transpose2d(x, weight.to(x.dtype).transpose(0, 1), stride=2)
        y, gain = ops.blur(y, padding=1), 4 * gain
    else:
        y = convolution.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
    return y * (scale * gain).to(x.dtype)[:, :, None, None]


class SynthesisLayer(nn.Module):
    """Convolves with modulated weights, adds noise and bias, and ends in a leaky ReLU; may double the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,  # pixels of the result
        up: bool = False,
        clamp: float | None = None,  # bound of the activations
        use_noise: bool = True,
        filter_key: bool = False,  # own the (constant) resampling filter as published checkpoints do
    ):
        super().__init__()
        self.up, self.clamp, self.use_noise = up, clamp, use_noise
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros(()))
        if filter_key:
            self.register_buffer("resample_filter", ops.fir_filter())

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """Returns [B, out, R, R] for x [B, in, H, W], w [B, w_dim] and noise that broadcasts to [B, 1, R, R]."""
        gain = ops.LRELU_GAIN  # a positive gain passes through the leaky ReLU
        y = modulated_conv(x, self.weight, self.affine(w), self.up, gain)
        if noise is not None:
            y = y.add_((noise.to(self.bias.dtype) * (self.noise_strength * gain)).to(y.dtype))
        return ops.lrelu_clamp_(y, self.clamp, (self.bias * gain).to(y.dtype))


class ToRGB(nn.Module):
    """Reads the image's channels off the features by a modulated 1x1 convolution without demodulation."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.clamp = clamp
        self.style_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns [B, out, R, R] in the parameters' type for x [B, in, R, R] and w [B, w_dim]."""
        styles = self.affine(w, self.style_gain)  # [B, in]
        own = self.weight[:, :, 0, 0] * styles[:, None]  # [B, out, in]
        y = torch.baddbmm(self.bias[:, None], own, x.to(own.dtype).flatten(2)).unflatten(2, x.shape[2:])
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """Doubles the size of the features and of the image, and adds to the image; the first starts from a constant."""

    def __init__(
        self,
        in_channels: int,  # 0: the first block
        out_channels: int,
        image_channels: int,
        w_dim: int,
        resolution: int,
        clamp: float | None = None,
        use_noise: bool = True,
        filter_key: bool = False,
    ):
        super().__init__()
        self.resolution, self.num_convs = resolution, 2 if in_channels else 1

        def layer(inner: int, up: bool) -> SynthesisLayer:
            return SynthesisLayer(inner, out_channels, w_dim, resolution, up, clamp, use_noise, filter_key)

        if filter_key:
            self.register_buffer("resample_filter", ops.fir_filter())
        if in_channels:
            self.conv0 = layer(in_channels, up=True)
        else:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        self.conv1 = layer(out_channels, up=False)
        self.torgb = ToRGB(out_channels, image_channels, w_dim, clamp)

    def layers(self) -> list[SynthesisLayer]:
        """Returns the convolutions in the order in which they run."""
        return [self.conv0, self.conv1] if self.num_convs == 2 else [self.conv1]

    def forward(
        self,
        x: Tensor | None,  # [B, in, R/2, R/2]; None in the first block
        image: Tensor | None,  # [B, image channels, R/2, R/2]; None in the first block
        ws: Sequence[Tensor],  # [B, w_dim] for each convolution, and for the image
        noises: Sequence[Tensor | None],  # for each convolution
        dtype: torch.dtype,  # of the convolutions
        fade: float = 1.0,  # weight of what the block adds to the image
    ) -> tuple[Tensor, Tensor]:
        """Returns features [B, out, R, R] in `dtype` and the image [B, image channels, R, R] in the parameters'."""
        if x is None:
            x = self.const[None].expand(len(ws[0]), -1, -1, -1)
        x = x.to(dtype)
        if x.device.type == "cpu" and dtype in (torch.bfloat16, torch.float32):
            x = x.contiguous(memory_format=torch.channels_last)
        for layer, w, noise in zip(self.layers(), ws, noises, strict=False):
            x = layer(x, w, noise)
        added = self.torgb(x, ws[-1])
        added = added if fade == 1 else added * fade
        return x, added if image is None else ops.upsample(image) + added


class SynthesisNetwork(nn.Module):
    """Turns ws into an image of any number of channels, from 4 px on, doubling the size (StyleGAN2, skip generator).

    A block reads a w for each convolution and one for the image, which is also the first w of the next block.
    """

    def __init__(
        self,
        w_dim: int,
        resolution: int,  # pixels of the image: a power of two, 4 or more
        image_channels: int,
        channels: Sequence[int],  # features at 4, 8, ..., resolution
        clamp: float | None = None,  # bound of activations and of what a block adds to the image
        use_noise: bool = True,  # add noise to the features
        filter_keys: bool = False,  # own the resampling filters as published checkpoints do
    ):
        super().__init__()
        self.resolutions, self.num_ws, self.use_noise = block_resolutions(resolution), num_ws(resolution), use_noise
        for inner, outer, size in zip((0, *channels), channels, self.resolutions, strict=False):
            block = SynthesisBlock(inner, outer, image_channels, w_dim, size, clamp, use_noise, filter_keys)
            self.add_module(f"b{size}", block)

    def blocks(self) -> list[SynthesisBlock]:
        """Returns the blocks, smallest first."""
        return [getattr(self, f"b{size}") for size in self.resolutions]

    def style_weights(self) -> list[Tensor]:
        """Returns the matrices [out, w_dim] that make styles of w, layer after layer."""
        found: list[Tensor] = []
        for block in self.blocks():
            found += [layer.affine.matrix() for layer in block.layers()]
            found.append(block.torgb.affine.matrix() * block.torgb.style_gain)
        return found

    def forward(
        self,
        ws: Tensor,  # [B, num_ws, w_dim]
        noise: str | Tensor = "const",  # "const", "none", or keys [B] of `hashed_noise`
        low_dtype: torch.dtype | None = None,  # of the convolutions; None is the parameters'
        fade: float = 1.0,  # weight of what the blocks above fade_from px add to the image
        fade_from: int | None = None,
    ) -> Tensor:
        """Returns the image [B, image channels, R, R] in the parameters' type."""
        if ws.ndim != 3 or ws.shape[1] != self.num_ws:
            raise ValueError(f"ws must have shape [B, {self.num_ws}, w_dim], got {list(ws.shape)}")
        x = image = None
        first = layer_number = 0
        dtype = low_dtype or ws.dtype
        for block in self.blocks():
            own = ws[:, first : first + block.num_convs + 1].unbind(1)
            noises = [self._noise(layer, noise, layer_number + i, block) for i, layer in enumerate(block.layers())]
            faded = fade_from is not None and block.resolution > fade_from
            x, image = block(x, image, own, noises, dtype, fade if faded else 1.0)
            first, layer_number = first + block.num_convs, layer_number + block.num_convs
        assert image is not None
        return image

    def _noise(self, layer: SynthesisLayer, noise: str | Tensor, number: int, block: SynthesisBlock) -> Tensor | None:
        if not self.use_noise or (isinstance(noise, str) and noise == "none"):
            return None
        if isinstance(noise, Tensor):
            return hashed_noise(noise, number, block.resolution)
        if noise != "const":
            raise ValueError(f"noise={noise!r} is unknown; legal are const, none, and keys [B]")
        return layer.get_buffer("noise_const")
