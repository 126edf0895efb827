"""Registers the fused image operations with PyTorch: one kernel each on CUDA, shapes alone on the meta device.

torch_utils/ops.py holds the mathematics, their derivatives and the twins, and asks `usable` first. As operators of
PyTorch they can be counted (benchmarks/counts.py) and compiled around. triton is imported at the first call on CUDA.

Environment: SPLATGAN_TRITON=0 leaves the twins in place.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_LIBRARY = torch.library.Library("splatgan", "DEF")
_LIBRARY.define("lrelu_clamp_(Tensor(a!) x, Tensor? bias, float slope, float clamp) -> ()")
_LIBRARY.define("lrelu_clamp_grad(Tensor grad, Tensor y, float slope, float clamp) -> Tensor")
_LIBRARY.define("fir(Tensor x, int padding, int stride) -> Tensor")
_LIBRARY.define("fir_transpose(Tensor x) -> Tensor")


@functools.cache
def reason() -> str:
    """Returns why there are no Triton kernels, "" if there are: triton comes with PyTorch's builds for CUDA."""
    if os.environ.get("SPLATGAN_TRITON", "1") == "0":
        return "switched off (SPLATGAN_TRITON=0)"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        _kernels()
    except Exception as error:  # of a triton that does not fit: reported, not swallowed
        return f"triton does not work here ({type(error).__name__}: {error})"
    return ""


def usable(x: Tensor) -> bool:
    """Tells whether x is worked on here. The meta device stands for a GPU with everything installed."""
    if x.dtype not in DTYPES:
        return False
    return x.device.type == "meta" or (x.device.type == "cuda" and reason() == "")


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("torch_utils.triton_kernels")


@functools.cache
def rounded(bound: float, dtype: torch.dtype) -> float:
    """Returns a bound as a tensor of that type holds it: only so does a clamped result show that it was clamped."""
    return float(torch.tensor(bound, dtype=dtype, device="cpu"))


def _like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns memory for a result, laid out as x."""
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def dense(x: Tensor, layout_of: Tensor | None = None) -> Tensor:
    """Returns x dense, contiguous or channels last, as it is or as another tensor is."""
    of = x if layout_of is None else layout_of
    if of.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def _lrelu_clamp_(x: Tensor, bias: Tensor | None, slope: float, clamp: float) -> None:
    _kernels().lrelu_clamp_(x, bias, slope, clamp)


def _lrelu_clamp_grad(grad: Tensor, y: Tensor, slope: float, clamp: float) -> Tensor:
    out = torch.empty_like(y)
    _kernels().lrelu_clamp_grad(grad, y, out, slope, clamp)
    return out


def _fir(x: Tensor, padding: int, stride: int) -> Tensor:
    y = _fir_meta(x, padding, stride)
    _kernels().fir(x, y, padding, stride)
    return y


def _fir_transpose(x: Tensor) -> Tensor:
    y = _fir_transpose_meta(x)
    _kernels().fir_transpose(x, y)
    return y


def _fir_meta(x: Tensor, padding: int, stride: int) -> Tensor:
    height, width = ((size + 2 * padding - 4) // stride + 1 for size in x.shape[2:])
    return _like(x, (*x.shape[:2], height, width))


def _fir_transpose_meta(x: Tensor) -> Tensor:
    return _like(x, (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))


def _on_its_device(launch: Any) -> Any:
    """Returns the launch with x's device as the current one, on which Triton launches."""

    @functools.wraps(launch)
    def call(x: Tensor, *args: Any) -> Any:
        if x.device.index == torch.cuda.current_device():
            return launch(x, *args)
        with torch.cuda.device(x.device):
            return launch(x, *args)

    return call


for _name, _launch, _meta in (
    ("lrelu_clamp_", _lrelu_clamp_, lambda x, bias, slope, clamp: None),
    ("lrelu_clamp_grad", _lrelu_clamp_grad, lambda grad, y, slope, clamp: torch.empty_like(y)),
    ("fir", _fir, _fir_meta),
    ("fir_transpose", _fir_transpose, _fir_transpose_meta),
):
    _LIBRARY.impl(_name, _on_its_device(_launch), "CUDA")
    _LIBRARY.impl(_name, _launch, "CPU")  # Triton's interpreter, for tests
    _LIBRARY.impl(_name, _meta, "Meta")
