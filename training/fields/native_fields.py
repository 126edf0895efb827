"""Computes fields by native code on CPUs: reads planes, and runs points through small networks. `csrc/`, float32 only.

Both compute what PyTorch code beside them does (`triplanes.plane_features`, the decoders of the families, pi-GAN's
layers), which is the slow twin, and what runs where there is no compiler. PyTorch's own kernel has the features of a
texel far apart and waits for memory at each; and between its layers every number goes to memory and back.

Derivatives are first ones, and none are by points. The bits depend neither on the number of threads nor on a scene's
place in its batch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils import native

SOURCE_DIR = Path(__file__).parent / "csrc"
FLAGS = (*native.DEFAULT_FLAGS, "-fno-math-errno", "-fno-trapping-math")
ACTIVATIONS = {"sine": 0, "lrelu": 1}  # Activation of network.cpp
SLOPE = 0.2  # of a leaky ReLU

Pointer, Int = ctypes.c_void_p, ctypes.c_int32


class Layer(NamedTuple):
    """Holds a layer of a network; S is the number of scenes, or 1 where all have the same."""

    weights: Tensor  # [S, in, out]
    bias: Tensor  # [S, out]
    shown: Tensor | None = None  # [S, out, C] what its outputs add to the results


def available() -> bool:
    """Tells whether the library can be used; builds it at the first call."""
    return _load() is not None


def usable(points: Tensor, *parameters: Tensor) -> bool:
    """Tells whether fields of these parameters are computed here at points [B, P, 3]."""
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in (points, *parameters))
        and not (points.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
        and available()
    )


def read_planes(planes: Tensor, points: Tensor, axes: Sequence[tuple[int, int]], align_corners: bool) -> Tensor:
    """Computes `triplanes.plane_features`."""
    numbers = tuple(axis for pair in axes for axis in pair)
    features: Tensor = _ReadPlanes.apply(planes, points, numbers, align_corners)
    return features


def run(
    x: Tensor,  # [B, P, in]
    layers: Sequence[Layer],
    bias: Tensor,  # [S, C] of the results
    activation: str,  # after every layer, one of ACTIVATIONS
    extra: Tensor | None = None,  # [B, P, E] that the last layer reads after what the one before makes
) -> Tensor:
    """Returns bias + the sum over layers of y shown, where y is activation(y' weights + bias): [B, P, C].

    Differentiable in everything but `extra`.
    """
    parts = [part for layer in layers for part in layer if part is not None] + [bias]
    numbers = torch.cat([part.flatten(1) for part in parts], dim=1)  # [S, N]
    form = _Form(
        tuple(layer.bias.shape[1] for layer in layers),
        tuple(layer.shown is not None for layer in layers),
        bias.shape[1],
        activation,
    )
    result: Tensor = _Run.apply(x, numbers, extra, form)
    return result


class _Form(NamedTuple):
    widths: tuple[int, ...]  # of the layers
    shown: tuple[bool, ...]  # whether each adds to the results
    outputs: int
    activation: str


class _Planes(ctypes.Structure):
    """Mirrors the struct Problem of planes.cpp."""

    _fields_ = [
        *((name, Int) for name in ("scenes", "points", "size", "features", "align", "threads")),
        ("axes", Int * 6),
    ]


class _Network(ctypes.Structure):
    """Mirrors the struct Problem of network.cpp."""

    _fields_ = [
        *((name, Int) for name in ("scenes", "points", "inputs", "outputs", "layers", "extras", "activation")),
        *((name, Int) for name in ("shared", "threads")),
        ("slope", ctypes.c_float),
        *((name, ctypes.POINTER(Int)) for name in ("width", "shown")),
        ("size", ctypes.c_int64),
        *((name, Pointer) for name in ("x", "extra", "numbers")),
    ]


class _ReadPlanes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: Tensor, points: Tensor, axes: tuple[int, ...], align_corners: bool) -> Tensor:
        scenes, _, features, size, _ = planes.shape
        texels = planes.detach().permute(0, 1, 3, 4, 2).contiguous()
        points = points.detach().contiguous()
        ctx.problem = _Planes(
            scenes, points.shape[1], size, features, align_corners, torch.get_num_threads(), (Int * 6)(*axes)
        )
        ctx.save_for_backward(points)
        out = points.new_empty(scenes, points.shape[1], features)
        _library().fields_read_planes(ctx.problem, texels.data_ptr(), points.data_ptr(), out.data_ptr())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (points,) = ctx.saved_tensors
        problem, upstream = ctx.problem, upstream.contiguous()
        problem.threads = torch.get_num_threads()
        gradient = points.new_zeros(problem.scenes, 3, problem.size, problem.size, problem.features)
        _library().fields_spread_planes(problem, upstream.data_ptr(), points.data_ptr(), gradient.data_ptr())
        return gradient.permute(0, 1, 4, 2, 3), None, None, None


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor, extra: Tensor | None, form: _Form) -> Tensor:
        x, numbers = x.detach().contiguous(), numbers.detach().contiguous()
        extra = None if extra is None else extra.detach().contiguous()
        ctx.save_for_backward(x, numbers, extra)
        ctx.form = form
        out = x.new_empty(*x.shape[:2], form.outputs)
        _check(_library().fields_run(_problem(x, numbers, extra, form), out.data_ptr()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, numbers, extra = ctx.saved_tensors
        upstream = upstream.contiguous()
        of_numbers, of_x = torch.zeros_like(numbers), torch.empty_like(x) if ctx.needs_input_grad[0] else None
        addresses = upstream.data_ptr(), of_numbers.data_ptr(), None if of_x is None else of_x.data_ptr()
        _check(_library().fields_go_back(_problem(x, numbers, extra, ctx.form), *addresses))
        return of_x, of_numbers, None, None


def _problem(x: Tensor, numbers: Tensor, extra: Tensor | None, form: _Form) -> _Network:
    scenes, points, inputs = x.shape
    layers = len(form.widths)
    extras = 0 if extra is None else extra.shape[2]
    return _Network(
        scenes, points, inputs, form.outputs, layers, extras, ACTIVATIONS[form.activation], len(numbers) == 1,
        torch.get_num_threads(), SLOPE, (Int * layers)(*form.widths), (Int * layers)(*form.shown), numbers.shape[1],
        x.data_ptr(), None if extra is None else extra.data_ptr(), numbers.data_ptr(),
    )  # fmt: skip


def _check(status: int) -> None:
    if status:
        raise MemoryError("the layers of a field and their gradients do not fit into memory")


def _library() -> ctypes.CDLL:
    library = _load()
    assert library is not None
    return library


@functools.cache
def _load() -> ctypes.CDLL | None:
    """Returns the library, built at the first call; None where it cannot be."""
    sources = [*sorted(SOURCE_DIR.glob("*.cpp")), *sorted(SOURCE_DIR.glob("*.h")), native.POOL]
    try:
        library = native.load_library("fields", sources, FLAGS)
    except native.BuildError:
        return None
    planes, network = ctypes.POINTER(_Planes), ctypes.POINTER(_Network)
    signatures = {
        "use_openmp": ((Pointer,), None),
        "read_planes": ((planes, Pointer, Pointer, Pointer), None),
        "spread_planes": ((planes, Pointer, Pointer, Pointer), None),
        "run": ((network, Pointer), ctypes.c_int),
        "go_back": ((network, Pointer, Pointer, Pointer), ctypes.c_int),
    }
    for name, (types, result) in signatures.items():
        function = getattr(library, f"fields_{name}")
        function.argtypes, function.restype = types, result
    library.fields_use_openmp(native.torch_openmp())
    return library
