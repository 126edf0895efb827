"""The native CPU back end: `csrc/` compiled on first use, bound through ctypes, differentiable through autograd.

Semantics are the PyTorch twin's (`backend_torch`). One call renders the whole [B, V] batch on `torch.get_num_threads()`
threads; the number of threads does not change a bit, nor does a scene's place in its batch. float32 only.
A scene that holds NaN or infinity renders to NaN, and so do its gradients.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gaussian.cameras import Cameras
from gaussian.gaussians import Gaussians
from torch_utils import native

SOURCE_DIR = Path(__file__).parent / "csrc"
FLAGS = (*native.DEFAULT_FLAGS, "-fno-math-errno", "-fno-trapping-math")
SH_SHARED, COLORS_SHARED, COLORS_PER_VIEW = 0, 1, 2  # ColorMode of types.h


class _Problem(ctypes.Structure):
    """Problem of types.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("scenes", "views", "splats", "channels", "height", "width")),
        *((name, ctypes.c_int32) for name in ("color_mode", "threads", "keep")),
        ("scale_modifier", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("means", "log_scales", "quats", "logits", "colors")),
        *((name, ctypes.c_void_p) for name in ("background", "cam2world", "intrinsics")),
    ]


class _Gradients(ctypes.Structure):
    """Gradients of types.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("rgb", "alpha", "depth")),
        *((name, ctypes.c_void_p) for name in ("means", "log_scales", "quats", "logits", "colors", "background")),
    ]


def available() -> bool:
    """Whether the library is there; builds it at the first call."""
    return isinstance(_load(), ctypes.CDLL)


def reason() -> str:
    """Why the back end is not available, in one line; empty if it is."""
    loaded = _load()
    return "" if isinstance(loaded, ctypes.CDLL) else loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    sources = [SOURCE_DIR / "splat.cpp", *sorted(SOURCE_DIR.glob("*.h"))]
    try:
        library = native.load_library("splat", sources, FLAGS)
    except native.BuildError as error:
        return error.reason
    pointer = ctypes.c_void_p
    library.splat_forward.argtypes = [ctypes.POINTER(_Problem), pointer, pointer, pointer, ctypes.POINTER(ctypes.c_int)]
    library.splat_forward.restype = pointer
    library.splat_backward.argtypes = [pointer, ctypes.POINTER(_Problem), ctypes.POINTER(_Gradients)]
    library.splat_backward.restype = ctypes.c_int
    library.splat_release.argtypes = [pointer]
    library.splat_release.restype = None
    library.splat_use_openmp.argtypes = [pointer]
    library.splat_use_openmp.restype = None
    library.splat_use_openmp(_torch_openmp())
    return library


def _torch_openmp() -> ctypes.c_void_p | None:
    """The entry point of the GNU OpenMP runtime that torch has loaded, if it is that one."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError):
        return None


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rgb [B, V, C, H, W] over the background, alpha and depth [B, V, 1, H, W]; see `gaussian.render`.

    Differentiable in the scene, the colours and the background, not in the cameras.
    Raises ValueError if the back end is not available, MemoryError if the splats' tile lists do not fit into memory.
    """
    mode = SH_SHARED
    if colors is not None:
        mode = COLORS_SHARED if colors.ndim == 3 else COLORS_PER_VIEW
    elif scene.sh_degree > 0:
        colors, mode = scene.colors(cameras.positions), COLORS_PER_VIEW
    else:
        colors = scene.sh[:, :, 0]
    fields = (scene.means, scene.log_scales, scene.quats, scene.opacity_logits, colors, background)
    return _Rasterize.apply(*fields, *_matrices(cameras), (height, width), mode, float(scale_modifier))


def _matrices(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """cam2world [B, V, 4, 4] and intrinsics [B, V, 3, 3] as the kernel reads them."""
    return cameras.cam2world.detach().float().contiguous(), cameras.intrinsics.detach().float().contiguous()


class _State:
    """What a forward kept for its backward; given back when nothing refers to it any more."""

    def __init__(self, library: ctypes.CDLL, address: int) -> None:
        self.address = address
        self._release = library.splat_release

    def __del__(self) -> None:
        self._release(self.address)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, cam2world, intrinsics, (height, width), mode, scale_modifier = arguments
        inputs = [t.detach().contiguous() for t in tensors]
        means, background = inputs[0], inputs[5]
        (scenes, views, channels), splats = background.shape, means.shape[1]
        keep = any(ctx.needs_input_grad)
        problem = _Problem(
            *(scenes, views, splats, channels, height, width, mode, torch.get_num_threads(), keep, scale_modifier),
            *(t.data_ptr() for t in (*inputs, cam2world, intrinsics)),
        )
        rgb = means.new_empty(scenes, views, channels, height, width)
        alpha, depth = (means.new_empty(scenes, views, 1, height, width) for _ in range(2))
        failed = ctypes.c_int()
        library = _library()
        address = library.splat_forward(problem, rgb.data_ptr(), alpha.data_ptr(), depth.data_ptr(), failed)
        if failed.value:
            raise MemoryError(f"rasterising {scenes} x {views} images of {splats} splats ran out of memory")
        if keep:
            ctx.state, ctx.problem = _State(library, address), problem
            ctx.save_for_backward(*inputs, cam2world, intrinsics)
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, _, _ = ctx.saved_tensors  # the problem points at all of them
        upstream = tuple(g.contiguous() for g in upstream)
        outputs = [torch.empty_like(t) for t in inputs]
        gradients = _Gradients(*(t.data_ptr() for t in (*upstream, *outputs)))
        ctx.problem.threads = torch.get_num_threads()
        if _library().splat_backward(ctx.state.address, ctx.problem, gradients):
            raise MemoryError("the backward of rasterising ran out of memory")
        return (*outputs, None, None, None, None, None)
