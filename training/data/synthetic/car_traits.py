"""Draws cars, and cameras over the upper hemisphere, as functions of (seed, index).

Left and right are alike in every car: mirroring leaves the distribution as it is. NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from training.data.synthetic.traits import CameraSpread, Draws

CAR_RADIUS = 0.29  # world units; every car lies inside of a ball of this radius about the origin
LOWEST_PITCH = math.radians(5)  # of the cameras, as in CARLA's set for pi-GAN: phi up to 85 degrees from above

_PAINTS = np.array(
    [
        [0.80, 0.80, 0.80], [0.55, 0.57, 0.60], [0.10, 0.10, 0.12], [0.70, 0.08, 0.08], [0.10, 0.22, 0.60],
        [0.08, 0.36, 0.20], [0.85, 0.62, 0.08], [0.80, 0.33, 0.06], [0.28, 0.60, 0.70], [0.42, 0.26, 0.16],
    ]
)  # fmt: skip
_CAR_STREAM, _CAMERA_STREAM = 3, 4  # of the random numbers; the heads have 0 to 2


@dataclass(frozen=True)
class Style:
    """Holds the lines of a kind of car: places along it in half lengths, front positive, heights in its own."""

    weight: float  # how often it is drawn
    windscreen: tuple[float, float]  # where the front of the cabin begins, at the belt and at the roof
    rear: tuple[float, float]  # where its back ends, likewise
    hood: float  # height of the nose
    belt: float  # height of the body
    height: float  # of the whole car, in half lengths
    windows: float = -1.0  # where the side windows end; panels are behind


STYLES = {
    "sedan": Style(0.28, (0.40, 0.10), (-0.72, -0.42), 0.50, 0.60, 0.62),
    "hatchback": Style(0.22, (0.48, 0.18), (-0.97, -0.74), 0.52, 0.60, 0.72),
    "suv": Style(0.18, (0.44, 0.22), (-0.97, -0.88), 0.55, 0.62, 0.78),
    "coupe": Style(0.12, (0.30, -0.04), (-0.86, -0.36), 0.48, 0.60, 0.54),
    "pickup": Style(0.10, (0.46, 0.24), (-0.10, -0.04), 0.56, 0.62, 0.72),
    "van": Style(0.10, (0.86, 0.62), (-0.98, -0.95), 0.46, 0.52, 0.84, windows=0.14),
}


@dataclass(frozen=True)
class CarTraits:
    """Holds the traits of a car; lengths in world units, colours RGB [3] in 0..1."""

    style: str  # one of STYLES
    length: float  # half
    width: float  # half
    height: float  # from the ground to the roof
    clearance: float  # of the body over the ground
    belt: float  # of the body's upper edge over the ground
    hood: float  # of the nose's upper edge over the ground
    windscreen: tuple[float, float]  # z where the cabin begins, at the belt and at the roof
    rear: tuple[float, float]  # z where it ends
    windows: float  # z where the side windows end
    tumblehome: float  # how far the roof's edge lies inside of the body's side
    wheel: float  # radius
    axles: tuple[float, float]  # z of the front and the rear axle
    paint: np.ndarray
    roof: np.ndarray
    rim: np.ndarray
    glass: np.ndarray
    lamp: float  # half height of the lamps
    stripe: float  # half width of a stripe over hood, roof and tail; 0: none
    stripe_paint: np.ndarray


def sample_car(seed: int, index: int) -> CarTraits:
    """Draws the car of image `index` of the set `seed`."""
    d = Draws(seed, _CAR_STREAM, index)
    name = list(STYLES)[d.choice([style.weight for style in STYLES.values()])]
    style = STYLES[name]
    length, width = d.normal(0.232, 0.006), d.normal(0.093, 0.003)
    height = length * style.height * d.normal(1.0, 0.035)
    wheel = d.normal(0.21, 0.012) * height if name != "van" else d.normal(0.17, 0.01) * height
    shift = d.normal(0.0, 0.03)
    paint = _paint(d)
    roof = _paint(d) if d.chance(0.12) else paint
    stripe = d.uniform(0.10, 0.25) * width if d.chance(0.15) else 0.0
    return CarTraits(
        style=name,
        length=length,
        width=width,
        height=height,
        clearance=d.normal(0.5, 0.06) * wheel,
        belt=height * (style.belt + d.normal(0.0, 0.012)),
        hood=height * (style.hood + d.normal(0.0, 0.02)),
        windscreen=(length * (style.windscreen[0] + shift), length * (style.windscreen[1] + shift)),
        rear=(length * style.rear[0], length * (style.rear[1] + d.normal(0.0, 0.015))),
        windows=length * style.windows,
        tumblehome=d.uniform(0.10, 0.24) * width,
        wheel=wheel,
        axles=(length * d.normal(0.62, 0.02), length * d.normal(-0.60, 0.02)),
        paint=paint,
        roof=roof,
        rim=np.full(3, d.uniform(0.35, 0.85)),
        glass=np.array([0.10, 0.13, 0.17]) * d.uniform(0.7, 1.5),
        lamp=d.uniform(0.045, 0.075) * height,
        stripe=stripe,
        stripe_paint=np.full(3, 0.92) if paint.mean() < 0.5 else np.full(3, 0.08),
    )


def _paint(d: Draws) -> np.ndarray:
    colour = _PAINTS[d.choice([1.0] * len(_PAINTS))]
    return np.clip(colour * d.uniform(0.85, 1.12) + d.uniform(-0.04, 0.04), 0.03, 0.88)


@dataclass(frozen=True)
class Hemisphere(CameraSpread):
    """Describes cameras that are even over the upper hemisphere, from LOWEST_PITCH up, as in pi-GAN's set of CARLA.

    The field of view is 30 degrees, as there. Raises ValueError for spreads, which there are none of.
    """

    yaw_std: float = 0.0
    pitch_std: float = 0.0
    radius: float = 1.1816  # what the cameras see of the origin's plane is as wide as FFHQ's cameras see
    focal: float = 1.8660
    ball: ClassVar[tuple[float, str]] = (CAR_RADIUS, "car")

    def __post_init__(self) -> None:
        for name in ("yaw_std", "pitch_std", "roll_std"):
            if getattr(self, name) != 0.0:
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{flag} does not go with --kind=cars, whose cameras are all over the upper hemisphere"
                )
        super().__post_init__()

    def angles(self, seed: int, index: int) -> tuple[float, float, float]:
        """Draws yaw, pitch and roll in radians of the camera of image `index`."""
        d = Draws(seed, _CAMERA_STREAM, index)
        return d.uniform(-math.pi, math.pi), math.asin(d.uniform(math.sin(LOWEST_PITCH), 1.0)), 0.0
