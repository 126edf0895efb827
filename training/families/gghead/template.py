"""Makes templates of heads: surfaces with a position for every (u, v), on which the splats of GGHead start.

A template is a map of positions over R x R texels, with centres at (i + 1/2) / R and rows that grow with v, and a mask
of the texels that the surface covers. The head below is ours: a skull, a neck and sizes of general anthropometry, the
face towards +z and y up, 1 unit for 37 cm. The published templates derive from FLAME, whose licence keeps them at home.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BUILT_IN = ("head", "sphere", "plane")
MESH_SUFFIX = ".obj"
COVERED = 0.99  # of a sample's neighbourhood: below it the sample lies off the surface or on its edge
MAX_TRIANGLES = 1_000_000
# From FLAME's frame to that of EG3D's labels, as published: a scale of 2.68316, a turn of 1.6 degrees, a shift.
FLAME_TO_DATA = (
    (2.682716930, 0.010446918, 0.047466499, 0.003001496),
    (-0.009421599, 2.682515581, -0.057904669, 0.047409448),
    (-0.047680605, 0.057728574, 2.682112267, -0.002460552),
)
SPHERE_CENTRE, SPHERE_RADIUS = (0.0, 0.05, -0.12), 0.317
PLANE_HALF_WIDTH = 0.35


@dataclass(frozen=True)
class Template:
    """Holds a surface over the texels of a square map."""

    positions: Tensor  # [3, R, R] world units, 0 where nothing covers the texel
    mask: Tensor  # [R, R] bool, texels that the surface covers

    def sampled(self, samples: int) -> tuple[Tensor, Tensor]:
        """Returns positions [N, 3] and coordinates (u, v) in -1..1 [N, 2] of a regular grid on the surface.

        The grid has `samples` a side, from edge to edge; rows of equal v follow one another. Samples off the surface
        are left out. Between texels it is bilinear, and 0 outside of the map, so that its outermost ring is lost too.
        """
        line = torch.linspace(-1, 1, samples)
        v, u = torch.meshgrid(line, line, indexing="ij")
        grid = torch.stack([u, v], dim=-1)[None]  # [1, S, S, 2]
        maps = torch.cat([self.positions, self.mask[None].float()])[None]
        found = F.grid_sample(maps, grid, align_corners=False)[0].flatten(1).t()  # [S S, 4]
        kept = found[:, 3] > COVERED
        return found[kept, :3], grid.flatten(0, 2)[kept]


def make(name: str, size: int) -> Template:
    """Returns a template over size x size texels: "head", "sphere", "plane", or a mesh in FLAME's frame (*.obj).

    Raises ValueError for an unknown name, and for a file that cannot be read or has no (u, v).
    """
    if name in BUILT_IN:
        texel = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        v, u = torch.meshgrid(texel, texel, indexing="ij")
        surface = {"head": head_surface, "sphere": sphere_surface, "plane": plane_surface}[name]
        return Template(surface(u, v).movedim(-1, 0).float().contiguous(), torch.ones(size, size, dtype=torch.bool))
    if not name.lower().endswith(MESH_SUFFIX):
        raise ValueError(f"template {name!r} is unknown; legal are {', '.join(BUILT_IN)} and a file *{MESH_SUFFIX}")
    vertices, uvs, triangles, uv_triangles = read_obj(name)
    similarity = torch.tensor(FLAME_TO_DATA, dtype=torch.float64)
    return rasterize(vertices @ similarity[:, :3].t() + similarity[:, 3], uvs, triangles, uv_triangles, size)


# ---------------------------------------------------------------- surfaces of formulas


def head_surface(u: Tensor, v: Tensor) -> Tensor:
    """Returns points [..., 3] of the head at coordinates 0..1: the face in the middle, open at the back and below.

    The square maps to rays around +z, whose angle grows with the 1.25th power of the distance from the middle, up to
    150 degrees: the face gets the densest samples. A ray ends on an ellipsoid, the skull, or further out, below it, on
    an upright cylinder, the neck, that is cut off.
    """
    a, b = 2 * u - 1, 2 * v - 1
    distance = torch.maximum(a.abs(), b.abs())
    wide = a.abs() >= b.abs()
    ratio = torch.where(wide, b / torch.where(a == 0, 1, a), a / torch.where(b == 0, 1, b))
    around = torch.where(wide, math.pi / 4 * ratio, math.pi / 2 - math.pi / 4 * ratio)
    around = around + math.pi * (torch.where(wide, a, b) < 0)
    around = torch.where(distance == 0, 0, around)
    polar = math.radians(150) * distance**1.25
    x, y, z = polar.sin() * around.cos(), polar.sin() * around.sin(), polar.cos()
    skull = ((x / 0.215).square() + (y / 0.31).square() + (z / 0.265).square()).rsqrt()
    # (t x)^2 + (0.015 + t z)^2 = 0.155^2, for t > 0
    level = x.square() + z.square()
    half = 0.015 * z
    root = (half.square() + level * (0.155**2 - 0.015**2)).sqrt()
    neck = torch.where(level <= 1e-12, torch.inf, (root - half) / level.clamp_min(1e-12))
    cut = torch.where(y < 0, -0.535 / torch.where(y < 0, y, -1), torch.inf)
    length = torch.where(y < 0, torch.maximum(skull, torch.minimum(neck, cut)), skull)
    start = torch.tensor([0.0, 0.075, -0.085], dtype=u.dtype)
    return start + length[..., None] * torch.stack([x, y, z], dim=-1)


def sphere_surface(u: Tensor, v: Tensor) -> Tensor:
    """Returns points [..., 3] of a sphere at coordinates 0..1: longitude and latitude, +z in the middle."""
    longitude, latitude = 2 * math.pi * (u - 0.5), math.pi * (v - 0.5)
    out = [latitude.cos() * longitude.sin(), latitude.sin(), latitude.cos() * longitude.cos()]
    return torch.tensor(SPHERE_CENTRE, dtype=u.dtype) + SPHERE_RADIUS * torch.stack(out, dim=-1)


def plane_surface(u: Tensor, v: Tensor) -> Tensor:
    """Returns points [..., 3] at coordinates 0..1 of an upright square through the origin that faces +z."""
    return PLANE_HALF_WIDTH * torch.stack([2 * u - 1, 2 * v - 1, torch.zeros_like(u)], dim=-1)


# ---------------------------------------------------------------- meshes


def rasterize(
    vertices: Tensor,  # [P, 3] world units
    uvs: Tensor,  # [Q, 2] in 0..1
    triangles: Tensor,  # [T, 3] rows of `vertices`
    uv_triangles: Tensor,  # [T, 3] rows of `uvs`
    size: int,  # texels of an edge
) -> Template:
    """Draws a mesh into its (u, v) square, in float64. Where triangles overlap, the first one is on top."""
    corners = uvs.double()[uv_triangles].numpy()  # [T, 3, 2]
    points = vertices.double()[triangles].numpy()  # [T, 3, 3]
    positions = np.zeros((size, size, 3))
    mask = np.zeros((size, size), dtype=bool)
    edge_1, edge_2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = edge_1[:, 0] * edge_2[:, 1] - edge_1[:, 1] * edge_2[:, 0]  # [T]
    first = np.ceil(corners.min(1) * size - 0.5).clip(0, size).astype(int)
    last = np.floor(corners.max(1) * size - 0.5).clip(-1, size - 1).astype(int) + 1
    seen = (area != 0) & (last > first).all(1)
    for t in np.flatnonzero(seen):
        (left, top), (right, bottom) = first[t], last[t]
        du = (np.arange(left, right) + 0.5) / size - corners[t, 0, 0]
        dv = (np.arange(top, bottom) + 0.5)[:, None] / size - corners[t, 0, 1]
        second = (du * edge_2[t, 1] - dv * edge_2[t, 0]) / area[t]  # weight of corner 1, [rows, columns]
        third = (dv * edge_1[t, 0] - du * edge_1[t, 1]) / area[t]
        weights = np.stack([1 - second - third, second, third], axis=-1)
        window = (slice(top, bottom), slice(left, right))
        inside = (weights >= 0).all(-1) & ~mask[window]
        positions[window][inside] = weights[inside] @ points[t]
        mask[window] |= inside
    return Template(torch.from_numpy(positions).movedim(-1, 0).float().contiguous(), torch.from_numpy(mask))


def read_obj(path: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reads vertices [P, 3], (u, v) [Q, 2] and the triangles of both [T, 3] from a Wavefront file; polygons are fanned.

    Raises ValueError with the line number for what is no such mesh, and where a face has no (u, v).
    """
    vertices: list[list[float]] = []
    uvs: list[list[float]] = []
    faces: list[tuple[list[int], list[int]]] = []
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"template {path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        kind, *words = line.split() or [""]
        try:
            if kind == "v":
                vertices.append(_numbers(words, 3))
            elif kind == "vt":
                uvs.append(_numbers(words, 2))
            elif kind == "f":
                faces += _fan([word.split("/") for word in words], len(vertices), len(uvs))
        except ValueError as error:
            raise ValueError(f"template {path}, line {number}: {error}") from None
        if len(faces) > MAX_TRIANGLES:
            raise ValueError(f"template {path} has more than {MAX_TRIANGLES:,} triangles")
    if not faces:
        raise ValueError(f"template {path} holds no faces")
    coordinates = torch.tensor(uvs, dtype=torch.float64)
    if not bool(((coordinates >= 0) & (coordinates <= 1)).all()):
        raise ValueError(f"template {path} has (u, v) outside of 0..1")
    corners, uv_corners = (torch.tensor([face[i] for face in faces]) for i in range(2))
    return torch.tensor(vertices, dtype=torch.float64), coordinates, corners, uv_corners


