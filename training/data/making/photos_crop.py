"""Cuts faces out of photographs as EG3D's preprocessing frames them, each with the camera that saw it.

Published framing (Chan et al. 2022): a camera 2.7 world units from the origin, focal length 4.2647 picture widths
(2985.29 / 700), the head's origin in the middle, no roll. A millimetre of a face is 0.0027 units, and the eyes lie
0.084 above and 0.197 before the origin: where the published conversion of Deep3DFaceRecon's poses puts them.

A photograph's own perspective is seldom known. Either the crop is taken for a picture of that camera, as EG3D does; or
the focal length is given, and the crop becomes what the camera would see had it been turned to the head, with the true
distance in its label and a focal length that shows the head at the same size.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.data.making.photos_pose import Placement, Poses, solve

RADIUS, FOCAL = 2.7, 4.2647
EXTENT = RADIUS / FOCAL  # world units that a crop is wide at the origin
_MILLIMETRE = 0.0027  # world units
_EYES = np.array([0.0, 0.084, 0.197])  # world position of the middle between the pupils
_AIMS = 3  # times that the camera is turned to the head, whose place a pose makes better known
_GRID = np.stack(np.meshgrid(*[(np.arange(32) + 0.5) / 32] * 2), axis=-1).reshape(-1, 2)  # [1024, 2] of a crop


@dataclass(frozen=True)
class Framing:
    """Describes where heads stand in the world of the labels; the defaults are EG3D's."""

    zoom: float = 1.0  # size of the heads; below 1 shows more around them
    shift: float = 0.0  # picture heights by which heads stand lower
    tilt: float = 0.0  # degrees by which a face looks up where the camera's pitch is 0

    @property
    def placement(self) -> Placement:
        """Places the canonical face accordingly."""
        c, s = math.cos(math.radians(self.tilt)), math.sin(math.radians(self.tilt))
        turn = np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])
        offset = self.zoom * turn @ _EYES - np.array([0.0, self.shift * EXTENT, 0.0])
        return Placement(self.zoom * _MILLIMETRE * turn, offset)


@dataclass(frozen=True)
class Crop:
    """Holds a square to cut out of a photograph, and its camera."""

    to_picture: np.ndarray  # [3, 3] homogeneous: (u, v, 1) in 0..1 of the crop to pixels of the photograph
    side: float  # pixels of the photograph
    label: np.ndarray  # [25] camera of the crop
    yaw: float  # radians, of the camera as seen from the head
    pitch: float
    roll: float  # radians by which the crop is turned against the photograph

    def outside(self, size: tuple[int, int]) -> float:
        """Returns the share of the crop that lies outside a photograph of (width, height)."""
        points = self.points(_GRID)
        return float(1 - ((points > 0) & (points < np.array(size))).all(-1).mean())

    def points(self, crop_points: np.ndarray) -> np.ndarray:
        """Returns pixels [P, 2] of the photograph for points [P, 2] of the crop."""
        mapped = np.column_stack([crop_points, np.ones(len(crop_points))]) @ self.to_picture.T
        return mapped[:, :2] / mapped[:, 2:]


def find_crops(
    points: np.ndarray, sizes: np.ndarray, framing: Framing, focal: float | None = None
) -> tuple[list[Crop], Poses]:
    """Finds the poses and crops of faces with landmarks [N, 51, 2] in photographs of sizes [N, 2] (width, height).

    focal: in longer sides of a photograph, whose principal point is taken to be its middle; None: as the crop's camera.
    """
    count = len(points)
    placement = framing.placement
    distances = np.full(count, RADIUS)
    if focal is None:
        poses = solve(points, distances, placement)
        return [_crop(poses, i, RADIUS, np.eye(3)) for i in range(count)], poses
    lengths, middles = focal * sizes.max(-1), sizes / 2  # [N], [N, 2]
    aims = np.median(points, axis=1)  # [N, 2] pixels to turn to
    for _ in range(_AIMS):
        turns = _turns((aims - middles) / lengths[:, None])  # [N, 3, 3]
        rays = np.concatenate(
            [(points - middles[:, None]) / lengths[:, None, None], np.ones((*points.shape[:2], 1))], -1
        )
        seen = np.einsum("nij,npj->npi", turns, rays)
        poses = solve(lengths[:, None, None] * seen[..., :2] / seen[..., 2:], distances, placement)
        distances = lengths / poses.scales
        back = np.concatenate([poses.centres / lengths[:, None], np.ones((count, 1))], -1)
        axes = np.einsum("nji,nj->ni", turns, back)
        aims = middles + lengths[:, None] * axes[:, :2] / axes[:, 2:]
    crops = []
    for i in range(count):
        inward = np.array([[lengths[i], 0, middles[i, 0]], [0, lengths[i], middles[i, 1]], [0, 0, 1]])
        outward = np.diag([1 / lengths[i], 1 / lengths[i], 1.0])
        crops.append(_crop(poses, i, float(distances[i]), inward @ turns[i].T @ outward))
    return crops, poses


