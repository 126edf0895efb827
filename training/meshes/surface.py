"""Finds the surface in a volume by marching cubes (Lorensen and Cline 1987; Lewiner et al. 2003), and sorts pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from training.meshes.lattice import Lattice


class NoSurfaceError(ValueError):
    """Is raised where a volume has no surface, with what it has instead."""


@dataclass(frozen=True)
class Mesh:
    """Holds triangles whose corners are counter-clockwise from outside."""

    vertices: np.ndarray  # [V, 3] float32, world units
    faces: np.ndarray  # [F, 3] int64, rows of `vertices`
    colors: np.ndarray | None = None  # [V, 3] float32 RGB in 0..1, as images have it (sRGB)

    def areas(self) -> np.ndarray:
        """Returns the area of every triangle [F], world units squared."""
        a, b, c = (self.vertices[self.faces[:, k]].astype(np.float64) for k in range(3))
        return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2

    def volume(self) -> float:
        """Returns the volume inside, world units cubed: positive for a closed surface that is wound outwards."""
        a, b, c = (self.vertices[self.faces[:, k]].astype(np.float64) for k in range(3))
        return float(np.einsum("fk,fk->", a, np.cross(b, c)) / 6)

    def normals(self) -> np.ndarray:
        """Returns outward unit normals of the vertices [V, 3]: the mean of those of their triangles, by area."""
        a, b, c = (self.vertices[self.faces[:, k]].astype(np.float64) for k in range(3))
        crosses = np.cross(b - a, c - a)
        total = np.zeros((len(self.vertices), 3))
        for k in range(3):
            for axis in range(3):
                total[:, axis] += np.bincount(self.faces[:, k], crosses[:, axis], len(total))
        lengths = np.linalg.norm(total, axis=1, keepdims=True)
        return (total / np.maximum(lengths, 1e-30)).astype(np.float32)

    def transformed(self, scale: float, translation: Sequence[float]) -> Self:
        """Returns the mesh at scale * x + translation. `scale` is positive."""
        moved = self.vertices.astype(np.float64) * scale + np.asarray(translation)
        return dataclasses.replace(self, vertices=moved.astype(np.float32))

    def largest(self, count: int) -> tuple[Self, int]:
        """Returns the mesh of the `count` connected pieces with the largest surface, and how many were left out."""
        corners = self.faces[:, [0, 1, 2]], self.faces[:, [1, 2, 0]]
        rows, columns = (side.ravel() for side in corners)
        graph = sparse.coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(len(self.vertices),) * 2)
        pieces, piece = connected_components(graph, directed=False)
        if pieces <= count:
            return self, 0
        areas = np.bincount(piece[self.faces[:, 0]], self.areas(), pieces)
        chosen = np.zeros(pieces, bool)
        chosen[np.argsort(-areas, kind="stable")[:count]] = True
        kept = chosen[piece]
        number = np.cumsum(kept) - 1
        faces = number[self.faces[kept[self.faces[:, 0]]]]
        colors = None if self.colors is None else self.colors[kept]
        return dataclasses.replace(self, vertices=self.vertices[kept], faces=faces, colors=colors), pieces - count


def marching_cubes(volume: np.ndarray, level: float, lattice: Lattice) -> tuple[Mesh, np.ndarray]:
    """Returns the surface about what is above `level`, closed at the faces of the cube, and its vertices' indices.

    volume: float32 [R, R, R] over the lattice. The indices [V, 3] are places in units of the lattice, from 0 to R - 1.
    Raises NoSurfaceError if no value is above the level.
    """
    from skimage import measure  # of the extra `mesh`

    low, high = float(volume.min()), float(volume.max())
    if level >= high:
        raise NoSurfaceError(f"values are {low:.4g} to {high:.4g}")
    shift = 0
    faces = (volume[0], volume[-1], volume[:, 0], volume[:, -1], volume[:, :, 0], volume[:, :, -1])
    if any(float(face.max()) >= level for face in faces):
        volume, shift = np.pad(volume, 1, constant_values=min(low, 2 * level - high)), 1
    # "ascent": corners are then counter-clockwise from where values are low.
    found, triangles, _, _ = measure.marching_cubes(volume, level, gradient_direction="ascent", allow_degenerate=False)
    indices = np.clip(found - shift, 0, lattice.resolution - 1)  # caps lie in the faces of the cube
    corner = np.asarray(lattice.centre) - lattice.half_width
    vertices = (indices.astype(np.float64) * lattice.spacing + corner).astype(np.float32)
    return Mesh(vertices, triangles.astype(np.int64)), indices
