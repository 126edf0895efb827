"""Draws identities and camera angles of a synthetic set as functions of (seed, index).

Left and right are equally likely in every trait: mirroring leaves the distribution of heads as it is. NumPy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import ClassVar

import numpy as np

HEAD_RADIUS = 0.45  # world units; the published generators clamp positions to a box of +-0.5
HEAD_UNIT = 1.12  # world units per unit of the traits' lengths; a head then fills an FFHQ-like frame

_SKIN_TONES = np.array(
    [[0.96, 0.80, 0.70], [0.88, 0.67, 0.53], [0.73, 0.51, 0.37], [0.52, 0.33, 0.23], [0.33, 0.21, 0.16]]
)
_HAIR_COLOURS = np.array(
    [
        [0.07, 0.06, 0.06],
        [0.22, 0.13, 0.08],
        [0.41, 0.24, 0.12],
        [0.55, 0.22, 0.09],
        [0.82, 0.63, 0.30],
        [0.62, 0.62, 0.63],
    ]
)
_IRIS_COLOURS = np.array(
    [[0.22, 0.12, 0.06], [0.40, 0.26, 0.10], [0.20, 0.45, 0.25], [0.15, 0.40, 0.72], [0.40, 0.48, 0.52]]
)
_HAIR_STYLES = ("bald", "buzz", "short", "quiff", "bob", "long", "bun", "round")
_HAIR_WEIGHTS = (0.07, 0.12, 0.21, 0.12, 0.15, 0.17, 0.08, 0.08)

_IDENTITY_STREAM, _CAMERA_STREAM = 0, 1
_STANDARD_NORMAL = NormalDist()


class Draws:
    """Draws random numbers of one (seed, stream, index), from uniforms alone: NumPy may change its other samplers."""

    def __init__(self, seed: int, stream: int, index: int):
        sequence = np.random.SeedSequence(entropy=seed, spawn_key=(stream, index))
        self._uniforms = iter(np.random.Generator(np.random.Philox(sequence)).random(64).tolist())

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * next(self._uniforms)

    def normal(self, mean: float, std: float, limit: float = 2.0) -> float:
        """Draws a normal number truncated at `limit` standard deviations."""
        edge = _STANDARD_NORMAL.cdf(limit)
        return mean + std * _STANDARD_NORMAL.inv_cdf(self.uniform(1.0 - edge, edge))

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def choice(self, weights: Sequence[float]) -> int:
        return min(
            int(np.searchsorted(np.cumsum(weights), self.uniform() * sum(weights), side="right")), len(weights) - 1
        )

    def palette(self, colours: np.ndarray, jitter: float) -> np.ndarray:
        """Draws a colour [3] between two neighbours of the palette, lighter or darker by up to `jitter`."""
        at = self.uniform(0.0, len(colours) - 1.0)
        i = min(int(at), len(colours) - 2)
        return np.clip(
            (colours[i] + (at - i) * (colours[i + 1] - colours[i])) * self.uniform(1 - jitter, 1 + jitter), 0, 1
        )


@dataclass(frozen=True)
class Traits:
    """Holds the traits of an identity; lengths in HEAD_UNIT, angles in radians, colours RGB [3] in 0..1."""

    width: float  # half width of the cranium
    height: float  # half height of the cranium
    depth: float  # half depth of the cranium
    jaw_width: float  # half width of the jaw
    jaw_length: float  # half height of the jaw
    skin: np.ndarray  # colour
    blush: float  # strength of the cheeks' red, 0..1
    neck_width: float  # half width of the neck
    shoulder_width: float  # half width of the shoulders
    shirt: np.ndarray  # colour
    eye_height: float  # y of the eyes
    eye_spacing: float  # half the distance between the eyes
    eye_size: float  # half width of an eye
    eye_open: float  # share of the eyeball below the upper lid
    eye_tilt: float  # roll of the eyes, outer corners up
    iris: np.ndarray  # colour
    brow_tilt: float  # roll of the brows, outer ends up
    brow_height: float  # distance of the brows above the eyes
    brow_thickness: float  # half height of the brows
    nose_length: float  # half length of the bridge
    nose_width: float  # half width of the tip
    nose_reach: float  # how far the nose stands out of the face
    mouth_height: float  # y of the mouth
    mouth_width: float  # half width of the mouth
    mouth_thickness: float  # half height of the lips
    smile: float  # roll of the mouth's halves, corners up
    lips: np.ndarray  # colour
    ear_size: float  # half height of an ear
    hair_style: str  # one of _HAIR_STYLES
    hair: np.ndarray  # colour
    hair_volume: float  # 0..1
    hair_length: float  # 0..1
    hairline: float  # height of the hairline above its mean
    fringe: bool  # whether hair hangs into the forehead
    parting: float  # side of the parting, -1..1
    beard: bool


def sample_traits(seed: int, index: int) -> Traits:
    """Draws the identity of image `index` of the set `seed`."""
    d = Draws(seed, _IDENTITY_STREAM, index)
    skin = d.palette(_SKIN_TONES, 0.06)
    hue, tint = d.uniform(0.0, 6.0), d.uniform(0.35, 0.95)
    rainbow = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0)
    style = _HAIR_STYLES[d.choice(_HAIR_WEIGHTS)]
    return Traits(
        width=d.normal(0.148, 0.009),
        height=d.normal(0.185, 0.010),
        depth=d.normal(0.178, 0.008),
        jaw_width=d.normal(0.112, 0.010),
        jaw_length=d.normal(0.145, 0.012),
        skin=skin,
        blush=d.uniform(0.0, 0.25),
        neck_width=d.normal(0.075, 0.008),
        shoulder_width=d.normal(0.225, 0.016),
        shirt=np.clip(d.uniform(0.25, 0.9) * (1.0 - tint * (1.0 - rainbow)), 0.03, 1.0),
        eye_height=d.normal(0.012, 0.008),
        eye_spacing=d.normal(0.058, 0.004),
        eye_size=d.normal(0.0290, 0.0022),
        eye_open=d.uniform(0.62, 0.95),
        eye_tilt=d.normal(0.0, 0.10),
        iris=d.palette(_IRIS_COLOURS, 0.15),
        brow_tilt=d.normal(0.0, 0.10),
        brow_height=d.normal(0.041, 0.005),
        brow_thickness=d.uniform(0.0065, 0.0115),
        nose_length=d.normal(0.050, 0.006),
        nose_width=d.normal(0.021, 0.003),
        nose_reach=d.normal(0.026, 0.005),
        mouth_height=d.normal(-0.108, 0.007),
        mouth_width=d.normal(0.044, 0.006),
        mouth_thickness=d.uniform(0.010, 0.018),
        smile=d.normal(0.26, 0.14),
        lips=np.clip(skin * np.array([0.92, 0.55, 0.56]) + np.array([0.06, 0.0, 0.02]) * d.uniform(), 0.0, 1.0),
        ear_size=d.normal(0.042, 0.005),
        hair_style=style,
        hair=d.palette(_HAIR_COLOURS, 0.15),
        hair_volume=d.uniform(),
        hair_length=d.uniform(),
        hairline=d.normal(0.0, 0.020),
        fringe=d.chance(0.35),
        parting=d.uniform(-1.0, 1.0),
        beard=d.chance(0.35) and style in ("bald", "buzz", "short", "quiff"),
    )


@dataclass(frozen=True)
class CameraSpread:
    """Describes how the cameras of a synthetic set are drawn. The defaults are FFHQ's framing (EG3D's labels)."""

    yaw_std: float = 0.55  # radians; normal, truncated at two standard deviations, so within +-1.1
    pitch_std: float = 0.15  # radians; normal, truncated at two standard deviations
    roll_std: float = 0.0  # radians; normal, truncated at two standard deviations
    radius: float = 2.7  # world units from the origin, which every camera looks at
    focal: float = 4.2647  # in image widths
    cx: float = 0.5  # principal point in image widths
    cy: float = 0.5  # principal point in image heights
    ball: ClassVar[tuple[float, str]] = (HEAD_RADIUS, "head")  # radius about the origin, and what lies in it

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or (field.name not in ("cx", "cy") and value < 0.0):
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(f"{flag}={value}: a finite number, not negative, is legal")
        radius, what = self.ball
        if self.radius <= radius:
            raise ValueError(f"--radius={self.radius}: more than {radius} is legal (the {what} fills that ball)")
        if self.focal == 0.0 or self.pitch_std >= math.pi / 4:
            raise ValueError(
                f"--focal={self.focal}, --pitch-std={self.pitch_std}: more than 0 and less than pi/4 are legal"
            )

    def angles(self, seed: int, index: int) -> tuple[float, float, float]:
        """Draws yaw, pitch and roll in radians of the camera of image `index` of the set `seed`."""
        d = Draws(seed, _CAMERA_STREAM, index)
        return d.normal(0.0, self.yaw_std), d.normal(0.0, self.pitch_std), d.normal(0.0, self.roll_std)
