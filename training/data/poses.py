"""Draws cameras from a law, for image sets whose cameras nobody knows (pi-GAN, EpiGRAF).

Angles are the published codes': theta goes around, from world +x towards +z, so that pi/2 is frontal; phi comes down
from straight above, so that pi/2 is level. Cameras look at the origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussian import Cameras, Geometry
from gaussian.geometry import REFERENCE_HALF_EXTENT
from torch_utils import random
from torch_utils.random import Indices

LAWS = ("gaussian", "uniform", "spherical", "truncated_gaussian", "hybrid")
POLE = 1e-5  # radians from straight above or below at which phi ends
FIT, SPREAD_FIT = 0.1, 2.0  # share by which fields of view may differ, and factor by which spreads may
LEAST_SPREAD = 0.02  # radians; spreads below count as this much
TRIES, TRUNCATION = 4, 2.0  # normal numbers of which the first within so many spreads is an angle of a truncated law
WIDER = 2.0  # times the spread is the half-width of the even part of a hybrid law


@dataclass(frozen=True)
class PoseLaw:
    """Holds a law of cameras at one distance. Raises ValueError for values that make none.

    gaussian: mean + std times a normal number. uniform: even within mean +- std. spherical: theta likewise, and the
    cosine of phi even, so that spreads of pi and pi / 2 are even over the sphere. truncated_gaussian: of four normal
    numbers the first within two spreads, or the first of all if none is (4 in a million). hybrid: a coin makes a camera
    one of the gaussian law, or even within mean +- 2 std; the published codes throw it for all of a micro-batch.
    """

    name: str  # one of LAWS
    theta: tuple[float, float]  # mean and spread, radians
    phi: tuple[float, float]  # likewise
    fov: float  # degrees across the image

    def __post_init__(self) -> None:
        if self.name not in LAWS:
            raise ValueError(f"--pose={self.name}: legal are {', '.join(LAWS)}, and labels for those of the set")
        for way, (mean, spread) in (("h", self.theta), ("v", self.phi)):
            if not math.isfinite(mean):
                raise ValueError(f"--{way}-mean={mean}: must be finite")
            if not 0 <= spread < math.inf:
                raise ValueError(f"--{way}-stddev={spread}: must be finite and 0 or greater")
        if not -2 * math.pi <= self.theta[0] <= 2 * math.pi:
            raise ValueError(f"--pose: theta {self.theta[0]:g} is out of range; legal are -2 pi to 2 pi radians")
        if not 0 <= self.phi[0] <= math.pi:
            raise ValueError(f"--pose: phi {self.phi[0]:g} is out of range; legal are 0 to pi radians, pi / 2 is level")
        if not 0 < self.fov < 180:
            raise ValueError(f"--fov={self.fov:g}: must be greater than 0 and less than 180 degrees")

    @property
    def geometry(self) -> Geometry:
        """What its cameras have in common, in model units: what they see of the origin's plane has the usual width."""
        focal = 1 / (2 * math.tan(math.radians(self.fov) / 2))
        return Geometry(
            pivot=(0.0, 0.0, 0.0),
            centre=(0.0, 0.0, 0.0),
            radius=2 * focal * REFERENCE_HALF_EXTENT,
            intrinsics=((focal, 0.0, 0.5), (0.0, focal, 0.5), (0.0, 0.0, 1.0)),
        )

    def offsets(self, seed: int, stream: str, indices: Indices) -> Tensor:
        """Draws how far theta and phi are from their means, in spreads [len(indices), 2] of float64.

        Each is a function of (seed, stream, index).
        """
        stream = f"{stream}/pose"
        if self.name == "gaussian":
            return random.normal(seed, stream, indices, (2,)).double()
        if self.name == "truncated_gaussian":
            return truncated(random.normal(seed, stream, indices, (2, TRIES)).double())
        if self.name == "hybrid":
            even = random.uniform(seed, stream, indices, (3,)).double()
            return hybrid(even[:, :1], even[:, 1:], random.normal(seed, f"{stream}/normal", indices, (2,)).double())
        return 2 * random.uniform(seed, stream, indices, (2,)).double() - 1

    def angles(self, around: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Returns theta and phi of `offsets` of any shape, one for each."""
        theta, phi = self.theta[0] + self.theta[1] * around, self.phi[0] + self.phi[1] * down
        if self.name == "spherical":
            phi = torch.arccos(1 - 2 * (phi / math.pi).clamp(POLE, 1 - POLE))
        return theta, phi.clamp(POLE, math.pi - POLE)

    def cameras(self, around: Tensor, down: Tensor) -> Cameras:
        """Returns cameras of the offsets' shape, in model units; offsets as for `angles`."""
        theta, phi = self.angles(around, down)
        return orbit(theta, phi, self.geometry.radius, around.new_tensor(self.geometry.intrinsics))

    def labels(self, seed: int, stream: str, indices: Indices) -> Tensor:
        """Draws labels [len(indices), 25], each a function of (seed, stream, index)."""
        return self.cameras(*self.offsets(seed, stream, indices).unbind(1)).labels.float()

    def contradiction(self, cameras: Cameras, geometry: Geometry) -> str | None:
        """Says in which way cameras that are known [N], of a set with that geometry, are not of this law; else None."""
        across = math.degrees(2 * math.atan(0.5 / geometry.intrinsics[0][0]))
        if abs(across / self.fov - 1) > FIT:
            return f"their field of view is {across:.3g} degrees, the law's {self.fov:.3g} (--fov)"
        theirs = dict(zip(("theta", "phi"), angles_of(cameras.positions, geometry.centre), strict=True))
        drawn = self.labels(0, "contradiction", range(4096))
        ours = dict(zip(("theta", "phi"), angles_of(Cameras.from_labels(drawn).positions), strict=True))
        for name in theirs:
            (mean, spread), (other, width) = (_moments(values) for values in (ours[name], theirs[name]))
            if abs(mean - other) > 2 * max(spread, width):
                return f"their mean {name} is {other:.3g}, the law's {mean:.3g} radians"
            if not 1 / SPREAD_FIT <= width / spread <= SPREAD_FIT:
                return f"their spread of {name} is {width:.3g}, the law's {spread:.3g} radians"
        return None


def truncated(draws: Tensor) -> Tensor:
    """Returns of normal numbers [..., TRIES] the first that is within TRUNCATION, or the first if none is: [...]."""
    first = (draws.abs() < TRUNCATION).byte().argmax(-1, keepdim=True)
    return draws.gather(-1, first)[..., 0]


def hybrid(coin: Tensor, even: Tensor, normal: Tensor) -> Tensor:
    """Returns offsets [..., 2]: normal ones, or where the coin [..., 1] in 0..1 is below a half, even ones in +- WIDER.

    even: [..., 2] uniform in 0..1.
    """
    return torch.where(coin < 0.5, WIDER * (2 * even - 1), normal)


def orbit(theta: Tensor, phi: Tensor, radius: float, intrinsics: Tensor) -> Cameras:
    """Returns cameras of the angles' shape at `radius` from the origin, which they look at; up is world +y."""
    way = torch.stack([phi.sin() * theta.cos(), phi.cos(), phi.sin() * theta.sin()], dim=-1)
    right = torch.stack([theta.sin(), torch.zeros_like(theta), -theta.cos()], dim=-1)
    down = torch.linalg.cross(-way, right)
    cam2world = way.new_zeros(*way.shape[:-1], 4, 4)
    cam2world[..., :3, :] = torch.stack([right, down, -way, radius * way], dim=-1)
    cam2world[..., 3, 3] = 1
    return Cameras(cam2world, intrinsics.to(way).expand(*way.shape[:-1], 3, 3))


def angles_of(positions: Tensor, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """Returns theta, from -pi/2 to 3 pi/2, and phi of positions [..., 3] about a centre."""
    x, y, z = (p - c for p, c in zip(positions.unbind(-1), centre, strict=True))
    return math.pi / 2 - torch.atan2(x, z), math.pi / 2 - torch.atan2(y, torch.hypot(x, z))


def _moments(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), max(float(values.std(correction=0)), LEAST_SPREAD)
