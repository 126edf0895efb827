"""Renders on CPUs with native code: `csrc/`, compiled on first use and called through ctypes and autograd.

The results are those of the PyTorch back end (`backend_torch`), its slow twin. One call renders the whole [B, V] batch
on `torch.get_num_threads()` threads; the output bits depend neither on the number of threads nor on a scene's place in
its batch. float32 only.
A scene rendered from anything that is NaN or infinite (the splats in use, colours, cameras, backgrounds) gives NaN in
all its images, and so do its gradients; the kernel looks at every number anyway, so this costs nothing.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gaussian.cameras import Cameras
from gaussian.gaussians import LOW_PASS, Gaussians
from torch_utils import native

SOURCE_DIR = Path(__file__).parent / "csrc"
FLAGS = (*native.DEFAULT_FLAGS, "-fno-math-errno", "-fno-trapping-math")
SH_SHARED, COLORS_SHARED, COLORS_PER_VIEW = 0, 1, 2  # ColorMode of types.h


class _Problem(ctypes.Structure):
    """Mirrors the struct Problem of types.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("scenes", "views", "splats", "channels", "height", "width")),
        *((name, ctypes.c_int32) for name in ("color_mode", "threads", "keep")),
        *((name, ctypes.c_float) for name in ("scale_modifier", "low_pass")),
        *((name, ctypes.c_void_p) for name in ("means", "log_scales", "quats", "logits", "colors")),
        *((name, ctypes.c_void_p) for name in ("background", "cam2world", "intrinsics")),
        *((name, ctypes.c_int64) for name in ("rows", "color_rows")),
        *((name, ctypes.c_void_p) for name in ("index", "color_index")),
    ]


class _Gradients(ctypes.Structure):
    """Mirrors the struct Gradients of types.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("rgb", "alpha", "depth")),
        *((name, ctypes.c_void_p) for name in ("means", "log_scales", "quats", "logits", "colors", "background")),
    ]


def available() -> bool:
    """Returns whether the library can be used; builds it at the first call."""
    return isinstance(_load(), ctypes.CDLL)


def reason() -> str:
    """Returns in one line why the back end is not available; empty if it is."""
    loaded = _load()
    return "" if isinstance(loaded, ctypes.CDLL) else loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """Returns the library, or the reason why it could not be built."""
    sources = [SOURCE_DIR / "splat.cpp", *sorted(SOURCE_DIR.glob("*.h")), native.POOL]
    try:
        library = native.load_library("splat", sources, FLAGS)
    except native.BuildError as error:
        return error.reason
    pointer = ctypes.c_void_p
    library.splat_forward.argtypes = [ctypes.POINTER(_Problem), pointer, pointer, pointer, ctypes.POINTER(ctypes.c_int)]
    library.splat_forward.restype = pointer
    library.splat_backward.argtypes = [pointer, ctypes.POINTER(_Problem), ctypes.POINTER(_Gradients)]
    library.splat_backward.restype = ctypes.c_int
    library.splat_state_bytes.argtypes = [pointer]
    library.splat_state_bytes.restype = ctypes.c_int64
    library.splat_release.argtypes = [pointer]
    library.splat_release.restype = None
    library.splat_use_openmp.argtypes = [pointer]
    library.splat_use_openmp.restype = None
    library.splat_use_openmp(native.torch_openmp())
    return library


def _library() -> ctypes.CDLL:
    loaded = _load()
    if isinstance(loaded, str):
        raise ValueError(f"the back end 'cpu' is not available: {loaded}")
    return loaded


def rasterize(
    scene: Gaussians,  # B scenes
    cameras: Cameras,  # [B, V]
    height: int,  # pixels
    width: int,
    background: Tensor,  # [B, V, C]
    colors: Tensor | None,  # [B, N, C] or [B, V, N, C], C <= 16; None is the scene's SH, C = 3
    scale_modifier: float,
    subset: slice | Tensor | None = None,  # the splats to draw: rows start:stop, or their numbers (int64)
    low_pass: float = LOW_PASS,  # square pixels
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rgb [B, V, C, H, W] over the background, alpha and depth [B, V, 1, H, W]; see `gaussian.render`.

    A subset of contiguous fields is read where it lies (view-dependent SH alone are selected first).
    Differentiable in the scene, the colours and the background, not in the cameras.
    Raises ValueError if the back end is not available, MemoryError if the splats' tile lists do not fit into memory.
    """
    mode, of_colors = SH_SHARED, subset
    if colors is not None:
        mode = COLORS_SHARED if colors.ndim == 3 else COLORS_PER_VIEW
    elif scene.sh_degree > 0:
        shown = scene if subset is None else scene.select(subset)
        colors, mode, of_colors = shown.colors(cameras.positions), COLORS_PER_VIEW, None
    else:
        colors = scene.sh[:, :, 0]
    fields = (scene.means, scene.log_scales, scene.quats, scene.opacity_logits, colors, background)
    settings = _Settings((height, width), mode, float(scale_modifier), float(low_pass), subset, of_colors)
    return _Rasterize.apply(*fields, *_matrices(cameras), settings)


