"""Builds and renders procedural cars: bodies, cabins, wheels and mirrors of convex solids, with painted details.

A car stands with its middle at the origin, y up, front towards +z, inside a ball of radius CAR_RADIUS. Its light and
its paint are fixed in its own frame, so that a point has the same colour from every side: nothing is view-dependent.
Front and rear differ: lamps, grille and windscreen here, red lamps there. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.synthetic.car_traits import CarTraits, sample_car
from training.data.synthetic.convex import ROUND, Convex, cast
from training.data.synthetic.heads import save_pictures
from training.data.synthetic.raycast import EMPTY, Hits, resolve_samples

BODY, CABIN, WHEEL, MIRROR = range(4)  # the ways to paint a solid

_LIGHT = np.array([0.0, 0.83, 0.55])  # unit, from above and before the car; x = 0 keeps mirrored cars alike
_AMBIENT = 0.40  # share of the colour that a point turned away from the light keeps
_TRIM, _TYRE = np.array([0.09, 0.09, 0.10]), np.array([0.06, 0.06, 0.065])
_HEADLAMP, _TAILLAMP = np.array([1.0, 0.97, 0.84]), np.array([0.78, 0.04, 0.05])
_PLATE = np.array([0.90, 0.90, 0.85])
_SIDES = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Car:
    """Holds a car as P painted solids."""

    solids: list[Convex]
    paints: np.ndarray  # [P] BODY, CABIN, WHEEL or MIRROR
    traits: CarTraits  # what the car was built from

    @property
    def ground(self) -> float:
        """The height y of the ground."""
        return -self.traits.height / 2


def build_car(traits: CarTraits) -> Car:
    """Builds the solids of a car."""
    t = traits
    ground = -t.height / 2
    solids = [_body(t, ground), _cabin(t, ground)]
    paints = [BODY, CABIN]
    for axle in t.axles:
        for side in (-1.0, 1.0):
            solids.append(_wheel(t, ground, axle, side))
            paints.append(WHEEL)
    for side in (-1.0, 1.0):
        middle = np.array([side * (t.width + 0.006), ground + t.belt + 0.012, t.windscreen[0] - 0.14 * t.length])
        solids.append(_ball(middle, np.array([0.014, 0.011, 0.009])))
        paints.append(MIRROR)
    return Car(solids, np.array(paints), t)


def prism(
    profile: np.ndarray,  # [K, 2] corners (z, y) of a convex outline, in order
    low: tuple[float, float],  # y and half width there,
    high: tuple[float, float],  # and above: sides lean from one to the other
    bevels: Sequence[tuple[float, float]] = (),  # normals (x, z) of upright planes that cut the corners, right side,
    cuts: Sequence[float] = (),  # and how far along them
) -> Convex:
    """Returns what lies within an outline that is pulled sideways. Planes are its edges', the sides', the bevels'."""
    ahead = np.roll(profile, -1, axis=0) - profile
    normals = np.stack([np.zeros(len(profile)), -ahead[:, 0], ahead[:, 1]], axis=1)  # x, y, z
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    middle = profile.mean(0)
    inwards = (normals[:, 2] * (middle - profile)[:, 0] + normals[:, 1] * (middle - profile)[:, 1]) > 0
    normals[inwards] *= -1
    planes = [np.append(n, n[2] * z + n[1] * y) for n, (z, y) in zip(normals, profile, strict=True)]
    for side in (-1.0, 1.0):
        lean = np.array([side * (high[0] - low[0]), low[1] - high[1], 0.0])
        lean /= np.linalg.norm(lean)
        planes.append(np.append(lean, lean @ np.array([side * low[1], low[0], 0.0])))
        for (x, z), cut in zip(bevels, cuts, strict=True):
            length = np.hypot(x, z)
            planes.append(np.array([side * x / length, 0.0, z / length, cut]))
    wide = max(low[1], high[1])
    ends = np.array(
        [[-wide, wide], [profile[:, 1].min(), profile[:, 1].max()], [profile[:, 0].min(), profile[:, 0].max()]]
    )
    return Convex(np.array(planes), _corners(ends), np.zeros(3), np.zeros((3, 3)))


