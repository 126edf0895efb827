"""Ray-casts ellipsoids, each of which a plane may cut, analytically and independently of the rasteriser.

It shares with `gaussian/` only the camera convention (OpenCV axes, x right, y down, z forward; intrinsics normalised by
the image size; the centre of pixel (i, j) at ((i + 0.5) / W, (j + 0.5) / H)), so that a wrong sign in the rasteriser
cannot cancel out against the same sign here. NumPy only: the worker processes that run it import no torch.
"""

import functools
from dataclasses import dataclass

import numpy as np

EMPTY = -1  # owner of a sample that no solid covers


@dataclass(frozen=True)
class Solids:
    """Holds P solids: ellipsoids {c + R (a * q) : |q| <= 1}, without the part where normal . x > offset."""

    centres: np.ndarray  # [P, 3] world units
    axes: np.ndarray  # [P, 3] semi-axes, world units, positive
    rotations: np.ndarray  # [P, 3, 3] columns are the ellipsoid's own axes in the world
    planes: np.ndarray  # [P, 4] unit normal and offset of the cut; a zero normal cuts nothing

    def to_unit(self) -> np.ndarray:
        """Returns matrices L [P, 3, 3] with q = L (x - c): the ellipsoid is the unit sphere in q."""
        return np.swapaxes(self.rotations, -1, -2) / self.axes[:, :, None]


@dataclass(frozen=True)
class Hits:
    """Holds the first hits of one image's rays on a grid of S x S samples, S = resolution * samples."""

    z: np.ndarray  # [S, S] camera z of the hit, world units; inf where nothing is hit
    owner: np.ndarray  # [S, S] int16, which solid was hit, or EMPTY
    points: np.ndarray  # [K, 3] world position of the K covered samples, in the order of owner[owner != EMPTY]
    normals: np.ndarray  # [K, 3] outward unit normals of the covered samples
    local: np.ndarray  # [K, 3] position of the covered samples in the unit-sphere frame of their solid


def cast(solids: Solids, cam2world: np.ndarray, intrinsics: np.ndarray, resolution: int, samples: int) -> Hits:
    """Casts samples x samples rays a pixel, on a regular sub-grid, at the P solids.

    cam2world [4, 4], intrinsics [3, 3] (no skew). A ray is x = o + z R (u, v, 1), so its parameter is the camera z.
    In a solid's unit-sphere frame |a + z D (u, v, 1)|^2 = 1 is the quadratic A z^2 + 2 B z + C = 0 with A and B
    polynomials in (u, v): float64, since C is large for small, distant solids.
    """
    size = resolution * samples
    grid = (np.arange(size) + 0.5) / size
    u = (grid - intrinsics[0, 2]) / intrinsics[0, 0]  # [S]
    v = (grid - intrinsics[1, 2]) / intrinsics[1, 1]
    rotation, origin = cam2world[:3, :3].astype(np.float64), cam2world[:3, 3].astype(np.float64)
    to_unit = solids.to_unit()
    directions = to_unit @ rotation  # [P, 3, 3]: D
    starts = np.einsum("pij,pj->pi", to_unit, origin - solids.centres)  # [P, 3]: a
    boxes = _boxes(solids, rotation, origin, directions, starts, u, v)
    z = np.full((size, size), np.inf)
    owner = np.full((size, size), EMPTY, dtype=np.int16)
    for p, (x0, x1, y0, y1) in enumerate(boxes):
        if x0 < x1 and y0 < y1:
            window = (slice(y0, y1), slice(x0, x1))
            plane = solids.planes[p]
            cut = (plane[:3] @ rotation, plane[3] - plane[:3] @ origin) if plane[:3].any() else None
            near, hit = _entry(directions[p], starts[p], cut, u[None, x0:x1], v[y0:y1, None])
            hit &= near < z[window]
            np.copyto(z[window], near, where=hit)
            np.copyto(owner[window], p, where=hit)
    return _hits(solids, to_unit, rotation, origin, u, v, z, owner)


