"""Runs what stands between the matrix products of layers over very many points, in native code on CPUs.

`csrc/point_ops.cpp` is compiled on first use. Who calls holds the mathematics, the derivatives and the twins, and asks
`usable` first. Nothing here is differentiable. Numbers are bfloat16 or float32; all sums are float32, rounded once.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from torch_utils import native

SOURCE = Path(__file__).parent / "csrc" / "point_ops.cpp"
FLAGS = (*native.DEFAULT_FLAGS, "-fno-math-errno", "-fno-trapping-math")
DTYPES = (torch.bfloat16, torch.float32)
CHILDREN = 4  # of a parent


def available() -> bool:
    """Tells whether the library can be used; builds it at the first call."""
    return _load() is not None


def usable(x: Tensor) -> bool:
    """Tells whether x is worked on here: numbers of a legal type on the CPU, where the library is."""
    return x.device.type == "cpu" and x.dtype in DTYPES and not torch.compiler.is_compiling() and available()


def gelu_(z: Tensor, bias: Tensor) -> Tensor:
    """Returns GELU(z + bias) for z [rows, C] and bias [C], and overwrites z with the slope there."""
    hidden = torch.empty_like(z)
    _call("gelu", z, _float(bias), hidden, *z.shape)
    return hidden


def edge_sums(first: Tensor, narrower: int, slope: float) -> tuple[Tensor, Tensor]:
    """Returns lrelu(other end j + own i) for all pairs of siblings: [F, 4 (i), 4 (j), R, C1] and [..., C2].

    first: [F, 4, R, 2 (C1 + C2)], what stands for the other end before the own; narrower: C1.
    """
    families, _, rows, both = first.shape
    shape = (families, CHILDREN, CHILDREN, rows)
    weights, values = first.new_empty(*shape, narrower), first.new_empty(*shape, both // 2 - narrower)
    _call("edge_sums", first, weights, values, _sizes(families, rows, narrower, both // 2 - narrower), slope)
    return weights, values


def edge_sums_grad(weights: Tensor, g_weights: Tensor, values: Tensor, g_values: Tensor, slope: float) -> Tensor:
    """Returns the gradient of `first` for the results of `edge_sums` and their gradients."""
    families, _, _, rows, narrower = weights.shape
    wider = values.shape[-1]
    g_first = values.new_empty(families, CHILDREN, rows, 2 * (narrower + wider))
    sizes = _sizes(families, rows, narrower, wider)
    _call("edge_sums_grad", weights, g_weights, values, g_values, g_first, sizes, slope)
    return g_first


def attend_(x: Tensor, bias: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    """Returns x + bias + sum_j softmax_j(scores) values [N, R, C] for x, and overwrites the scores with the softmax.

    x: [N, R, C]; bias: [C]; scores, values: [N, 4 (j), R, C].
    """
    y = torch.empty_like(x)
    _call("attend", x, _float(bias), scores, values, y, _sizes(*x.shape))
    return y


def attend_grad(grad: Tensor, shares: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of scores and values of `attend_`, whose softmax were `shares`, for that of the result."""
    g_scores, g_values = torch.empty_like(shares), torch.empty_like(values)
    _call("attend_grad", grad, shares, values, g_scores, g_values, _sizes(*grad.shape))
    return g_scores, g_values


def divide(z: Tensor, bias: Tensor, shared: Tensor, slope: float) -> Tensor:
    """Returns children lrelu(z + bias) + shared [F, 4, R, C] for z [F, R, 4 C], bias [4 C] and shared [F, R, C]."""
    families, rows, width = shared.shape
    y = z.new_empty(families, CHILDREN, rows, width)
    _call("divide", z, _float(bias), shared, y, _sizes(families, rows, width), slope)
    return y


def divide_grad(grad: Tensor, z: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Returns the gradients of z and of `shared` of `divide` for that of the children."""
    families, _, rows, width = grad.shape
    g_z, g_shared = torch.empty_like(z), z.new_empty(families, rows, width)
    _call("divide_grad", grad, z, _float(bias), g_z, g_shared, _sizes(families, rows, width), slope)
    return g_z, g_shared


def _float(bias: Tensor) -> Tensor:
    return bias.to(torch.float32).contiguous()


def _sizes(*sizes: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _call(name: str, first: Tensor, *rest: Tensor | ctypes.Array[ctypes.c_int64] | int | float) -> None:
    """Calls the function for the type of its first tensor; all tensors are dense, biases float32."""
    arguments: list[object] = []
    for value in (first, *rest):
        if isinstance(value, Tensor):
            assert value.is_contiguous() and value.dtype in (first.dtype, torch.float32)
            arguments.append(value.data_ptr())
        else:
            arguments.append(value)
    library = _load()
    assert library is not None
    suffix = str(first.dtype).removeprefix("torch.")
    getattr(library, f"point_ops_{name}_{suffix}")(*arguments, torch.get_num_threads())


@functools.cache
def _load() -> ctypes.CDLL | None:
    try:
        library = native.load_library("point_ops", [SOURCE, native.POOL, native.NUMBERS], FLAGS)
    except native.BuildError:
        return None
    pointer, count, number, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    signatures = {
        "gelu": (*[pointer] * 3, count, count, whole),
        "edge_sums": (*[pointer] * 3, ctypes.POINTER(count), number, whole),
        "edge_sums_grad": (*[pointer] * 5, ctypes.POINTER(count), number, whole),
        "attend": (*[pointer] * 5, ctypes.POINTER(count), whole),
        "attend_grad": (*[pointer] * 5, ctypes.POINTER(count), whole),
        "divide": (*[pointer] * 4, ctypes.POINTER(count), number, whole),
        "divide_grad": (*[pointer] * 5, ctypes.POINTER(count), number, whole),
    }
    for name, types in signatures.items():
        for suffix in ("float32", "bfloat16"):
            function = getattr(library, f"point_ops_{name}_{suffix}")
            function.argtypes, function.restype = types, None
    library.point_ops_use_openmp(native.torch_openmp())
    return library
