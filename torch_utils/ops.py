"""Implements the image operations of StyleGAN2: bias and activation, FIR blur, resampling.

Every function takes [N, C, H, W] in any floating type and memory format, and is differentiable any number of times
(R1 differentiates a gradient). The `_reference` functions are the slow, readable twins, with the same signatures.

What the fast ones avoid, measured on CPUs: the backward of a strided depthwise convolution (40 times the forward),
and PyTorch's double backward of any depthwise convolution, which loops over the channels.
On CUDA the filters, and bias with activation and clamp, are one kernel each (triton_ops.py). On CPUs, which wait for
memory, the filters are native code, and block_ops.py makes one pass of what stands side by side in a network.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils import native_ops, triton_ops
from torch_utils.constants import kept
from torch_utils.convolution import conv2d

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)  # keeps the second moment of a unit normal at about 1

FIR = (1.0, 3.0, 3.0, 1.0)  # one axis of the resampling filter before division by its sum


def fir_filter(dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Returns the 4x4 resampling filter; it sums to 1."""
    taps = torch.tensor(FIR, dtype=dtype, device=device)
    return torch.outer(taps, taps) / taps.sum().square()


def bias_act_reference(
    x: Tensor, bias: Tensor | None = None, activate: bool = True, gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """Adds bias [C], applies leaky ReLU (slope 0.2, gain sqrt(2)) if `activate`, multiplies by gain, then clamps."""
    if bias is not None:
        x = x + bias[:, None, None]
    if activate:
        x = torch.where(x > 0, x, LRELU_SLOPE * x) * LRELU_GAIN
    x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def lrelu_clamp_(x: Tensor, clamp: float | None = None, bias: Tensor | None = None) -> Tensor:
    """Adds bias [C], applies leaky ReLU without gain in place, then clamps to +-clamp.

    That is bias_act of an x with bias and gains applied. A convolution does not need its output for its gradient, so
    that working in place saves a third of the activations. At exactly +-clamp the gradient is 0.
    """
    if triton_ops.usable(x):
        bound = 0.0 if clamp is None else triton_ops.rounded(clamp, x.dtype)
        return _LreluClamp.apply(triton_ops.dense(x), bias, bound)
    if bias is not None:
        x = x + bias[:, None, None]
    x = F.leaky_relu_(x, LRELU_SLOPE)
    return x if clamp is None else F.hardtanh(x, -clamp, clamp)


def blur_reference(x: Tensor, padding: int) -> Tensor:
    """Zero-pads all sides by 0 to 3, then convolves each channel with the 4x4 filter: H becomes H + 2 padding - 3."""
    return _depthwise_fir(x, padding, stride=1)


def downsample_reference(x: Tensor) -> Tensor:
    """Halves the size: blurs with one pixel of padding, then keeps every second pixel."""
    return blur_reference(x, padding=1)[:, :, ::2, ::2]


def upsample_reference(x: Tensor) -> Tensor:
    """Doubles the size: puts a zero behind every pixel of a row and of a column, then filters with gain 4."""
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    return 4 * _depthwise_fir(F.pad(spread, (2, 1, 2, 1)), 0, stride=1)


def downsample_transpose_reference(grad: Tensor) -> Tensor:
    """Transposes `downsample`: bilinear upsampling by 2, divided by 4.

    A pixel passes 3/8 and 1/8 per axis to its two nearest on the finer grid. The border differs: bilinear upsampling
    repeats the outermost pixel there, while zero padding leaves that share out, hence the factor 0.75.
    """
    x = F.interpolate(grad * 0.25, scale_factor=2, mode="bilinear", align_corners=False)
    for edge in (x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]):
        edge.mul_(0.75)
    return x


def blur(x: Tensor, padding: int) -> Tensor:
    """Computes blur_reference, fast also in the backward and double backward."""
    return _Blur.apply(x, padding)


