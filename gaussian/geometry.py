"""Measures what the cameras of a data set have in common (`Geometry`), and places cameras on orbits accordingly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian.cameras import Cameras

REFERENCE_HALF_EXTENT = 0.3166  # radius / (2 fx) of EG3D's FFHQ labels, the scale that the generators' constants fit
WORLD_SCALE_TOLERANCE = 0.1  # a world scale this close to 1 is taken as 1
SAME_DISTANCE_TOLERANCE = 0.01  # relative spread up to which cameras count as equally far from the world origin
PARALLEL_EIGENVALUE = 1e-6  # mean squared sine between the axes (0.06 degrees) below which they count as parallel


@dataclass(frozen=True)
class Geometry:
    """Describes what the cameras of a data set have in common, as plain floats; `measure` makes it.

    `measure` returns it in label units. `to_model_units` converts it to the units of cameras that went through
    `normalize`; generators, orbits and checkpoints use that one. `world_scale` and `origin` are the same in both.
    """

    pivot: tuple[float, float, float]  # least-squares point of all optical axes
    centre: tuple[float, float, float]  # world origin if all distances to it agree within 1 %, else the pivot
    radius: float  # median distance of the cameras to the centre
    intrinsics: tuple[tuple[float, ...], ...]  # 3x3, component-wise median, normalised by the image size
    world_scale: float = 1.0  # label units per model unit; 1 unless it is more than 10 % off
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the model's origin in label units

    def frontal(self) -> Cameras:
        """Returns one camera (leading shape []) at centre + radius (0, 0, 1), looking at the pivot."""
        return self.orbit(0.0)

    def orbit(self, yaw: Tensor | float, pitch: Tensor | float = 0.0) -> Cameras:
        """Returns cameras of yaw's and pitch's (broadcast) shape, `radius` from the centre, looking at the pivot.

        yaw, pitch: radians; positive yaw moves the camera towards world +x, positive pitch moves it up.
        """
        y = torch.as_tensor(yaw)
        if not y.is_floating_point():
            y = y.to(torch.get_default_dtype())
        y, p = torch.broadcast_tensors(y, torch.as_tensor(pitch).to(y))
        way = torch.stack([y.sin() * p.cos(), p.sin(), y.cos() * p.cos()], dim=-1)
        position = y.new_tensor(self.centre) + self.radius * way
        return Cameras.look_at(position, self.pivot, intrinsics=y.new_tensor(self.intrinsics))

    def normalize(self, cameras: Cameras) -> Cameras:
        """Converts cameras from label units to model units: subtracts the origin and divides by world_scale."""
        positions = cameras.positions
        return _with_positions(cameras, (positions - positions.new_tensor(self.origin)) / self.world_scale)

    def denormalize(self, cameras: Cameras) -> Cameras:
        """Converts cameras from model units to label units, the inverse of `normalize`."""
        positions = cameras.positions
        return _with_positions(cameras, positions * self.world_scale + positions.new_tensor(self.origin))

    def to_model_units(self) -> Geometry:
        """Returns the geometry of the normalised cameras; call it on what `measure` returned."""

        def moved(point: tuple[float, float, float]) -> tuple[float, float, float]:
            x, y, z = ((p - o) / self.world_scale for p, o in zip(point, self.origin, strict=True))
            return x, y, z

        return Geometry(
            pivot=moved(self.pivot),
            centre=moved(self.centre),
            radius=self.radius / self.world_scale,
            intrinsics=self.intrinsics,
            world_scale=self.world_scale,
            origin=self.origin,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns lists and floats that JSON can hold."""
        return {
            "pivot": list(self.pivot),
            "centre": list(self.centre),
            "radius": self.radius,
            "intrinsics": [list(row) for row in self.intrinsics],
            "world_scale": self.world_scale,
            "origin": list(self.origin),
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Geometry:
        return cls(
            pivot=_triple(d["pivot"]),
            centre=_triple(d["centre"]),
            radius=float(d["radius"]),
            intrinsics=tuple(_triple(row) for row in d["intrinsics"]),
            world_scale=float(d["world_scale"]),
            origin=_triple(d["origin"]),
        )


def measure(cameras: Cameras) -> Geometry:
    """Measures what cameras have in common, in their own world units.

    Where all optical axes are parallel, the pivot along them is open: the point nearest to the world origin is
    taken. Raises ValueError if there is no camera, or if every camera sits at the centre.
    """
    if math.prod(cameras.shape) == 0:
        raise ValueError("summary() needs at least one camera, got none")
    cameras = cameras.reshape(-1).to(device="cpu", dtype=torch.float64)
    positions = cameras.positions  # [N, 3]
    axes = F.normalize(cameras.cam2world[:, :3, 2], dim=-1)
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]  # projectors off the axes
    normal, moment = across.mean(0), (across @ positions[:, :, None]).mean(0)
    pivot = (torch.linalg.pinv(normal, rtol=PARALLEL_EIGENVALUE, hermitian=True) @ moment)[:, 0]

    distances = positions.norm(dim=-1)
    spread, typical = float(distances.max() - distances.min()), float(distances.median())
    around_origin = typical > 0 and spread <= SAME_DISTANCE_TOLERANCE * typical
    centre = torch.zeros(3, dtype=torch.float64) if around_origin else pivot
    radius = float((positions - centre).norm(dim=-1).quantile(0.5))
    intrinsics = cameras.intrinsics.flatten(1).quantile(0.5, dim=0).unflatten(0, (3, 3))
    if not radius > 0:
        raise ValueError("the cameras' median distance to their centre is 0: they have no common geometry")
    scale = radius / (2 * float(intrinsics[0, 0])) / REFERENCE_HALF_EXTENT
    world_scale = 1.0 if abs(scale - 1) <= WORLD_SCALE_TOLERANCE else scale
    return Geometry(
        pivot=_triple(pivot),
        centre=_triple(centre),
        radius=radius,
        intrinsics=tuple(_triple(row) for row in intrinsics),
        world_scale=world_scale,
        origin=(0.0, 0.0, 0.0) if world_scale == 1 else _triple(centre),
    )


def _triple(values: Tensor | Sequence[float]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _with_positions(cameras: Cameras, positions: Tensor) -> Cameras:
    cam2world = cameras.cam2world.clone()
    cam2world[..., :3, 3] = positions
    return Cameras(cam2world, cameras.intrinsics)
