"""Builds and renders procedural heads: an identity is some twenty painted ellipsoids.

A head stands at the origin, y up, face towards +z, inside a ball of radius HEAD_RADIUS. Its light and its paint are
fixed in its own frame, so that a point has the same colour from every side: nothing is view-dependent. Imports no
torch, for the sake of the worker processes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.synthetic.raycast import EMPTY, Hits, Solids, cast, normalize, resolve_samples
from training.data.synthetic.traits import HEAD_UNIT, Traits, sample_traits

PLAIN, SKIN, EYE, LIPS = range(4)  # the ways to paint a solid

_LIGHT = np.array([0.0, 0.55, 0.83])  # unit, from above the brow; x = 0 keeps mirrored heads in the distribution
_AMBIENT = 0.42  # share of the colour that a point turned away from the light keeps

Vector = Sequence[float] | np.ndarray  # [3]
Ellipsoid = tuple[np.ndarray, np.ndarray]  # centre [3] and semi-axes [3], in HEAD_UNIT


@dataclass(frozen=True)
class Head:
    """Holds a head as P painted solids."""

    solids: Solids
    colours: np.ndarray  # [P, 3] RGB, 0..1, before light
    paints: np.ndarray  # [P] PLAIN, SKIN, EYE or LIPS
    smooth: np.ndarray  # indices of the face's solids, whose normals are blended into one surface
    traits: Traits  # what the head was built from

    def front(self, flat: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Returns z [K] of the foremost of the chosen solids [P] at each (x, y) [K, 2], world units; -inf for none."""
        to_unit = self.solids.to_unit()[chosen]  # [S, 3, 3]
        base = np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)
        start = np.einsum("sij,skj->ski", to_unit, base - self.solids.centres[chosen][:, None])
        ray = to_unit[:, :, 2]
        a = np.einsum("si,si->s", ray, ray)[:, None]
        b = np.einsum("ski,si->sk", start, ray)
        disc = b * b - a * (np.einsum("ski,ski->sk", start, start) - 1)
        return np.where(disc > 0, (-b + np.sqrt(np.maximum(disc, 0))) / a, -np.inf).max(0)


class _Sculptor:
    """Collects solids one by one."""

    def __init__(self) -> None:
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]] = []

    def add(
        self,
        centre: Vector,
        axes: Vector,
        colour: np.ndarray,
        paint: int = PLAIN,
        roll: float = 0.0,
        pitch: float = 0.0,
        cut: tuple[Vector, Vector] | None = None,
    ) -> int:
        """Adds an ellipsoid, lengths in HEAD_UNIT, and returns its index.

        roll: radians about z, counter-clockwise from the front; pitch: about x; cut: a plane's normal and its point.
        """
        cr, sr, cp, sp = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch)
        rotation = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]])
        rotation = rotation @ np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
        plane = np.zeros(4)
        if cut is not None:
            plane[:3] = np.asarray(cut[0], dtype=np.float64) / np.linalg.norm(cut[0])
            plane[3] = plane[:3] @ np.asarray(cut[1])
        self._rows.append(
            (np.array(centre, dtype=np.float64), np.array(axes, np.float64), rotation, plane, colour, paint)
        )
        return len(self._rows) - 1

    def finish(self) -> tuple[Solids, np.ndarray, np.ndarray]:
        centres, axes, rotations, planes, colours, paints = (
            np.array(column) for column in zip(*self._rows, strict=True)
        )
        planes[:, 3] *= HEAD_UNIT
        return Solids(HEAD_UNIT * centres, HEAD_UNIT * axes, rotations, planes), colours, paints


def build_head(traits: Traits) -> Head:
    """Builds the solids of an identity."""
    t, s = traits, _Sculptor()
    cranium = (np.array([0.0, 0.045, -0.02]), np.array([t.width, t.height, t.depth]))
    jaw = (np.array([0.0, -0.045, 0.035]), np.array([t.jaw_width, t.jaw_length, 0.120]))

    def face(x: float, y: float) -> float:
        """Returns z of the front of the face at (x, y)."""
        heights = []
        for centre, axes in (cranium, jaw):
            left = 1.0 - ((x - centre[0]) / axes[0]) ** 2 - ((y - centre[1]) / axes[1]) ** 2
            heights.append(centre[2] + axes[2] * math.sqrt(max(left, 0.0)))
        return max(heights)

    smooth = [s.add(*cranium, t.skin, SKIN), s.add(*jaw, t.skin, SKIN)]
    s.add((0, -0.23, -0.045), (t.neck_width, 0.14, 0.075), t.skin, SKIN)
    s.add((0, -0.290, -0.04), (t.shoulder_width, 0.070, 0.105), t.shirt)
    _add_features(s, t, face)
    _add_hair(s, t, cranium, jaw)
    solids, colours, paints = s.finish()
    return Head(solids, colours, paints, np.array(smooth), traits)


