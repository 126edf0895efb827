"""Makes one pass over the images of operations that stand side by side in a discriminator's block, on CPUs.

There an operation costs the time in which its images come from memory and go back. The functions are compositions of
those of ops.py, which they fall back to, and are differentiable as often. Natively the numbers in between are not
rounded to the images' type.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_utils import native_ops, ops, triton_ops


def lrelu_clamp_add(x: Tensor, added: Tensor, clamp: float | None = None) -> Tensor:
    """Returns lrelu_clamp_(x) + added, and may overwrite both."""
    if native_ops.usable(x):
        return _LreluClampAdd.apply(x, added, _bound(clamp))
    return added.add_(ops.lrelu_clamp_(x, clamp))


def lrelu_clamp_blur(x: Tensor, clamp: float | None, padding: int) -> Tensor:
    """Returns blur(lrelu_clamp_(x), padding), and may overwrite x."""
    if native_ops.usable(x):
        return _LreluClampBlur.apply(x, _bound(clamp), padding)
    return ops.blur(ops.lrelu_clamp_(x, clamp), padding)


def with_downsample(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x and downsample(x), whose gradients are added where they meet."""
    if native_ops.usable(x) and not (x.shape[2] % 2 or x.shape[3] % 2):
        return _WithDownsample.apply(x)
    return x, ops.downsample(x)


def _bound(clamp: float | None) -> float:
    return math.inf if clamp is None else clamp


class _LreluClampAdd(torch.autograd.Function):
    """Computes `lrelu_clamp_add` in native code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor, clamp: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.clamp = clamp
        return native_ops.activate(x, ops.LRELU_SLOPE, clamp, triton_ops.dense(added, x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        return _LreluClampSlope.apply(grad, x, ctx.clamp), grad, None


class _LreluClampSlope(torch.autograd.Function):
    """Multiplies by the slope at x, the number before the activation: linear, and its own transpose."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, clamp: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.clamp = clamp
        return native_ops.activation_grad(triton_ops.dense(grad, x), x, ops.LRELU_SLOPE, clamp)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return _LreluClampSlope.apply(grad, x, ctx.clamp), None, None


class _LreluClampBlur(torch.autograd.Function):
    """Computes `lrelu_clamp_blur` in native code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clamp: float, padding: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = clamp, padding
        return native_ops.fir(x, padding, activation=(ops.LRELU_SLOPE, clamp), activate=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        clamp, padding = ctx.settings
        return _BlurThenSlope.apply(grad, x, clamp, 3 - padding), None, None


class _BlurThenSlope(torch.autograd.Function):
    """Blurs, then multiplies by the slope at x; the transpose does so in the other order."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, clamp: float, padding: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = clamp, padding
        return native_ops.fir(triton_ops.dense(grad, x), padding, activation=(ops.LRELU_SLOPE, clamp), out_mask=x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        clamp, padding = ctx.settings
        return _SlopeThenBlur.apply(grad, x, clamp, 3 - padding), None, None, None


class _SlopeThenBlur(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, clamp: float, padding: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = clamp, padding
        return native_ops.fir(triton_ops.dense(grad, x), padding, activation=(ops.LRELU_SLOPE, clamp), mask=x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        clamp, padding = ctx.settings
        return _BlurThenSlope.apply(grad, x, clamp, 3 - padding), None, None, None


class _WithDownsample(torch.autograd.Function):
    """Computes `with_downsample` in native code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, native_ops.fir(x, padding=1, stride=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, half_grad: Tensor) -> Tensor:
        return _DownsampleTransposeAdd.apply(half_grad, grad)


class _DownsampleTransposeAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: Tensor, whole: Tensor) -> Tensor:
        channels_last = torch.channels_last
        half, whole = (x.contiguous(memory_format=channels_last) for x in (half, whole))
        return native_ops.fir_transpose(half, whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return ops.downsample(grad), grad