def _numbers(words: Sequence[str], count: int) -> list[float]:
    values = [float(word) for word in words[:count]]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(f"{count} finite numbers are wanted")
    return values


def _fan(corners: Sequence[Sequence[str]], vertices: int, uvs: int) -> list[tuple[list[int], list[int]]]:
    """Splits a face, a list of "vertex/uv" or "vertex/uv/normal", into triangles of rows."""
    if len(corners) < 3:
        raise ValueError("a face needs three corners or more")
    if any(len(corner) < 2 or not corner[1] for corner in corners):
        raise ValueError("a face without (u, v): the splats are laid out over them (write f v/vt v/vt v/vt)")
    rows = [(_row(corner[0], vertices), _row(corner[1], uvs)) for corner in corners]
    fans = [(rows[0], rows[i], rows[i + 1]) for i in range(1, len(rows) - 1)]
    return [([vertex for vertex, _ in fan], [uv for _, uv in fan]) for fan in fans]


def _row(word: str, count: int) -> int:
    """Returns the row of an entry, which counts from 1, or from the end if negative."""
    number = int(word)
    row = number - 1 if number > 0 else count + number
    if not 0 <= row < count or number == 0:
        raise ValueError(f"{word} is none of the {count} entries so far")
    return row


@functools.lru_cache(maxsize=8)
def anchors(name: str, size: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the positions of a template's texels [3, R, R], and of its samples: positions [N, 3], (u, v) [N, 2].

    Raises ValueError as `make` does, and where no sample lies on the surface.
    """
    with torch.device("cpu"):  # also where somebody builds a network without memory
        template = make(name, size)
        positions, uv = template.sampled(samples)
    if not len(positions):
        raise ValueError(f"template {name} covers none of {samples} x {samples} samples")
    return template.positions, positions, uv
