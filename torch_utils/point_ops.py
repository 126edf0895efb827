"""Runs what stands between the matrix products of layers over very many points, in native code on CPUs.

`csrc/point_ops.cpp` and `csrc/edge_ops.cpp` are compiled on first use. Who calls holds the mathematics, the derivatives
and the twins, and asks `usable` first. Nothing here is differentiable. Numbers are bfloat16 or float32; all sums are
float32, rounded once.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from torch_utils import native

SOURCES = [Path(__file__).parent / "csrc" / name for name in ("point_ops.cpp", "edge_ops.cpp", "points.h")]
FLAGS = (*native.DEFAULT_FLAGS, "-fno-math-errno", "-fno-trapping-math")
DTYPES = (torch.bfloat16, torch.float32)
CHILDREN = 4  # of a parent
PAIRS, EDGES = CHILDREN * (CHILDREN - 1), CHILDREN**2  # edges among them: to others, which come first, and in all
MOST_NEIGHBOURS = 32  # of a point


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


def edge_sums(first: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Returns what the edges from sibling i to j see, for weights [12, R, C1] and for values [16, R, C2].

    That is lrelu(seen_j - seen_i + bias), but for i = j, and lrelu(other_j + own_i); edges are ordered as in the
    source. first: [4, R, C1 + 2 C2], seen, other and own of a point; bias: [C1].
    """
    _, rows, width = first.shape
    wider = (width - len(bias)) // 2
    weights, values = first.new_empty(PAIRS, rows, len(bias)), first.new_empty(EDGES, rows, wider)
    _call("edge_sums", first, _float(bias), weights, values, _sizes(rows, len(bias), wider), slope)
    return weights, values


def edge_sums_grad(
    weights: Tensor, g_weights: Tensor, values: Tensor, g_values: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `first` and, by rows [R, C1], of the bias, for results of `edge_sums` and theirs."""
    _, rows, narrower = weights.shape
    wider = values.shape[-1]
    g_first, g_bias = values.new_empty(CHILDREN, rows, narrower + 2 * wider), values.new_empty(rows, narrower)
    sizes = _sizes(rows, narrower, wider)
    _call("edge_sums_grad", weights, g_weights, values, g_values, g_first, g_bias, sizes, slope)
    return g_first, g_bias


def attend_(x: Tensor, bias: Tensor, alone: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    """Returns x + bias + sum_j softmax_j(scores) values for x [4 (i), R, C]; the softmax overwrites the scores.

    bias: [C]; scores, values: [16, R, C], where the scores of the edges from i to i, `alone` [C], are not read.
    """
    y = torch.empty_like(x)
    _call("attend", x, _float(bias), _float(alone), scores, values, y, _sizes(*x.shape[1:]))
    return y


def attend_grad(grad: Tensor, shares: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of scores [12, R, C] and values of `attend_`, whose softmax were `shares`."""
    g_scores, g_values = torch.empty_like(shares[:PAIRS]), torch.empty_like(values)
    _call("attend_grad", grad, shares, values, g_scores, g_values, _sizes(*grad.shape[1:]))
    return g_scores, g_values


def neighbour_sums(first: Tensor, rows: slice, index: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Returns what the edges of some rows to the `index`-th see: for weights [R, K, C1] and for values [R, K, C2].

    As `edge_sums`: lrelu(seen_j - seen_i + bias) and lrelu(other_j + own_i). first: [M, C1 + 2 C2]; index: [R, K].
    """
    wider = (first.shape[1] - len(bias)) // 2
    weights, values = first.new_empty(*index.shape, len(bias)), first.new_empty(*index.shape, wider)
    sizes = _sizes(rows.start, *index.shape, len(bias), wider)
    _call("neighbour_sums", first, index, _float(bias), weights, values, sizes, slope)
    return weights, values


def neighbour_sums_grad(
    g_first: Tensor, rows: slice, index: Tensor, weights: Tensor, g_weights: Tensor, values: Tensor, g_values: Tensor,
    slope: float,
) -> Tensor:  # fmt: skip
    """Adds the gradient of `first` to g_first (float32), and returns that of the bias by rows [R, C1]."""
    g_bias = weights.new_empty(len(index), weights.shape[-1])
    sizes = _sizes(rows.start, *index.shape, weights.shape[-1], values.shape[-1])
    _call("neighbour_sums_grad", weights, g_weights, values, g_values, index, g_first, g_bias, sizes, slope)
    return g_bias


def attend_all_(bias: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    """Returns bias + sum_k softmax_k(scores) values [R, C] for [R, K, C], and overwrites the scores with the softmax.

    K is up to MOST_NEIGHBOURS.
    """
    y = values.new_empty(len(values), values.shape[-1])
    _call("attend_all", scores, _float(bias), values, y, _sizes(*values.shape))
    return y


def attend_all_grad(grad: Tensor, shares: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of scores and values of `attend_all_`, whose softmax were `shares`."""
    g_scores, g_values = torch.empty_like(shares), torch.empty_like(values)
    _call("attend_all_grad", grad, shares, values, g_scores, g_values, _sizes(*values.shape))
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
    """Calls the function for the type of its first tensor; all are dense, biases and sums float32, an index int64."""
    arguments: list[object] = []
    for value in (first, *rest):
        if isinstance(value, Tensor):
            assert value.is_contiguous() and value.dtype in (first.dtype, torch.float32, torch.int64)
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
        library = native.load_library("point_ops", [*SOURCES, native.POOL, native.NUMBERS], FLAGS)
    except native.BuildError:
        return None
    pointer, count, number, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    signatures = {
        "gelu": (*[pointer] * 3, count, count, whole),
        "edge_sums": (*[pointer] * 4, ctypes.POINTER(count), number, whole),
        "edge_sums_grad": (*[pointer] * 6, ctypes.POINTER(count), number, whole),
        "attend": (*[pointer] * 6, ctypes.POINTER(count), whole),
        "attend_grad": (*[pointer] * 5, ctypes.POINTER(count), whole),
        "neighbour_sums": (*[pointer] * 5, ctypes.POINTER(count), number, whole),
        "neighbour_sums_grad": (*[pointer] * 7, ctypes.POINTER(count), number, whole),
        "attend_all": (*[pointer] * 4, ctypes.POINTER(count), whole),
        "attend_all_grad": (*[pointer] * 5, ctypes.POINTER(count), whole),
        "divide": (*[pointer] * 4, ctypes.POINTER(count), number, whole),
        "divide_grad": (*[pointer] * 5, ctypes.POINTER(count), number, whole),
    }
    for name, types in signatures.items():
        for suffix in ("float32", "bfloat16"):
            function = getattr(library, f"point_ops_{name}_{suffix}")
            function.argtypes, function.restype = types, None
    library.point_ops_use_openmp(native.torch_openmp())
    return library
