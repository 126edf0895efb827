"""Draws meshes on CPUs by native code, `csrc/mesh.cpp`: what `rasterize` computes with tensors, the slow twin.

The tensors ask the windows of all triangles at once, and most of their time goes into bringing corners together.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from torch_utils import native

SOURCE = Path(__file__).parent / "csrc" / "mesh.cpp"


class _Problem(ctypes.Structure):
    """Mirrors the struct Problem of mesh.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("meshes", "vertices", "triangles", "height", "width")),
        *((name, ctypes.c_float) for name in ("nearest", "rounding")),
    ]


def usable(xy: Tensor) -> bool:
    """Tells whether meshes at such places are drawn here; builds the library at the first call."""
    return xy.device.type == "cpu" and xy.dtype == torch.float32 and _load() is not None


def draw(
    xy: Tensor, z: Tensor, triangles: Tensor, size: tuple[int, int], nearest: float, rounding: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which triangle pixels show [B, H, W], -1 for none, weights of its corners [B, H, W, 3], and depth.

    xy: [B, V, 2] in pixels, the centre of the first being 0; z: [B, V] camera z; triangles: [F, 3] int64; size: height
    and width. nearest, rounding: NEAREST and ROUNDING of `rasterize`. Raises IndexError for a vertex that is not there.
    """
    batch, count, _ = xy.shape
    xy, z, triangles = xy.contiguous(), z.to(xy.dtype).contiguous(), triangles.long().contiguous()
    if len(triangles) and not 0 <= int(triangles.min()) <= int(triangles.max()) < count:
        raise IndexError(f"triangles must name vertices 0 to {count - 1}")
    owner = torch.empty(batch, *size, dtype=torch.int64)
    weights, depth = torch.empty(batch, *size, 3), torch.empty(batch, *size)
    problem = _Problem(batch, count, len(triangles), *size, nearest, rounding)
    library = _load()
    assert library is not None
    pointers = (tensor.data_ptr() for tensor in (xy, z, triangles, owner, weights, depth))
    library.mesh_draw(ctypes.byref(problem), *pointers)
    return owner, weights, depth


@functools.cache
def _load() -> ctypes.CDLL | None:
    """Returns the library, built at the first call; None where it cannot be."""
    try:
        library = native.load_library("mesh", [SOURCE])
    except native.BuildError:
        return None
    library.mesh_draw.argtypes = (ctypes.POINTER(_Problem), *[ctypes.c_void_p] * 6)
    library.mesh_draw.restype = None
    return library