def _add_features(s: _Sculptor, t: Traits, face: Callable[[float, float], float]) -> None:
    brow_colour = 0.75 * t.hair + 0.10 * t.skin
    for side in (-1.0, 1.0):
        x, y = side * t.eye_spacing, t.eye_height
        size = t.eye_size
        s.add((x, y, face(x, y) - 0.012), (size, 0.72 * size, 0.85 * size), t.skin, EYE, roll=side * t.eye_tilt)
        y += t.brow_height
        s.add(
            (1.04 * x, y, face(x, y) - 0.006),
            (0.035, t.brow_thickness, 0.016),
            brow_colour,
            roll=side * t.brow_tilt,
        )
        x = side * (t.width - 0.002)
        s.add(
            (x, -0.005, -0.03),
            (0.016, t.ear_size, 0.62 * t.ear_size),
            t.skin * np.array([1.0, 0.92, 0.9]),
            SKIN,
            side * -0.15,
        )
        x = side * 0.45 * t.mouth_width
        tilt = side * t.smile
        axes = (0.62 * t.mouth_width, t.mouth_thickness, 0.020)
        s.add(
            (x, t.mouth_height + 0.4 * t.mouth_width * t.smile, face(x, t.mouth_height) - 0.010),
            axes,
            t.lips,
            LIPS,
            tilt,
        )
        x = side * 0.75 * t.nose_width  # nostril wing
        y = t.eye_height - 1.55 * t.nose_length
        s.add((x, y, face(0, y) + 0.2 * t.nose_reach), (0.6 * t.nose_width, 0.014, 0.018), t.skin, SKIN)
    y = t.eye_height - 0.85 * t.nose_length
    bridge = (0.72 * t.nose_width, t.nose_length, 0.55 * t.nose_reach + 0.008)
    s.add((0, y, face(0, y) + 0.10 * t.nose_reach), bridge, t.skin, SKIN, pitch=-0.22)
    y = t.eye_height - 1.45 * t.nose_length
    s.add((0, y, face(0, y) + 0.55 * t.nose_reach), (t.nose_width, 0.019, 0.020), t.skin, SKIN)


def _add_hair(s: _Sculptor, t: Traits, cranium: Ellipsoid, jaw: Ellipsoid) -> None:
    centre, axes = cranium
    if t.beard:
        normal, point = (0.0, 0.96, -0.28), (0.0, t.mouth_height + 0.012, 0.16)
        s.add(jaw[0], jaw[1] * (1.03 + 0.05 * t.hair_volume), 0.85 * t.hair, cut=(normal, point))
    if t.hair_style == "bald":
        return
    volume = {"buzz": 0.02, "short": 0.07, "quiff": 0.05, "bob": 0.09, "long": 0.08, "bun": 0.04, "round": 0.26}[
        t.hair_style
    ]
    grown = axes * (1.0 + volume * (0.7 + 0.6 * t.hair_volume))
    # The hairline: a plane that comes down behind the ears, so that the forehead and the temples stay free.
    line = np.array([0.06 * t.parting, centre[1] + 0.100 + t.hairline, 0.10])
    cap = centre + np.array([0.0, 0.012, -0.008])
    s.add(cap, grown, t.hair, cut=((0.25 * t.parting, -0.72, 0.69), line))
    if t.hair_style == "quiff":
        s.add(
            (0.03 * t.parting, centre[1] + 0.93 * axes[1], 0.06),
            (0.10, 0.045 + 0.02 * t.hair_volume, 0.085),
            t.hair,
            roll=0.2 * t.parting,
        )
    if t.hair_style in ("bob", "long"):
        drop = 0.13 + 0.06 * t.hair_length if t.hair_style == "bob" else 0.21 + 0.07 * t.hair_length
        y = 0.5 * (centre[1] + 0.10 - drop)
        mane = (grown[0] * 1.02 + 0.012 * t.hair_volume, 0.5 * (centre[1] + 0.10 + drop) + 0.03, 0.150)
        s.add((0, y, -0.055), mane, t.hair, cut=((0.0, -0.12, 1.0), (0.0, 0.0, 0.005 + 0.02 * t.hair_volume)))
    if t.hair_style == "bun":
        s.add((0, centre[1] + 0.17, -0.15), np.full(3, 0.06 + 0.02 * t.hair_volume), t.hair)
    if t.fringe and t.hair_style in ("short", "bob", "long", "round"):
        s.add(
            (0.035 * t.parting, centre[1] + 0.105, centre[2] + 0.70 * axes[2]),
            (0.8 * axes[0], 0.045, 0.062),
            t.hair,
            roll=0.35 * t.parting,
        )


