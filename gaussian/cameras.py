"""`Cameras`, and `Geometry`: what a data set's cameras have in common.

Camera axes are OpenCV's (x right, y down, z forward), the world's y is up. Intrinsics are normalised by the image
size: u = fx x/z + cx runs from 0 at the left edge to 1 at the right, v = fy y/z + cy from 0 at the top to 1 at the
bottom. Pixel (column i, row j) has its centre at ((i + 0.5)/W, (j + 0.5)/H).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

LABEL_WIDTH = 25  # 4x4 cam2world and 3x3 intrinsics, both row-major
REFERENCE_HALF_EXTENT = 0.3166  # radius / (2 fx) of EG3D's FFHQ labels, the scale that the generators' constants fit
WORLD_SCALE_TOLERANCE = 0.1  # a world scale this close to 1 is taken as 1
SAME_DISTANCE_TOLERANCE = 0.01  # relative spread up to which cameras count as equally far from the world origin
PARALLEL_EIGENVALUE = 1e-6  # mean squared sine between the axes (0.06 degrees) below which they count as parallel

Vector = Tensor | Sequence[float]


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of any leading shape. Raises ValueError if the shapes do not fit."""

    cam2world: Tensor  # [..., 4, 4] rigid, camera axes in the columns
    intrinsics: Tensor  # [..., 3, 3] normalised by the image size

    def __post_init__(self) -> None:
        if tuple(self.cam2world.shape[-2:]) != (4, 4):
            raise ValueError(f"cam2world must have shape [..., 4, 4], got {list(self.cam2world.shape)}")
        expected = (*self.cam2world.shape[:-2], 3, 3)
        if tuple(self.intrinsics.shape) != expected:
            raise ValueError(f"intrinsics must have shape {list(expected)}, got {list(self.intrinsics.shape)}")

    @classmethod
    def from_labels(cls, labels: Tensor) -> Self:
        """Labels [..., 25] (cam2world, then intrinsics, row-major) as cameras of that leading shape."""
        if labels.shape[-1] != LABEL_WIDTH:
            raise ValueError(f"labels must have shape [..., {LABEL_WIDTH}], got {list(labels.shape)}")
        return cls(labels[..., :16].unflatten(-1, (4, 4)), labels[..., 16:].unflatten(-1, (3, 3)))

    @classmethod
    def look_at(cls, position: Vector, target: Vector, up: Vector = (0.0, 1.0, 0.0), *, intrinsics: Tensor) -> Self:
        """Cameras at `position` with `target` on the optical axis and no roll against `up`.

        position, target, up: [..., 3] world units, broadcast against each other; intrinsics: [..., 3, 3] or [3, 3].
        A camera that looks along `up` takes world z (world y if `up` is near z) in its place.
        """
        vectors = (torch.as_tensor(v, dtype=intrinsics.dtype, device=intrinsics.device) for v in (position, target, up))
        eye, goal, upward = torch.broadcast_tensors(*vectors)
        forward = F.normalize(goal - eye, dim=-1)
        right = torch.linalg.cross(forward, upward)
        use_z = upward[..., 2].abs() < 0.9
        spare = torch.stack([torch.zeros_like(use_z), ~use_z, use_z], dim=-1).to(upward)
        spare = spare * (forward * upward).sum(-1, keepdim=True).sign()
        along_up = right.norm(dim=-1, keepdim=True) < 1e-6
        right = F.normalize(torch.where(along_up, torch.linalg.cross(forward, spare), right), dim=-1)
        down = torch.linalg.cross(forward, right)
        cam2world = torch.zeros(*eye.shape[:-1], 4, 4, dtype=intrinsics.dtype, device=intrinsics.device)
        cam2world[..., :3, :] = torch.stack([right, down, forward, eye], dim=-1)
        cam2world[..., 3, 3] = 1
        return cls(cam2world, intrinsics.expand(*eye.shape[:-1], 3, 3))

    @property
    def labels(self) -> Tensor:
        """[..., 25], what `from_labels` reads."""
        return torch.cat([self.cam2world.flatten(-2), self.intrinsics.flatten(-2)], dim=-1)

    @property
    def shape(self) -> torch.Size:
        return self.cam2world.shape[:-2]

    @property
    def device(self) -> torch.device:
        return self.cam2world.device

    @property
    def dtype(self) -> torch.dtype:
        return self.cam2world.dtype

    @property
    def positions(self) -> Tensor:
        """[..., 3] world units."""
        return self.cam2world[..., :3, 3]

    @property
    def world2cam(self) -> Tensor:
        """[..., 4, 4], the inverse of a rigid cam2world."""
        rotation = self.cam2world[..., :3, :3].transpose(-1, -2)
        translation = -(rotation @ self.cam2world[..., :3, 3:])
        return torch.cat([torch.cat([rotation, translation], dim=-1), self.cam2world[..., 3:, :]], dim=-2)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single camera (leading shape []) has no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Self:
        """Indexes the leading shape, with whatever indexes a tensor."""
        return self.map(lambda t: t[index])

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Applies `fn`, which must keep the two trailing axes, to both matrices."""
        return type(self)(fn(self.cam2world), fn(self.intrinsics))

    def reshape(self, *shape: int) -> Self:
        """Another leading shape of the same number of cameras; one entry may be -1."""
        return self.map(lambda t: t.reshape(*shape, *t.shape[-2:]))

    def expand(self, *shape: int) -> Self:
        """The same cameras broadcast to a leading shape."""
        return self.map(lambda t: t.expand(*shape, *t.shape[-2:]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        return self.map(lambda t: t.to(device=device, dtype=dtype))

    def mirror(self) -> Self:
        """The cameras that see the world mirrored at x = 0 as these see it, with left and right of the image swapped.

        Pose F M F with F = diag(-1, 1, 1, 1); the principal point moves to 1 - cx and the skew changes sign.
        """
        flip = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=self.dtype, device=self.device)
        intrinsics = self.intrinsics.clone()
        intrinsics[..., 0, 1] = -self.intrinsics[..., 0, 1]
        intrinsics[..., 0, 2] = 1 - self.intrinsics[..., 0, 2]
        return type(self)(flip[:, None] * self.cam2world * flip, intrinsics)

    def crop(self, box: tuple[float, float, float, float]) -> Self:
        """The cameras of a part of their image (a resize alone changes nothing in normalised intrinsics).

        box: left, top, right, bottom in units of the image; may reach beyond 0..1, which pads.
        """
        left, top, right, bottom = box
        if not (right > left and bottom > top):
            raise ValueError(f"box must be (left, top, right, bottom) with left < right and top < bottom, got {box}")
        rows = [
            [1 / (right - left), 0.0, -left / (right - left)],
            [0.0, 1 / (bottom - top), -top / (bottom - top)],
            [0.0, 0.0, 1.0],
        ]
        return type(self)(self.cam2world, torch.tensor(rows, dtype=self.dtype, device=self.device) @ self.intrinsics)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points [..., P, 3] to image positions [..., P, 2] in units of the image, and camera z [..., P].

        The leading shapes broadcast. Positions mean something only where z > 0.
        """
        rotation, translation = self.world2cam[..., :3, :3], self.world2cam[..., None, :3, 3]
        local = points @ rotation.transpose(-1, -2) + translation  # [..., P, 3]
        z = local[..., 2]
        xy = (local @ self.intrinsics[..., :2, :].transpose(-1, -2)) / z[..., None]
        return xy, z

    def yaw_pitch(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Where the cameras stand as seen from the centre: yaw and pitch in radians, each of the leading shape.

        Yaw 0 is world +z and grows towards +x; pitch 0 is level and grows upwards. The inverse of `Geometry.orbit`.
        """
        x, y, z = (self.positions - self.positions.new_tensor(geometry.centre)).unbind(-1)
        return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))

    def summary(self) -> Geometry:
        """The geometry that these cameras share (see `Geometry`), in their own world units.

        Where all optical axes are parallel, the pivot along them is open: the point nearest to the world origin is
        taken. Raises ValueError if there is no camera, or if every camera sits at the centre.
        """
        if math.prod(self.shape) == 0:
            raise ValueError("summary() needs at least one camera, got none")
        cameras = self.reshape(-1).to(device="cpu", dtype=torch.float64)
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


@dataclass(frozen=True)
class Geometry:
    """What the cameras of a data set have in common; plain floats, made by `Cameras.summary`.

    `summary` gives it in the units of the labels. `to_model_units` gives the one that goes with labels that went
    through `normalize`; generators, orbits and checkpoints use that one. Both carry the same way back.
    """

    pivot: tuple[float, float, float]  # least-squares point of all optical axes
    centre: tuple[float, float, float]  # world origin if all distances to it agree within 1 %, else the pivot
    radius: float  # median distance of the cameras to the centre
    intrinsics: tuple[tuple[float, ...], ...]  # 3x3, component-wise median, normalised by the image size
    world_scale: float = 1.0  # label units per model unit; 1 unless it is more than 10 % off
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)  # where the model's origin lies in label units

    def frontal(self) -> Cameras:
        """One camera (leading shape []) at centre + radius (0, 0, 1), looking at the pivot."""
        return self.orbit(0.0)

    def orbit(self, yaw: Tensor | float, pitch: Tensor | float = 0.0) -> Cameras:
        """Cameras of yaw's and pitch's (broadcast) shape, `radius` from the centre, looking at the pivot.

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
        """Cameras in label units to model units: moved to the origin and divided by world_scale."""
        positions = cameras.positions
        return _with_positions(cameras, (positions - positions.new_tensor(self.origin)) / self.world_scale)

    def denormalize(self, cameras: Cameras) -> Cameras:
        """The inverse of `normalize`, for export."""
        positions = cameras.positions
        return _with_positions(cameras, positions * self.world_scale + positions.new_tensor(self.origin))

    def to_model_units(self) -> Geometry:
        """The geometry of the normalised cameras; call it on what `summary` returned."""

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
        """JSON-able: lists and floats only."""
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


def _triple(values: Tensor | Sequence[float]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _with_positions(cameras: Cameras, positions: Tensor) -> Cameras:
    cam2world = cameras.cam2world.clone()
    cam2world[..., :3, 3] = positions
    return Cameras(cam2world, cameras.intrinsics)