def downsample(x: Tensor) -> Tensor:
    """Computes downsample_reference, fast also in the backward and double backward; H and W must be even."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"downsample needs an even height and width, got {list(x.shape[2:])}")
    return _Downsample.apply(x)


def upsample(x: Tensor) -> Tensor:
    """Computes upsample_reference, fast also in the backward and double backward."""
    return _DownsampleTranspose.apply(4 * x)


def add_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Returns x + a * b, of shapes that broadcast, as torch.addcmul; differentiable once.

    Its gradient takes two passes less: PyTorch's multiplies a and b by addcmul's factor 1 first.
    """
    return _AddProduct.apply(x, a, b)


def conv2d_lrelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    clamp: float | None = None,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Convolves, then applies leaky ReLU and clamp: the bias goes with whichever of the two adds it for free."""
    if triton_ops.usable(x):
        return lrelu_clamp_(conv2d(x, weight, None, stride, padding), clamp, bias)
    return lrelu_clamp_(conv2d(x, weight, bias, stride, padding), clamp)


@kept
def _depthwise_weight(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return fir_filter(dtype, device).expand(channels, 1, 4, 4).contiguous()


def _depthwise_fir(x: Tensor, padding: int, stride: int) -> Tensor:
    weight = _depthwise_weight(x.shape[1], x.dtype, x.device)
    return F.conv2d(x, weight, padding=padding, stride=stride, groups=x.shape[1])


def _fir(x: Tensor, padding: int, stride: int) -> Tensor:
    """Filters with the 4x4 filter, by one kernel where there is one."""
    if triton_ops.usable(x):
        return torch.ops.splatgan.fir(triton_ops.dense(x), padding, stride)
    if native_ops.usable(x):
        return native_ops.fir(x, padding, stride)
    return _depthwise_fir(x, padding, stride)


class _AddProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.shape = x.shape
        return torch.addcmul(x, a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        x_needed, a_needed, b_needed = ctx.needs_input_grad
        return (
            grad.sum_to_size(ctx.shape) if x_needed else None,
            (grad * b).sum_to_size(a.shape) if a_needed else None,
            (grad * a).sum_to_size(b.shape) if b_needed else None,
        )


class _LreluClamp(torch.autograd.Function):
    """Adds the bias, applies leaky ReLU and clamps, in place and in one kernel; keeps nothing but its result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, clamp: float) -> Tensor:
        torch.ops.splatgan.lrelu_clamp_(x, bias, LRELU_SLOPE, clamp)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.clamp, ctx.bias_dtype = clamp, None if bias is None else bias.dtype
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (y,) = ctx.saved_tensors
        grad = _LreluClampGrad.apply(grad, y, ctx.clamp)
        bias = grad.sum(dim=(0, 2, 3), dtype=ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return grad, bias, None


class _LreluClampGrad(torch.autograd.Function):
    """Multiplies by the slope at each number, read off the result y: linear, and its own transpose."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, y: Tensor, clamp: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.clamp = clamp
        return torch.ops.splatgan.lrelu_clamp_grad(triton_ops.dense(grad, y), y, LRELU_SLOPE, clamp)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return _LreluClampGrad.apply(grad, y, ctx.clamp), None, None


class _Blur(torch.autograd.Function):
    """Blurs; the filter is symmetric, so the transpose is a blur too, with the complementary padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: int) -> Tensor:
        ctx.padding = padding
        return _fir(x, padding, stride=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Blur.apply(grad, 3 - ctx.padding), None


class _Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _fir(x, padding=1, stride=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _DownsampleTranspose.apply(grad)


class _DownsampleTranspose(torch.autograd.Function):
    """Transposes `_Downsample`; see `downsample_transpose_reference`."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        if triton_ops.usable(grad):
            return torch.ops.splatgan.fir_transpose(triton_ops.dense(grad))
        if native_ops.usable(grad):
            return native_ops.fir_transpose(grad)
        return downsample_transpose_reference(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Downsample.apply(grad)