class _Settings(NamedTuple):
    """Holds the arguments of a call that are not differentiable."""

    size: tuple[int, int]  # height and width of the image in pixels
    color_mode: int  # SH_SHARED, COLORS_SHARED or COLORS_PER_VIEW
    scale_modifier: float  # factor on the standard deviations
    low_pass: float  # square pixels
    subset: slice | Tensor | None  # rows of the splats' fields to draw; None draws all
    color_subset: slice | Tensor | None  # rows of the colours; None where they hold the subset's alone


def _matrices(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Returns cam2world [B, V, 4, 4] and intrinsics [B, V, 3, 3] as the kernel reads them: float32, contiguous."""
    return cameras.cam2world.detach().float().contiguous(), cameras.intrinsics.detach().float().contiguous()


class _State:
    """Owns the memory that a forward pass keeps for its backward, and frees it with the last reference."""

    def __init__(self, library: ctypes.CDLL, address: int) -> None:
        self.address = address
        self._bytes, self._release = library.splat_state_bytes, library.splat_release

    def bytes(self) -> int:
        """Returns its size in bytes: O(splats + pixels + (tile, splat) pairs)."""
        return int(self._bytes(self.address))

    def __del__(self) -> None:
        self._release(self.address)


def _start(subset: slice | Tensor | None) -> int:
    return subset.start if isinstance(subset, slice) else 0


def _count(subset: slice | Tensor | None, rows: int) -> int:
    if subset is None:
        return rows
    return subset.stop - subset.start if isinstance(subset, slice) else len(subset)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, cam2world, intrinsics, settings = arguments
        inputs = [t.detach().contiguous() for t in tensors]
        (means, *_, colors, background), (height, width) = inputs, settings.size
        scenes, views, channels = background.shape
        indices = [s.contiguous() if isinstance(s, Tensor) else None for s in (settings.subset, settings.color_subset)]
        starts = [_start(settings.subset)] * 4 + [_start(settings.color_subset), 0]
        keep = any(ctx.needs_input_grad)
        problem = _Problem(
            *(scenes, views, _count(settings.subset, means.shape[1]), channels, height, width),
            *(settings.color_mode, torch.get_num_threads(), keep, settings.scale_modifier, settings.low_pass),
            *(t.data_ptr() + start * t.shape[-1] * t.element_size() for t, start in zip(inputs, starts, strict=True)),
            *(cam2world.data_ptr(), intrinsics.data_ptr(), means.shape[1], colors.shape[-2]),
            *(None if index is None else index.data_ptr() for index in indices),
        )
        rgb = means.new_empty(scenes, views, channels, height, width)
        alpha, depth = (means.new_empty(scenes, views, 1, height, width) for _ in range(2))
        failed = ctypes.c_int()
        library = _library()
        address = library.splat_forward(problem, rgb.data_ptr(), alpha.data_ptr(), depth.data_ptr(), failed)
        if failed.value:
            raise MemoryError(f"rasterising {scenes} x {views} images of {problem.splats} splats ran out of memory")
        if keep:
            ctx.state, ctx.problem, ctx.settings = _State(library, address), problem, settings
            ctx.save_for_backward(*inputs, cam2world, intrinsics, *indices)
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, _, _, index, color_index = ctx.saved_tensors  # the problem points at all of them
        upstream, settings = tuple(g.contiguous() for g in upstream), ctx.settings
        outputs = [t.new_empty(t.shape[0], ctx.problem.splats, t.shape[2]) for t in inputs[:4]]
        colors = inputs[4]
        outputs += [colors.new_empty(*colors.shape[:-2], ctx.problem.splats, colors.shape[-1])]
        outputs += [torch.empty_like(inputs[5])]
        gradients = _Gradients(*(t.data_ptr() for t in (*upstream, *outputs)))
        ctx.problem.threads = torch.get_num_threads()
        if _library().splat_backward(ctx.state.address, ctx.problem, gradients):
            raise MemoryError("the backward of rasterising ran out of memory")
        for i, t in enumerate(inputs[:5]):
            subset, numbers = (settings.subset, index) if i < 4 else (settings.color_subset, color_index)
            outputs[i] = _spread(outputs[i], t, numbers if isinstance(subset, Tensor) else subset)
        return (*outputs, None, None, None)


def _spread(gradient: Tensor, field: Tensor, subset: slice | Tensor | None) -> Tensor:
    """Returns the gradient of a whole field [..., rows, C], given that of its subset [..., N, C]."""
    if subset is None:
        return gradient
    whole = torch.zeros_like(field)
    if isinstance(subset, slice):
        whole[..., subset, :] = gradient
        return whole
    return whole.index_add_(-2, subset, gradient)  # a splat may be drawn more than once
