"""Reads transforms.json of nerfstudio, instant-ngp and Blender's NeRF scenes.

Frames hold camera-to-world matrices with OpenGL axes (x right, y up, z backward). Intrinsics are pixels (fl_x, fl_y,
cx, cy, w, h), of the file or of a frame, or the field of view camera_angle_x (radians).
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.data.image_store import MAX_JSON_BYTES, DatasetError, FolderStore
from training.data.label_file import parse_json
from training.data.pixels import EXTENSIONS, open_image

FILE = "transforms.json"
_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PINHOLE_MODELS = (None, "OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")


class Frame(NamedTuple):
    """Holds an image file with its camera."""

    picture: Path
    mask: Path | None
    size: tuple[int, int]  # width and height in pixels that the intrinsics are for
    intrinsics: np.ndarray  # float64 [3, 3], normalised by the image size
    cam2world: np.ndarray  # float64 [4, 4], OpenCV axes


def read_transforms(source: Path) -> list[Frame]:
    """Reads the frames in the order of their file names; `source` is the file or its folder. Raises DatasetError."""
    file = source / FILE if source.is_dir() else source
    if not file.exists():
        raise DatasetError(f"{file}: not found; --from=transforms reads it")
    data = FolderStore(file.parent).read(file.name, MAX_JSON_BYTES)
    try:
        content = parse_json(str(file), data)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        frame = '{"file_path": "a.png", "transform_matrix": 4x4}'
        raise DatasetError(f'{file}: has no list "frames"; legal is {{"frames": [{frame}, ...]}}')
    found = [_frame(file, i, {**content, **frame}) for i, frame in enumerate(frames)]
    return sorted(found, key=lambda frame: frame.picture.as_posix())


def _frame(file: Path, index: int, values: dict[str, Any]) -> Frame:
    where = f"{file}: frames[{index}]"
    picture = _picture(file, where, values.get("file_path"))
    mask = values.get("mask_path")
    if mask is not None:
        mask = _picture(file, where, mask)
    size, intrinsics = _intrinsics(where, picture, values)
    return Frame(picture, mask, size, intrinsics, _pose(where, values.get("transform_matrix")))


def _picture(file: Path, where: str, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{where}: file_path must name a picture, got {name!r}")
    path = file.parent / name
    # Blender's scenes leave the extension out.
    found = next((p for p in (path, *(Path(f"{path}{e}") for e in EXTENSIONS)) if p.is_file()), None)
    if found is None:
        raise DatasetError(f"{where}: {path}: no such picture")
    return found


def _number(where: str, values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DatasetError(f"{where}: {name} must be a finite number, got {value!r}")
    return float(value)


def _intrinsics(where: str, picture: Path, values: dict[str, Any]) -> tuple[tuple[int, int], np.ndarray]:
    """Returns size in pixels and normalised intrinsics [3, 3]."""
    distorted = [name for name in _DISTORTION if _number(where, values, name)]
    model = values.get("camera_model")
    if distorted or model not in _PINHOLE_MODELS:
        what = ", ".join(distorted) or f"camera_model {model}"
        raise DatasetError(f"{where}: has lens distortion ({what}); undistorted pictures are legal")
    width, height = _number(where, values, "w"), _number(where, values, "h")
    if width is None or height is None:
        width, height = open_image(picture.read_bytes(), str(picture), decode=False).size
    fx, fy = _number(where, values, "fl_x"), _number(where, values, "fl_y")
    if fx is None:
        fx = _focal(_number(where, values, "camera_angle_x"), width)
    if fy is None:
        fy = _focal(_number(where, values, "camera_angle_y"), height)
    fx, fy = fx or fy, fy or fx  # pixels are square unless said otherwise
    if not (fx and fy and fx > 0 and fy > 0 and width > 0 and height > 0):
        raise DatasetError(f"{where}: needs fl_x or camera_angle_x, and sizes over 0")
    cx, cy = _number(where, values, "cx"), _number(where, values, "cy")
    cx, cy = width / 2 if cx is None else cx, height / 2 if cy is None else cy
    k = np.array([[fx / width, 0.0, cx / width], [0.0, fy / height, cy / height], [0.0, 0.0, 1.0]])
    return (int(width), int(height)), k


def _focal(angle: float | None, length: float) -> float | None:
    return None if angle is None else 0.5 * length / math.tan(0.5 * angle)


def _pose(where: str, matrix: Any) -> np.ndarray:
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        pose = np.zeros(0)
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise DatasetError(f"{where}: transform_matrix must be 4x4 finite numbers, camera to world")
    return pose * np.array([1.0, -1.0, -1.0, 1.0])  # OpenGL to OpenCV axes
