"""Ray-casts convex solids analytically: half-spaces, and a ball or cylinder, that have a part in common.

Like `raycast`, whose conventions it has, it shares nothing with `gaussian/`, and imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data.synthetic.raycast import EMPTY, Hits, normalize

ROUND = -1  # face of a solid that is its ball or cylinder; the others are the numbers of its planes
_PARALLEL = 1e-12  # slopes below count as this much: such a ray runs along the plane


@dataclass(frozen=True)
class Convex:
    """Holds one solid: points x with normal . x <= offset for all planes, and |shape (x - centre)| <= 1."""

    planes: np.ndarray  # [K, 4] unit normals and offsets
    corners: np.ndarray  # [8, 3] of a box that holds the solid, world units
    centre: np.ndarray  # [3] of the ball or cylinder
    shape: np.ndarray  # [3, 3]; rank 2 is a cylinder, 0 is neither


def cast(solids: list[Convex], cam2world: np.ndarray, intrinsics: np.ndarray, resolution: int, samples: int) -> Hits:
    """Casts samples x samples rays a pixel, on a regular sub-grid, at solids before the camera; see `raycast.cast`.

    The `local` of the result has in its first column the face of the solid that was hit, an index of its planes or
    ROUND, and zeros besides.
    """
    size = resolution * samples
    grid = (np.arange(size) + 0.5) / size
    u, v = ((grid - intrinsics[i, 2]) / intrinsics[i, i] for i in (0, 1))  # [S] each
    rotation, origin = cam2world[:3, :3].astype(np.float64), cam2world[:3, 3].astype(np.float64)
    z = np.full((size, size), np.inf)
    owner = np.full((size, size), EMPTY, dtype=np.int16)
    face = np.zeros((size, size), dtype=np.int16)
    for p, solid in enumerate(solids):
        x0, x1, y0, y1 = _window(solid, rotation, origin, u, v)
        if x0 < x1 and y0 < y1:
            window = (slice(y0, y1), slice(x0, x1))
            near, entered, hit = _entry(solid, rotation, origin, u[None, x0:x1], v[y0:y1, None])
            hit &= near < z[window]
            for target, value in ((z, near), (owner, p), (face, entered)):
                np.copyto(target[window], value, where=hit, casting="same_kind")
    return _hits(solids, rotation, origin, u, v, z, owner, face)


def _window(
    solid: Convex, rotation: np.ndarray, origin: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[int, int, int, int]:
    """Returns columns x0 to x1 and rows y0 to y1 of the samples that hold the solid's box; all if it is not ahead."""
    local = (solid.corners - origin) @ rotation
    if local[:, 2].min() <= 1e-3:
        return 0, len(u), 0, len(v)
    ends = []
    for k, axis in ((0, u), (1, v)):
        place = local[:, k] / local[:, 2]
        ends += [int(np.searchsorted(axis, place.min())), int(np.searchsorted(axis, place.max()))]
    return ends[0], ends[1], ends[2], ends[3]


def _entry(
    solid: Convex, rotation: np.ndarray, origin: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where rays (u [1, w], v [h, 1]) enter the solid, camera z [h, w], through which face, and whether.

    A ray is x = o + z R (u, v, 1). It is in a half-space up to or from the z at which it meets the plane; the solid is
    where the last that it comes into is before the first that it leaves.
    """
    near, far, face = _round(solid, rotation, origin, u, v)
    for k, plane in enumerate(solid.planes):
        m, e = plane[:3] @ rotation, plane[3] - plane[:3] @ origin
        rate = (m[0] * u + m[2]) + m[1] * v
        rate = np.where(np.abs(rate) < _PARALLEL, _PARALLEL, rate)
        wall = e / rate
        enters = (rate < 0.0) & (wall > near)
        np.copyto(near, wall, where=enters)
        np.copyto(face, k, where=enters)
        np.copyto(far, wall, where=(rate > 0.0) & (wall < far))
    return near, face, (near < far) & (near > 0.0)


def _round(
    solid: Convex, rotation: np.ndarray, origin: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where rays enter and leave the ball or cylinder, and ROUND: everywhere, where there is neither."""
    face = np.full((v.shape[0], u.shape[1]), ROUND, dtype=np.int16)
    if not solid.shape.any():
        return np.full(face.shape, -np.inf), np.full(face.shape, np.inf), face
    direction, start = solid.shape @ rotation, solid.shape @ (origin - solid.centre)
    d = direction[:, :1, None] * u + direction[:, 1:2, None] * v + direction[:, 2:, None]  # [3, h, w]
    a = np.maximum(np.einsum("khw,khw->hw", d, d), _PARALLEL)
    b, c = np.einsum("khw,k->hw", d, start), start @ start - 1.0
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0.0))
    inside = disc > 0.0
    return np.where(inside, (-b - root) / a, np.inf), np.where(inside, (root - b) / a, -np.inf), face


def _hits(
    solids: list[Convex],
    rotation: np.ndarray,  # [3, 3] of cam2world
    origin: np.ndarray,  # [3] of the camera
    u: np.ndarray,  # [S]
    v: np.ndarray,  # [S]
    z: np.ndarray,  # [S, S]
    owner: np.ndarray,  # [S, S]
    face: np.ndarray,  # [S, S]
) -> Hits:
    """Computes where the covered samples lie, with their normals; see `cast`."""
    rows, columns = np.nonzero(owner != EMPTY)
    which, faces = owner[rows, columns], face[rows, columns]
    rays = np.stack([u[columns], v[rows], np.ones(len(rows))], axis=1)
    points = origin + (z[rows, columns, None] * rays) @ rotation.T
    normals = np.zeros_like(points)
    for p in np.unique(which):
        solid, own = solids[p], np.nonzero(which == p)[0]
        outward = (points[own] - solid.centre) @ (solid.shape.T @ solid.shape)
        flat = faces[own] != ROUND
        outward[flat] = solid.planes[faces[own][flat], :3]
        normals[own] = normalize(outward)
    local = np.zeros_like(points)
    local[:, 0] = faces
    return Hits(z, owner, points, normals, local)
