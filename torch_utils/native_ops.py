"""Runs the fused image operations on CPUs, in native code: `csrc/image_ops.cpp`, compiled on first use.

torch_utils/ops.py holds the mathematics, their derivatives and the twins, and asks `usable` first. Nothing here is
differentiable. Images are bfloat16 or float32; all sums are float32, rounded once.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from torch_utils import native

SOURCE = Path(__file__).parent / "csrc" / "image_ops.cpp"
FLAGS = (*native.DEFAULT_FLAGS, "-fno-math-errno", "-fno-trapping-math")
DTYPES = (torch.bfloat16, torch.float32)
LEAST_CHANNELS = 8  # below it rows of pixels are too short for vectors where the filter has a stride
PLAIN, ACTIVATE, MASK = 0, 1, 2  # Mode of image_ops.cpp


def available() -> bool:
    """Tells whether the library can be used; builds it at the first call."""
    return _load() is not None


def usable(x: Tensor) -> bool:
    """Tells whether x is worked on here: dense images [N, C, H, W] on the CPU, in channels last for good reason."""
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and x.ndim == 4
        and x.shape[1] >= LEAST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
        and available()
    )


def fir(
    x: Tensor,
    padding: int,
    stride: int = 1,
    *,
    activation: tuple[float, float] = (1.0, float("inf")),  # slope and clamp of a leaky ReLU
    activate: bool = False,  # apply it to x first; stride 1 alone
    mask: Tensor | None = None,  # multiply x by its derivative there first; stride 1 alone
    out_mask: Tensor | None = None,  # multiply the result by its derivative there; stride 1 alone
) -> Tensor:
    """Filters with the 4x4 filter: H becomes (H + 2 padding - 4) // stride + 1."""
    assert stride == 1 or not (activate or mask is not None or out_mask is not None)
    height, width = ((size + 2 * padding - 4) // stride + 1 for size in x.shape[2:])
    y = _empty(x, height, width)
    mode = ACTIVATE if activate else PLAIN if mask is None else MASK
    sizes = (ctypes.c_int64 * 6)(len(x), *x.shape[2:], x.shape[1], height, width)
    masks = (_address(mask, x.shape), _address(out_mask, y.shape))
    _library().image_ops_fir(
        x.data_ptr(), *masks, y.data_ptr(), _low(x), sizes, padding, stride, mode, *activation, torch.get_num_threads()
    )
    return y


def fir_transpose(x: Tensor, added: Tensor | None = None) -> Tensor:
    """Transposes the filter of stride 2 and padding 1, and adds `added` to the result: H becomes 2 H."""
    y = _empty(x, 2 * x.shape[2], 2 * x.shape[3])
    sizes = (ctypes.c_int64 * 4)(len(x), *x.shape[2:], x.shape[1])
    more = _address(added, y.shape)
    _library().image_ops_fir_transpose(x.data_ptr(), more, y.data_ptr(), _low(x), sizes, torch.get_num_threads())
    return y


def activate(x: Tensor, slope: float, clamp: float, added: Tensor) -> Tensor:
    """Applies leaky ReLU and clamp to +-clamp, then adds `added`."""
    y = torch.empty_like(x)
    _library().image_ops_activate(
        x.data_ptr(), _address(added, x.shape), y.data_ptr(), _low(x), x.numel(), slope, clamp, torch.get_num_threads()
    )
    return y


def activation_grad(grad: Tensor, by: Tensor, slope: float, clamp: float) -> Tensor:
    """Multiplies by the derivative of `activate` at `by`, the numbers before it."""
    y = torch.empty_like(grad)
    addresses = (grad.data_ptr(), _address(by, grad.shape), y.data_ptr())
    _library().image_ops_mask(*addresses, _low(grad), grad.numel(), slope, clamp, torch.get_num_threads())
    return y


def pixels(rgb: Tensor) -> Tensor:
    """Turns contiguous float32 images [N, 3, H, W] in 0..1 into uint8 in channels last; see `quantize_rgb`."""
    assert rgb.dtype == torch.float32 and rgb.shape[1] == 3 and rgb.is_contiguous()
    y = torch.empty(rgb.shape, dtype=torch.uint8, memory_format=torch.channels_last)
    size = rgb.shape[2] * rgb.shape[3]
    _library().image_ops_pixels(rgb.data_ptr(), y.data_ptr(), len(rgb), size, torch.get_num_threads())
    return y


def _empty(x: Tensor, height: int, width: int) -> Tensor:
    return torch.empty(
        (len(x), x.shape[1], height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )


def _low(x: Tensor) -> bool:
    assert x.dtype in DTYPES and x.is_contiguous(memory_format=torch.channels_last)
    return x.dtype == torch.bfloat16


def _address(x: Tensor | None, shape: torch.Size) -> int | None:
    """Returns where the numbers of an image of that shape lie, which goes with another in channels last."""
    if x is None:
        return None
    assert x.shape == shape and x.is_contiguous(memory_format=torch.channels_last)
    return x.data_ptr()


def _library() -> ctypes.CDLL:
    library = _load()
    assert library is not None
    return library


@functools.cache
def _load() -> ctypes.CDLL | None:
    try:
        library = native.load_library("image_ops", [SOURCE, native.POOL, native.NUMBERS], FLAGS)
    except native.BuildError:
        return None
    pointer, count, number, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    images = (pointer, pointer, pointer, pointer)
    signatures = {
        "use_openmp": (pointer,),
        "fir": (*images, whole, ctypes.POINTER(count), count, whole, whole, number, number, whole),
        "fir_transpose": (*images[:3], whole, ctypes.POINTER(count), whole),
        "activate": (*images[:3], whole, count, number, number, whole),
        "mask": (*images[:3], whole, count, number, number, whole),
        "pixels": (pointer, pointer, count, count, whole),
    }
    for name, types in signatures.items():
        function = getattr(library, f"image_ops_{name}")
        function.argtypes, function.restype = types, None
    library.image_ops_use_openmp(native.torch_openmp())
    return library