def _entry(
    direction: np.ndarray, start: np.ndarray, cut: tuple[np.ndarray, float] | None, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns camera z [h, w] where rays (u [1, w], v [h, 1]) enter one solid, and whether that is before the camera.

    direction [3, 3] and start [3] are D and a above; cut = (m, e) keeps the part z m . (u, v, 1) <= e, or is None.
    """
    gram, slope = direction.T @ direction, direction.T @ start
    a = (gram[0, 0] * u * u + 2 * gram[0, 2] * u + gram[2, 2]) + (gram[1, 1] * v * v + 2 * gram[1, 2] * v)
    a += (2 * gram[0, 1] * u) * v
    b = (slope[0] * u + slope[2]) + slope[1] * v
    disc = b * b - a * (start @ start - 1.0)
    hit = disc > 0.0
    root = np.sqrt(np.maximum(disc, 0.0))
    near = -(b + root) / a
    if cut is not None:
        m, e = cut
        rate = (m[0] * u + m[2]) + m[1] * v
        rate = np.where(np.abs(rate) < 1e-12, 1e-12, rate)
        wall = e / rate
        far = np.where(rate > 0.0, np.minimum((root - b) / a, wall), (root - b) / a)
        near = np.where(rate < 0.0, np.maximum(near, wall), near)
        hit &= near < far
    hit &= near > 0.0
    return near, hit


def _boxes(
    solids: Solids,
    rotation: np.ndarray,  # [3, 3] of cam2world
    origin: np.ndarray,  # [3] of the camera
    directions: np.ndarray,  # [P, 3, 3] D of `cast`
    starts: np.ndarray,  # [P, 3] a of `cast`
    u: np.ndarray,  # [S] ascending
    v: np.ndarray,  # [S]
) -> np.ndarray:
    """Returns windows (x0, x1, y0, y1) of the sample grid that hold each ellipsoid's outline, int [P, 4].

    The outline is the conic d^T Q d = 0 with Q = b b^T - C D^T D; a line l touches it where l^T Q^-1 l = 0. An
    ellipsoid that reaches the camera's plane gets the whole image.
    """
    slopes = np.einsum("pji,pj->pi", directions, starts)
    spare = np.einsum("pi,pi->p", starts, starts) - 1.0
    conics = slopes[:, :, None] * slopes[:, None, :] - spare[:, None, None] * (
        np.swapaxes(directions, -1, -2) @ directions
    )
    forward = rotation[:, 2]
    reach = np.linalg.norm(np.einsum("pij,i->pj", solids.rotations, forward) * solids.axes, axis=1)
    in_front = (solids.centres - origin) @ forward - reach > 1e-3
    conics[~in_front] = np.eye(3)
    dual = np.linalg.inv(conics)
    windows = []
    for k, axis in ((0, u), (1, v)):
        middle = dual[:, k, 2] / dual[:, 2, 2]
        half = np.sqrt(np.maximum(middle**2 - dual[:, k, k] / dual[:, 2, 2], 0.0))
        low = np.where(in_front, middle - half, -np.inf)
        high = np.where(in_front, middle + half, np.inf)
        windows += [np.searchsorted(axis, low), np.searchsorted(axis, high)]
    return np.stack(windows, axis=1)


def _hits(
    solids: Solids,
    to_unit: np.ndarray,  # [P, 3, 3]
    rotation: np.ndarray,  # [3, 3] of cam2world
    origin: np.ndarray,  # [3] of the camera
    u: np.ndarray,  # [S]
    v: np.ndarray,  # [S]
    z: np.ndarray,  # [S, S]
    owner: np.ndarray,  # [S, S]
) -> Hits:
    """Computes where the covered samples lie, with their normals; the arguments are those of `cast`."""
    rows, columns = np.nonzero(owner != EMPTY)
    which = owner[rows, columns]
    rays = np.stack([u[columns], v[rows], np.ones(len(rows))], axis=1)
    points = origin + (z[rows, columns, None] * rays) @ rotation.T
    local, outward = np.empty_like(points), np.empty_like(points)
    for p in np.unique(which):  # a matrix product per solid is faster than a gathered matrix per point
        own = np.nonzero(which == p)[0]
        q = (points[own] - solids.centres[p]) @ to_unit[p].T
        local[own], outward[own] = q, q @ to_unit[p]
    # Points on the cut lie inside the sphere by more than rounding; those on the sphere are at 1 to about 1e-12.
    on_cut = np.einsum("ki,ki->k", local, local) < 1.0 - 1e-6
    outward[on_cut] = solids.planes[which[on_cut], :3]
    return Hits(z, owner, points, normalize(outward), local)


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Returns unit vectors [K, 3]; uses einsum, since NumPy's reductions are slow over an axis of three."""
    return vectors / np.sqrt(np.einsum("ki,ki->k", vectors, vectors))[:, None]


def resolve_samples(hits: Hits, colours: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averages the samples of each pixel: image uint8 [3, R, R], mask uint8 [1, R, R], depth float32 [1, R, R].

    colours [K, 3] in 0..1 belong to the covered samples. The image is *not* premultiplied: a pixel has the mean colour
    of its covered samples, so that mask * image + (1 - mask) * background is the picture over any background; empty
    pixels are white. Depth is the mean camera z of the covered samples, and 0 where there are none.
    """
    samples = hits.z.shape[0] // resolution
    covered = hits.owner != EMPTY
    layers = np.zeros((5, *covered.shape))  # red, green, blue, z, one
    layers[:3, covered] = colours.T
    layers[3, covered] = hits.z[covered]
    layers[4, covered] = 1.0
    cells = layers.reshape(5, resolution, samples, resolution, samples)
    sums = functools.reduce(np.add, (cells[:, :, i, :, j] for i in range(samples) for j in range(samples)))
    count = sums[4:]
    means = sums[:4] / np.maximum(count, 1.0)
    image = np.where(count > 0, np.clip(means[:3], 0.0, 1.0), 1.0)
    image = np.rint(image * 255.0).astype(np.uint8)
    mask = np.rint(count * (255.0 / samples**2)).astype(np.uint8)
    return image, mask, means[3:].astype(np.float32)
