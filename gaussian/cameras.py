"""Defines `Cameras`: pinhole cameras of any leading shape.

Camera axes are OpenCV's (x right, y down, z forward), the world's y is up. Intrinsics are normalised by the image
size: u = fx x/z + cx runs from 0 at the left edge to 1 at the right, v = fy y/z + cy from 0 at the top to 1 at the
bottom. Pixel (column i, row j) has its centre at ((i + 0.5)/W, (j + 0.5)/H).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from gaussian.geometry import Geometry

LABEL_WIDTH = 25  # 4x4 cam2world and 3x3 intrinsics, both row-major

Vector = Tensor | Sequence[float]


def pixel_centres(count: int, like: Tensor) -> Tensor:
    """Returns where the centres of an edge's pixels are, in units of the image: [count]."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count


@dataclass(frozen=True)
class Cameras:
    """Holds pinhole cameras of any leading shape. Raises ValueError if the shapes do not fit."""

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
        """Reads labels [..., 25] (cam2world, then intrinsics, row-major) as cameras of that leading shape."""
        if labels.shape[-1] != LABEL_WIDTH:
            raise ValueError(f"labels must have shape [..., {LABEL_WIDTH}], got {list(labels.shape)}")
        return cls(labels[..., :16].unflatten(-1, (4, 4)), labels[..., 16:].unflatten(-1, (3, 3)))

    @classmethod
    def look_at(cls, position: Vector, target: Vector, up: Vector = (0.0, 1.0, 0.0), *, intrinsics: Tensor) -> Self:
        """Places cameras at `position` with `target` on the optical axis and no roll against `up`.

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
        """Returns labels [..., 25], the inverse of `from_labels`."""
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
        """Returns the camera centres [..., 3] in world units."""
        return self.cam2world[..., :3, 3]

    @property
    def world2cam(self) -> Tensor:
        """Returns the inverse [..., 4, 4] of a rigid cam2world."""
        rotation = self.cam2world[..., :3, :3].transpose(-1, -2)
        translation = -(rotation @ self.cam2world[..., :3, 3:])
        return torch.cat([torch.cat([rotation, translation], dim=-1), self.cam2world[..., 3:, :]], dim=-2)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single camera (leading shape []) has no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Self:
        """Indexes the leading shape, with anything that indexes a tensor."""
        return self.map(lambda t: t[index])

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Applies `fn`, which must keep the two trailing axes, to both matrices."""
        return type(self)(fn(self.cam2world), fn(self.intrinsics))

    def reshape(self, *shape: int) -> Self:
        """Returns the same cameras in another leading shape; one entry may be -1."""
        return self.map(lambda t: t.reshape(*shape, *t.shape[-2:]))

    def expand(self, *shape: int) -> Self:
        """Broadcasts the cameras to a leading shape."""
        return self.map(lambda t: t.expand(*shape, *t.shape[-2:]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        return self.map(lambda t: t.to(device=device, dtype=dtype))

    def mirror(self) -> Self:
        """Returns the cameras that see the world mirrored at x = 0 as these see the original, with the image flipped
        left to right.

        Pose F M F with F = diag(-1, 1, 1, 1); the principal point moves to 1 - cx and the skew changes sign.
        """
        flip = torch.ones(4, dtype=self.dtype, device=self.device)
        flip[0] = -1.0  # filled on the device: a tensor made from a list would be copied to it, and waited for
        intrinsics = self.intrinsics.clone()
        intrinsics[..., 0, 1] = -self.intrinsics[..., 0, 1]
        intrinsics[..., 0, 2] = 1 - self.intrinsics[..., 0, 2]
        return type(self)(flip[:, None] * self.cam2world * flip, intrinsics)

    def crop(self, box: tuple[float, float, float, float]) -> Self:
        """Returns the cameras of a part of their image (a resize alone changes nothing in normalised intrinsics).

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
        """Projects world points [..., P, 3] to positions [..., P, 2] in units of the image, and camera z [..., P].

        The leading shapes broadcast. Positions are meaningful only where z > 0.
        """
        rotation, translation = self.world2cam[..., :3, :3], self.world2cam[..., None, :3, 3]
        local = points @ rotation.transpose(-1, -2) + translation  # [..., P, 3]
        z = local[..., 2]
        xy = (local @ self.intrinsics[..., :2, :].transpose(-1, -2)) / z[..., None]
        return xy, z

    def rays(self, u: Tensor, v: Tensor) -> Tensor:
        """Returns the rays (x, y, 1) in camera axes, [..., H, W, 3], through places u [W] and v [H] of the image.

        Places are in units of the image, from its left and top edges.
        """
        (fx, skew, cx), (_, fy, cy) = (self.intrinsics[..., i, :, None, None].unbind(-3) for i in (0, 1))
        y = (v[:, None] - cy) / fy  # [..., H, 1]
        x = (u - cx - skew * y) / fx  # [..., H, W]
        return torch.stack([x, y.expand_as(x), torch.ones_like(x)], dim=-1)

    def unproject(self, depth: Tensor) -> Tensor:
        """Returns the world points [..., H, W, 3] that depth [..., H, W] (camera z) shows at the pixels' centres.

        The leading shapes are equal. It inverts `project`.
        """
        u, v = (pixel_centres(n, depth) for n in (depth.shape[-1], depth.shape[-2]))
        local = self.rays(u, v) * depth[..., None]
        turn, shift = self.cam2world[..., None, :3, :3], self.cam2world[..., None, None, :3, 3]
        return local @ turn.transpose(-1, -2) + shift

    def yaw_pitch(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Returns yaw and pitch in radians of the cameras as seen from the centre, each of the leading shape.

        Yaw 0 is world +z and grows towards +x; pitch 0 is level and grows upwards. The inverse of `Geometry.orbit`.
        """
        x, y, z = (self.positions - self.positions.new_tensor(geometry.centre)).unbind(-1)
        return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))

    def summary(self) -> Geometry:
        """Returns the geometry that these cameras share, in their own world units; see `gaussian.geometry.measure`."""
        from gaussian.geometry import measure  # here, because a Geometry makes cameras

        return measure(self)