def shade(head: Head, hits: Hits) -> np.ndarray:
    """Returns the colours [K, 3] of the covered samples: paint, then a soft light that is fixed in the head's frame."""
    owner = hits.owner[hits.owner != EMPTY]
    paint = head.paints[owner]
    colours = head.colours[owner]
    normals = hits.normals.copy()
    face = np.isin(owner, head.smooth)
    normals[face] = _blended_normals(head, hits.points[face])
    for kind, brush in ((SKIN, _paint_skin), (EYE, _paint_eyes), (LIPS, _paint_lips)):
        chosen = paint == kind
        colours[chosen] = brush(head.traits, colours[chosen], hits.points[chosen] / HEAD_UNIT, hits.local[chosen])
    wrapped = 0.5 + 0.5 * (normals @ _LIGHT)  # softer than Lambert's clamp: the back of the head keeps its shape, too
    return colours * (_AMBIENT + (1.08 - _AMBIENT) * wrapped)[:, None]


def _blended_normals(head: Head, points: np.ndarray) -> np.ndarray:
    """Returns the normals of the face as one surface: its ellipsoids' gradients, weighted by nearness."""
    normal = np.zeros_like(points)
    for to_unit, centre in zip(head.solids.to_unit()[head.smooth], head.solids.centres[head.smooth], strict=True):
        local = (points - centre) @ to_unit.T
        radius = np.sqrt(np.einsum("ki,ki->k", local, local))[:, None]
        normal += (np.exp((1.0 - radius) / 0.06) / radius) * (local @ to_unit)
    return normalize(normal)


def _spot(points: np.ndarray, centre: Vector, size: Vector) -> np.ndarray:
    """Returns a Gaussian spot [K, 1] in 0..1."""
    away = (points - np.asarray(centre)) / np.asarray(size)
    return np.exp(-np.einsum("ki,ki->k", away, away))[:, None]


def _paint_skin(t: Traits, colours: np.ndarray, points: np.ndarray, local: np.ndarray) -> np.ndarray:
    mirrored = np.column_stack([np.abs(points[:, 0]), points[:, 1:]])
    cheeks = _spot(mirrored, (0.075, -0.055, 0.12), (0.04, 0.035, 0.08))
    sockets = _spot(mirrored, (t.eye_spacing, t.eye_height + 0.008, 0.14), (0.042, 0.032, 0.08))
    under_chin = 1.0 / (1.0 + np.exp(np.minimum((points[:, 1:2] + 0.185) / 0.012, 50.0)))
    colours = colours * (1.0 - t.blush * cheeks * np.array([0.05, 0.45, 0.40]))
    return colours * (1.0 - 0.22 * sockets) * (1.0 - 0.30 * under_chin)


def _paint_eyes(t: Traits, colours: np.ndarray, points: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Paints white, iris and pupil as discs about the eye's own axis, under an upper lid of skin with a lash line."""
    across = local[:, :2] * np.array([1.0, 0.72])
    radius = np.linalg.norm(across, axis=1, keepdims=True)
    front = local[:, 2:] > 0.0
    out = np.full_like(colours, 0.95)
    out = np.where((radius < 0.52) & front, t.iris, out)
    out = np.where((radius < 0.24) & front, 0.04, out)
    lid = 2.0 * t.eye_open - 1.0
    height = local[:, 1:2]
    out = np.where(height > lid - 0.18, 0.25 * t.skin, out)
    return np.where((height > lid + 0.14) | (height < -0.88), 0.9 * t.skin, out)


def _paint_lips(t: Traits, colours: np.ndarray, points: np.ndarray, local: np.ndarray) -> np.ndarray:
    gap = np.exp(-((local[:, 1:2] / 0.22) ** 2))
    return colours * (1.0 - 0.55 * gap)


def render(
    seed: int, indices: Sequence[int], labels: np.ndarray, resolution: int, samples: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Renders heads `indices` of a set under labels [N, 25]: (image, mask, depth) each, as of `resolve_samples`."""
    results = []
    for i, label in zip(indices, labels, strict=True):
        head = build_head(sample_traits(seed, int(i)))
        hits = cast(head.solids, label[:16].reshape(4, 4), label[16:].reshape(3, 3), resolution, samples)
        results.append(resolve_samples(hits, shade(head, hits), resolution))
    return results


def write_pictures(
    folder: Path, seed: int, indices: Sequence[int], labels: np.ndarray, resolution: int, samples: int
) -> int:
    """Renders into folder/<resolution>/ and folder/mask/, which exist, and returns the number of images."""
    return save_pictures(folder, indices, render(seed, indices, labels, resolution, samples), resolution)


def save_pictures(
    folder: Path,
    indices: Sequence[int],
    results: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],  # of `render`
    resolution: int,
) -> int:
    """Writes images and masks into folder/<resolution>/ and folder/mask/, and returns the number of images."""
    for i, (image, mask, _) in zip(indices, results, strict=True):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(folder / str(resolution) / f"{i:05d}.png")
        Image.fromarray(mask[0]).save(folder / "mask" / f"{i:05d}.png")
    return len(indices)