def _turns(tangents: np.ndarray) -> np.ndarray:
    """Returns rotations [N, 3, 3] that bring the directions (x, y, 1) of tangents [N, 2] to the optical axis."""
    way = np.concatenate([tangents, np.ones((len(tangents), 1))], axis=-1)
    x, y, z = (way / np.linalg.norm(way, axis=-1, keepdims=True)).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, zero, -x, zero, zero, -y, x, y, zero], axis=-1).reshape(-1, 3, 3)
    return np.eye(3) + cross + cross @ cross / (1 + z)[:, None, None]


def _crop(poses: Poses, index: int, distance: float, to_picture: np.ndarray) -> Crop:
    rotation, centre = poses.rotations[index], poses.centres[index]
    side = EXTENT * float(poses.scales[index])
    way = -rotation[2]  # from the origin to the camera
    level = _level(way)
    turned = rotation @ level.T
    roll = math.atan2(turned[1, 0], turned[0, 0])
    c, s = math.cos(roll), math.sin(roll)
    frame = side * np.array([[c, -s], [s, c]])
    similarity = np.eye(3)
    similarity[:2, :2], similarity[:2, 2] = frame, centre - frame @ np.array([0.5, 0.5])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = level.T, distance * way
    focal = FOCAL * distance / RADIUS
    intrinsics = np.array([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])
    label = np.concatenate([pose.ravel(), intrinsics.ravel()])
    yaw, pitch = math.atan2(way[0], way[2]), math.asin(float(np.clip(way[1], -1, 1)))
    return Crop(to_picture @ similarity, side, label, yaw, pitch, roll)


def _level(way: np.ndarray) -> np.ndarray:
    """Returns world to camera axes [3, 3] of a camera that looks against `way`, without roll."""
    right = np.cross(-way, [0.0, 1.0, 0.0])
    norm = np.linalg.norm(right)
    right = right / norm if norm > 1e-6 else np.array([1.0, 0.0, 0.0])
    return np.stack([right, np.cross(-way, right), -way])


# ---- pixels


def cut(picture: Image.Image, crop: Crop, resolution: int) -> Image.Image:
    """Returns the crop as a picture of `resolution`; what lies outside the photograph is its mirror image.

    Shrinks by Lanczos filters before and after the turn, so that nothing aliases, and interpolates by cubics.
    """
    corners = crop.points(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    margin = 4 + 4 * crop.side / resolution
    left, top = np.floor(corners.min(0) - margin).astype(int).tolist()
    right, bottom = np.ceil(corners.max(0) + margin).astype(int).tolist()
    pixels = np.asarray(picture)
    part = pixels[_mirrored(top, bottom, pixels.shape[0])][:, _mirrored(left, right, pixels.shape[1])]
    region = Image.fromarray(part)
    fine = resolution if crop.side <= resolution else 2 * resolution
    shrink = min(1.0, fine / crop.side)
    width, height = (max(1, round(shrink * length)) for length in region.size)
    scale = np.array([width / region.width, height / region.height])
    if (width, height) != region.size:
        region = region.resize((width, height), Image.Resampling.LANCZOS)
    move = np.array([[scale[0], 0, -scale[0] * left], [0, scale[1], -scale[1] * top], [0, 0, 1]])
    warp = move @ crop.to_picture @ np.diag([1 / fine, 1 / fine, 1.0])
    data = tuple((warp / warp[2, 2]).ravel()[:8].tolist())
    turned = region.transform((fine, fine), Image.Transform.PERSPECTIVE, data, Image.Resampling.BICUBIC)
    return turned if fine == resolution else turned.resize((resolution, resolution), Image.Resampling.LANCZOS)


def _mirrored(start: int, stop: int, length: int) -> np.ndarray:
    """Returns indices into 0..length-1 for start..stop-1, mirrored at the edges."""
    at = np.arange(start, stop) % (2 * length)
    return np.where(at < length, at, 2 * length - 1 - at)


def inside(crop: Crop, size: tuple[int, int], resolution: int) -> np.ndarray:
    """Returns which pixels of the crop lie in a photograph of (width, height): bool [R, R]."""
    grid = (np.arange(resolution) + 0.5) / resolution
    points = crop.points(np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2))
    return ((points >= 0) & (points <= np.array(size))).all(-1).reshape(resolution, resolution)


def sharpness(picture: Image.Image) -> float:
    """Returns the energy of the finest octave over that of the one three below, where enlarging leaves no gap.

    An octave is what halving loses. Portraits have 0.1 to 0.3; enlarged twice 0.006 to 0.017, four times at most 0.002.
    """
    values, energies = np.asarray(picture.convert("L"), dtype=np.float64), []
    for _ in range(4):
        coarse = _halved(values)
        energies.append(float(((values - _doubled(coarse, values.shape)) ** 2).mean()))
        values = coarse
    return energies[0] / max(energies[3], 1e-9)


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.LANCZOS), np.float64)


def _halved(values: np.ndarray) -> np.ndarray:
    return _resized(values, (max(values.shape[1] // 2, 1), max(values.shape[0] // 2, 1)))


def _doubled(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return _resized(values, (shape[1], shape[0]))


def encoded(picture: Image.Image) -> bytes:
    """Returns a picture as a PNG file."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