def _corners(ends: np.ndarray) -> np.ndarray:
    """Returns the corners [8, 3] of a box from its ends [3, 2]."""
    return np.array([[ends[0, i], ends[1, j], ends[2, k]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])


def _body(t: CarTraits, ground: float) -> Convex:
    low, belt, nose = ground + t.clearance, ground + t.belt, ground + t.hood
    bumper = low + 0.38 * (nose - low)
    front, back = t.length, -t.length
    hood = t.windscreen[0] + 0.6 * (0.965 * front - t.windscreen[0])  # where it is a little above the straight line
    profile = np.array(
        [
            [0.93 * back, low], [0.94 * front, low], [front, low + 0.10 * (nose - low)], [front, bumper],
            [0.965 * front, nose], [hood, nose + 0.47 * (belt - nose)], [t.windscreen[0], belt],
            [0.965 * back, belt], [back, bumper], [back, low + 0.14 * (nose - low)],
        ]
    )  # fmt: skip
    reach = 0.90 * t.width * 0.6 + 0.985 * t.length * 0.8  # a corner's bevel runs through this point of the outline
    return prism(profile, (low, t.width), (belt, 0.94 * t.width), [(0.6, 0.8), (0.6, -0.8)], [reach, reach])


def _cabin(t: CarTraits, ground: float) -> Convex:
    belt, roof = ground + t.belt, ground + t.height
    drop = 0.10 * (roof - belt)  # of the roof's edges
    profile = np.array(
        [
            [t.rear[0], belt - 0.01], [t.windscreen[0], belt - 0.01], [t.windscreen[1] + 0.01, roof - drop],
            [t.windscreen[1] - 0.02, roof], [t.rear[1] + 0.02, roof], [t.rear[1] - 0.005, roof - drop],
        ]
    )  # fmt: skip
    return prism(profile, (belt, 0.925 * t.width), (roof, 0.925 * t.width - t.tumblehome))


def _wheel(t: CarTraits, ground: float, axle: float, side: float) -> Convex:
    outer, inner = t.width + 0.004, t.width - 0.034
    ends = sorted((side * outer, side * inner))
    planes = np.column_stack([_SIDES, [ends[1], -ends[0]]])
    centre = np.array([0.0, ground + t.wheel, axle])
    box = np.array([ends, centre[1] + t.wheel * np.array([-1, 1]), centre[2] + t.wheel * np.array([-1, 1])])
    return Convex(planes, _corners(box), centre, np.diag([0.0, 1 / t.wheel, 1 / t.wheel]))


def _ball(centre: np.ndarray, axes: np.ndarray) -> Convex:
    ends = np.stack([centre - axes, centre + axes], axis=1)
    return Convex(np.zeros((0, 4)), _corners(ends), centre, np.diag(1 / axes))


# ---------------------------------------------------------------- paint


def shade(car: Car, hits: Hits) -> np.ndarray:
    """Returns the colours [K, 3] of the covered samples: paint, then a soft light that is fixed in the car's frame."""
    kinds = car.paints[hits.owner[hits.owner != EMPTY]]
    colours = np.empty_like(hits.points)
    for kind, brush in ((BODY, _paint_body), (CABIN, _paint_cabin), (WHEEL, _paint_wheels), (MIRROR, _paint_mirrors)):
        chosen = kinds == kind
        colours[chosen] = brush(car, hits.points[chosen], hits.normals[chosen], hits.local[chosen, 0])
    wrapped = 0.5 + 0.5 * (hits.normals @ _LIGHT)
    return colours * (_AMBIENT + (1.12 - _AMBIENT) * wrapped)[:, None]


def _paint_body(car: Car, points: np.ndarray, normals: np.ndarray, faces: np.ndarray) -> np.ndarray:
    t, (x, y, z) = car.traits, points.T
    height, across = y - car.ground, np.abs(x) / t.width
    colours = np.tile(t.paint, (len(points), 1))
    top = normals[:, 1] > 0.3
    if t.stripe:
        colours[top & (np.abs(x) < t.stripe)] = t.stripe_paint
    if t.style == "pickup":  # the bed
        colours[top & (z < t.rear[0] - 0.02) & (z > -0.93 * t.length) & (across < 0.80)] = _TRIM
    side = np.abs(normals[:, 0]) > 0.8
    for door in (t.windscreen[0] - 0.10 * t.length, 0.0, t.axles[1] + 0.16 * t.length):
        colours[side & (np.abs(z - door) < 0.0022) & (height > 1.3 * t.clearance)] *= 0.45
    colours[height < t.clearance + 0.09 * t.height] = _TRIM
    _paint_ends(t, colours, np.where(np.abs(normals[:, 2]) > 0.4, np.sign(normals[:, 2]), 0), height, across)
    for axle in t.axles:
        arch = (z - axle) ** 2 + (height - t.wheel) ** 2 < (1.16 * t.wheel) ** 2
        colours[arch & (across > 0.80) & (normals[:, 1] < 0.5)] = _TYRE
    return colours


def _paint_ends(t: CarTraits, colours: np.ndarray, end: np.ndarray, height: np.ndarray, across: np.ndarray) -> None:
    """Paints lamps, grille and plates of the front (end 1) and the rear (end -1) into `colours`."""
    lamps = t.clearance + 0.70 * (t.hood - t.clearance)
    level = np.abs(height - lamps) < t.lamp
    colours[(end > 0) & (across < 0.50) & (np.abs(height - 0.94 * lamps) < 1.15 * t.lamp)] = _TRIM  # the grille
    colours[(end > 0) & level & (across > 0.56)] = _HEADLAMP
    high = t.style in ("van", "suv", "hatchback")
    tail = np.abs(height - lamps - (0.3 if high else 0.1) * t.lamp) < (1.5 if high else 0.9) * t.lamp
    colours[(end < 0) & tail & (across > (0.70 if high else 0.52))] = _TAILLAMP
    low = t.clearance + 0.36 * (t.hood - t.clearance)
    colours[(end != 0) & (across < 0.26) & (np.abs(height - low) < 0.55 * t.lamp)] = _PLATE


def _paint_cabin(car: Car, points: np.ndarray, normals: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Paints glass between pillars; what glass shows grows lighter upwards, as if it mirrored the sky."""
    t, (x, y, z) = car.traits, points.T
    share = (y - car.ground - t.belt) / (t.height - t.belt)  # 0 at the belt, 1 at the roof
    colours = np.tile(t.roof, (len(points), 1))
    if t.stripe:
        colours[(normals[:, 1] > 0.9) & (np.abs(x) < t.stripe)] = t.stripe_paint
    half = 0.925 * t.width - t.tumblehome * share
    front = t.windscreen[0] + (t.windscreen[1] - t.windscreen[0]) * share
    back = t.rear[0] + (t.rear[1] - t.rear[0]) * share
    between = (share > 0.08) & (share < 0.86)
    ends = np.abs(normals[:, 0]) < 0.5
    glass = between & ends & (np.abs(x) < half - 0.008) & (normals[:, 1] < 0.93)
    glass &= ~((t.style == "van") & (normals[:, 2] < 0) & (share < 0.35))  # its doors
    pillar = 0.028 * t.length
    post = np.abs(z - (0.02 * t.length if t.rear[0] < -0.3 * t.length else -t.length)) < 0.6 * pillar
    windows = between & ~ends & (z < front - 1.2 * pillar) & (z > np.maximum(back + 1.6 * pillar, t.windows)) & ~post
    shown = glass | windows
    colours[shown] = t.glass * (1.0 + 1.3 * share[shown, None]) + 0.05
    return colours


def _paint_wheels(car: Car, points: np.ndarray, normals: np.ndarray, faces: np.ndarray) -> np.ndarray:
    t, (_, y, z) = car.traits, points.T
    away = np.min([np.hypot(y - car.ground - t.wheel, z - axle) for axle in t.axles], axis=0) / t.wheel
    colours = np.tile(_TYRE, (len(points), 1))
    colours[(faces != ROUND) & (away < 0.64)] = t.rim
    colours[(faces != ROUND) & (away < 0.16)] = _TRIM
    return colours


def _paint_mirrors(car: Car, points: np.ndarray, normals: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return np.where(normals[:, 2:] < -0.5, car.traits.glass * 2.0, car.traits.paint)


# ---------------------------------------------------------------- pictures


def render(
    seed: int, indices: Sequence[int], labels: np.ndarray, resolution: int, samples: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Renders cars `indices` of a set under labels [N, 25]: (image, mask, depth) each, as of `resolve_samples`."""
    results = []
    for i, label in zip(indices, labels, strict=True):
        car = build_car(sample_car(seed, int(i)))
        hits = cast(car.solids, label[:16].reshape(4, 4), label[16:].reshape(3, 3), resolution, samples)
        results.append(resolve_samples(hits, shade(car, hits), resolution))
    return results


def write_pictures(
    folder: Path, seed: int, indices: Sequence[int], labels: np.ndarray, resolution: int, samples: int
) -> int:
    """Renders into folder/<resolution>/ and folder/mask/, which exist, and returns the number of images."""
    return save_pictures(folder, indices, render(seed, indices, labels, resolution, samples), resolution)
