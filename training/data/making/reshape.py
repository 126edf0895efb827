"""Turns and undistorts pictures before they are cropped, together with the pose and the intrinsics of their cameras.

Intrinsics are normalised by the size of the picture; poses are camera-to-world with OpenCV axes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from training.data.image_store import DatasetError

TRANSPOSING = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MIRRORING = (2, 4, 5, 7)  # those that no turn of a camera brings about
_OPERATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow counts against the clock
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSES = {**_OPERATIONS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_LEAST_PART, _MOST_PART = 0.25, 1.5  # of the side of a distorted picture that the undistorted one may show
_BORDER_SAMPLES = 129  # points on each side of the border at which an undistorted picture must show something
_BAND = 1 << 19  # pixels that are resampled at once

Size = tuple[int, int]  # width and height in pixels


class Step(Protocol):
    """Changes a picture."""

    def size(self, size: Size) -> Size: ...  # of the changed picture

    def apply(self, picture: Image.Image) -> Image.Image: ...


@dataclass(frozen=True)
class Turn:
    """Turns a picture upright as its EXIF orientation says."""

    orientation: int  # 2 to 8

    def size(self, size: Size) -> Size:
        return (size[1], size[0]) if self.orientation in TRANSPOSING else size

    def apply(self, picture: Image.Image) -> Image.Image:
        return picture.transpose(_OPERATIONS[self.orientation])

    def undo(self, picture: Image.Image) -> Image.Image:
        return picture.transpose(_INVERSES[self.orientation])

    def camera(self, cam2world: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns pose [4, 4] and intrinsics [3, 3] of the turned picture. Raises ValueError if it is mirrored."""
        if self.orientation in MIRRORING:
            raise ValueError(f"no camera is mirrored, as the orientation {self.orientation} asks")
        pose, k = cam2world.copy(), intrinsics.copy()
        x, y = cam2world[:3, 0], cam2world[:3, 1]
        fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
        if self.orientation == 3:
            pose[:3, 0], pose[:3, 1] = -x, -y
            k[0, 2], k[1, 2] = 1 - cx, 1 - cy
        elif self.orientation == 6:  # what was down is left, what was right is down
            pose[:3, 0], pose[:3, 1] = -y, x
            k[0, 0], k[1, 1], k[0, 2], k[1, 2] = fy, fx, 1 - cy, cx
        elif self.orientation == 8:
            pose[:3, 0], pose[:3, 1] = y, -x
            k[0, 0], k[1, 1], k[0, 2], k[1, 2] = fy, fx, cy, 1 - cx
        return pose, k


@dataclass(frozen=True)
class Distortion:
    """Holds the coefficients of a lens after Brown and Conrady, as OpenCV has them; all 0 is a pinhole.

    With r^2 = x^2 + y^2 a point (x, y) at depth 1 is seen at (x', y') =
    (x, y) (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6) + (2 p1 x y + p2 (r^2 + 2 x^2),
    p1 (r^2 + 2 y^2) + 2 p2 x y).
    """

    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    k5: float = 0.0
    k6: float = 0.0

    @property
    def is_none(self) -> bool:
        return not any(vars(self).values())

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where points at depth 1, of any shape, are seen."""
        r2 = x * x + y * y
        above = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        radial = above / (1 + r2 * (self.k4 + r2 * (self.k5 + r2 * self.k6)))
        across = 2 * x * y
        return (
            x * radial + self.p1 * across + self.p2 * (r2 + 2 * x * x),
            y * radial + self.p1 * (r2 + 2 * y * y) + self.p2 * across,
        )


@dataclass(frozen=True)
class Undistort:
    """Resamples the picture of a distorting lens to that of a pinhole with the same focal length in pixels.

    The new picture shows the largest part, about the picture's middle and of its shape, that the given one fills.
    """

    distortion: Distortion
    lens: tuple[float, float, float, float]  # fx, fy, cx, cy of the distorted picture, normalised by its size

    @cached_property
    def part(self) -> float:
        """The side of the undistorted picture over that of the given one."""
        low, high = _LEAST_PART, _MOST_PART
        if not self._is_filled(low):
            raise DatasetError(f"the lens distortion {self.distortion} leaves nothing of the picture")
        for _ in range(40):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._is_filled(middle) else (low, middle)
        return low

    def _is_filled(self, part: float) -> bool:
        along = np.linspace(-0.5, 0.5, _BORDER_SAMPLES)
        side = np.full_like(along, 0.5)
        u = 0.5 + part * np.concatenate([along, along, -side, side])
        v = 0.5 + part * np.concatenate([-side, side, along, along])
        # From the middle outwards a lens that folds the picture back would pass for one that is filled.
        reach = np.linspace(0, 1, 65)[1:, None]
        fx, fy, cx, cy = self.lens
        x, y = reach * (u - cx) / fx, reach * (v - cy) / fy
        seen_x, seen_y = self.distortion.distort(x, y)
        unfolded = np.diff(np.hypot(seen_x, seen_y), axis=0).min() > 0
        seen_u, seen_v = seen_x[-1] * fx + cx, seen_y[-1] * fy + cy
        return bool(unfolded and min(seen_u.min(), seen_v.min()) >= 0 and max(seen_u.max(), seen_v.max()) <= 1)

    def size(self, size: Size) -> Size:
        return max(1, round(size[0] * self.part)), max(1, round(size[1] * self.part))

    def intrinsics(self) -> np.ndarray:
        """Returns the intrinsics [3, 3] of the undistorted picture, normalised by its size."""
        fx, fy, cx, cy = self.lens
        start = 0.5 - 0.5 * self.part
        k = [[fx / self.part, 0, (cx - start) / self.part], [0, fy / self.part, (cy - start) / self.part], [0, 0, 1]]
        return np.array(k)

    def apply(self, picture: Image.Image) -> Image.Image:
        """Resamples an 8-bit picture, bicubic."""
        pixels = np.asarray(picture)
        planes = torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)[None].float()
        width, height = self.size(picture.size)
        fx, fy, cx, cy = self.lens
        start = 0.5 - 0.5 * self.part
        u = start + self.part * (np.arange(width) + 0.5) / width
        x = np.broadcast_to((u - cx) / fx, (1, width))
        rows = []
        for first in range(0, height, max(1, _BAND // width)):
            v = start + self.part * (np.arange(first, min(height, first + max(1, _BAND // width))) + 0.5) / height
            y = ((v - cy) / fy)[:, None]
            seen_x, seen_y = self.distortion.distort(*np.broadcast_arrays(x, y))
            grid = torch.from_numpy(np.stack([seen_x * fx + cx, seen_y * fy + cy], axis=-1) * 2 - 1).float()[None]
            rows.append(F.grid_sample(planes, grid, "bicubic", "border", align_corners=False)[0])
        found = torch.cat(rows, dim=1).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        return Image.fromarray(found[..., 0] if pixels.ndim == 2 else found)
