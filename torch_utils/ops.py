"""Image operations of the discriminator: bias and activation, FIR blur and downsampling.

Every function takes [N, C, H, W] in any floating type and memory format, and is differentiable any number of times
(R1 differentiates a gradient). The `_reference` functions are the slow, readable twins, with the same signatures.

What the fast ones avoid, measured on CPUs: the backward of a strided depthwise convolution (40 times the forward), and
PyTorch's double backward of any depthwise convolution, which loops over the channels.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)  # keeps the second moment of a unit normal at about 1

FIR = (1.0, 3.0, 3.0, 1.0)  # one axis of the resampling filter, to be divided by its sum


def fir_filter(dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """The 4x4 resampling filter; sums to 1."""
    taps = torch.tensor(FIR, dtype=dtype, device=device)
    return torch.outer(taps, taps) / taps.sum().square()


def bias_act_reference(
    x: Tensor, bias: Tensor | None = None, activate: bool = True, gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """Add bias [C], leaky ReLU (slope 0.2, then times sqrt(2)) if `activate`, times gain, limit to +-clamp."""
    if bias is not None:
        x = x + bias[:, None, None]
    if activate:
        x = torch.where(x > 0, x, LRELU_SLOPE * x) * LRELU_GAIN
    x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def lrelu_clamp_(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU without gain, in place, then a limit to +-clamp: bias_act of an x that holds bias and gains already.

    In place, since the output of a convolution is not needed for its gradient: it spares a third of the activations.
    """
    x = F.leaky_relu_(x, LRELU_SLOPE)
    return x if clamp is None else F.hardtanh(x, -clamp, clamp)


def blur_reference(x: Tensor, padding: int) -> Tensor:
    """Zero-pad all sides by 0 to 3, then convolve each channel with the 4x4 filter: H becomes H + 2 padding - 3."""
    return _depthwise_fir(x, padding, stride=1)


def downsample_reference(x: Tensor) -> Tensor:
    """Half the size: blur with one pixel of padding, keep every second pixel."""
    return blur_reference(x, padding=1)[:, :, ::2, ::2]


def blur(x: Tensor, padding: int) -> Tensor:
    """See blur_reference."""
    return _Blur.apply(x, padding)


def downsample(x: Tensor) -> Tensor:
    """See downsample_reference; H and W must be even."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"downsample needs an even height and width, got {list(x.shape[2:])}")
    return _Downsample.apply(x)


@functools.lru_cache(maxsize=64)  # a few kB each; making it anew would stall a GPU
def _depthwise_weight(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return fir_filter(dtype, device).expand(channels, 1, 4, 4).contiguous()


def _depthwise_fir(x: Tensor, padding: int, stride: int) -> Tensor:
    weight = _depthwise_weight(x.shape[1], x.dtype, x.device)
    return F.conv2d(x, weight, padding=padding, stride=stride, groups=x.shape[1])


class _Blur(torch.autograd.Function):
    """The filter is symmetric, so the transpose is a blur too, with the complementary padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: int) -> Tensor:
        ctx.padding = padding
        return _depthwise_fir(x, padding, stride=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Blur.apply(grad, 3 - ctx.padding), None


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _depthwise_fir(x, padding=1, stride=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _DownsampleTranspose.apply(grad)


class _DownsampleTranspose(torch.autograd.Function):
    """A pixel passes 3/8 and 1/8 per axis to its two nearest on a grid twice as fine: bilinear upsampling over 4.

    Except at the border, where upsampling repeats the outermost pixel, while zero padding leaves that share out.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        x = F.interpolate(grad * 0.25, scale_factor=2, mode="bilinear", align_corners=False)
        for edge in (x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]):
            edge.mul_(0.75)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Downsample.apply(grad)
