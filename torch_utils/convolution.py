"""Convolves images [N, C, H, W] in any floating type and memory format, differentiable any number of times.

What it avoids: on CPUs bfloat16 kernels that wait for all threads, on GPUs PyTorch's double backward. R1 asks how the
gradient of the input depends on the weights; PyTorch answers with a convolution whose kernel is a whole image and whose
channels are the batch, which no library is fast at. It is the gradient of a weight, for which cuDNN has kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_PIXELS = 16  # pixels per output channel below which conv2d computes the weights' gradient by a matrix product
COLUMNS_LIMIT = 2**26  # numbers in the largest temporary of that matrix product


def conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """Convolves (cross-correlates) as PyTorch does: weight [O, C, k, k], bias [O]."""
    return F.conv2d(x, weight, bias, stride, padding)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """Computes conv2d_reference, by `_Conv2d` on GPUs and where oneDNN's bfloat16 gradient is slow."""
    pixels = len(x) * x.shape[2] * x.shape[3]
    few = x.dtype == torch.bfloat16 and (stride > 1 or pixels < FEW_PIXELS * len(weight))
    if x.device.type != "cpu" or few:
        return _Conv2d.apply(x, weight, bias, stride, padding)
    return conv2d_reference(x, weight, bias, stride, padding)


class _Conv2d(torch.autograd.Function):
    """Convolves. This class and the two below are linear in each argument and are one another's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (
            _Conv2dInput.apply(y, weight, x.shape, *ctx.geometry) if ctx.needs_input_grad[0] else None,
            _Conv2dWeight.apply(x, y, weight.shape, *ctx.geometry) if ctx.needs_input_grad[1] else None,
            y.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


class _Conv2dInput(torch.autograd.Function):
    """Computes the gradient of a convolution's input from that of its result, y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.geometry = stride, padding
        rest = [
            (size + 2 * padding - kernel) % stride for size, kernel in zip(shape[2:], weight.shape[2:], strict=True)
        ]
        return F.conv_transpose2d(y, weight, None, stride, padding, rest)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        y, weight = ctx.saved_tensors
        return (
            _Conv2d.apply(x, weight, None, *ctx.geometry) if ctx.needs_input_grad[0] else None,
            _Conv2dWeight.apply(x, y, weight.shape, *ctx.geometry) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


class _Conv2dWeight(torch.autograd.Function):
    """Computes the gradient of a convolution's weight from that of its result, y, on CPUs as one matrix product.

    oneDNN's bfloat16 kernel for strides and for wide layers on small images waits for all threads twice per image: as
    fast as this on an idle machine, but up to 100 times slower where the threads cannot all run at the same time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.geometry = stride, padding
        if x.device.type != "cpu":
            return _library_weight(x, y, shape, stride, padding)
        out_channels, channels, kernel, _ = shape
        pixels = x.permute(0, 2, 3, 1)  # [N, H, W, C]
        if padding:
            pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding))
        windows = pixels.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)  # [N,h,w,k,k,C]
        chunk = max(COLUMNS_LIMIT // windows[0].numel(), 1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = x.new_zeros(out_channels, kernel * kernel * channels, dtype=dtype)
        for part, values in zip(windows.split(chunk), y.permute(0, 2, 3, 1).split(chunk), strict=True):
            weight += values.flatten(0, 2).t() @ part.flatten(0, 2).flatten(1)  # [O, N h w] [N h w, k k C]
        weight = weight.to(x.dtype)
        return weight.view(-1, kernel, kernel, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        return (
            _Conv2dInput.apply(y, weight, x.shape, *ctx.geometry) if ctx.needs_input_grad[0] else None,
            _Conv2d.apply(x, weight, None, *ctx.geometry) if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


def _library_weight(x: Tensor, y: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
    """Computes the gradient of a convolution's weight from that of its result, y, by the library's kernel for it."""
    pair, only = [stride] * 2, [False, True, False]
    weight = x.new_empty(1).expand(shape)  # only its shape is read
    found: tuple[Tensor | None, Tensor, Tensor | None] = torch.ops.aten.convolution_backward(
        y, x, weight, None, pair, [padding] * 2, [1, 1], False, [0, 0], 1, only
    )
    return found[1]
