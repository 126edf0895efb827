"""Reads COLMAP's sparse models, text and binary: cameras and images; skips points.

A pose is world to camera with OpenCV axes: x_cam = R(q) x_world + t, q = (w, x, y, z). Pixel (0, 0) has its centre at
(0.5, 0.5), so that dividing the intrinsics by the image size normalises them.
"""

import contextlib
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from training.data.image_store import DatasetError

T = TypeVar("T")

# Model number -> name and number of parameters.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}


class Camera(NamedTuple):
    """Holds a pinhole camera of the model."""

    width: int  # pixels
    height: int  # pixels
    intrinsics: np.ndarray  # float64 [3, 3], normalised by the image size


class View(NamedTuple):
    """Holds an image that COLMAP registered."""

    name: str  # file name below the image folder
    camera: Camera
    cam2world: np.ndarray  # float64 [4, 4], OpenCV axes


def find_model(source: Path) -> Path:
    """Finds the folder of the model in a project folder. Raises DatasetError."""
    for place in (source, source / "sparse" / "0", source / "sparse", source / "0"):
        if _file(place, "cameras") and _file(place, "images"):
            return place
    raise DatasetError(
        f"{source}: holds no COLMAP model (cameras.txt and images.txt, or .bin, there or in sparse/0); "
        "colmap model_converter writes either"
    )


def read_model(folder: Path) -> list[View]:
    """Reads the registered images in the order of their names. Raises DatasetError for damage and lens distortion."""
    cameras_file, images_file = _file(folder, "cameras"), _file(folder, "images")
    if cameras_file is None or images_file is None:
        raise DatasetError(f"{folder}: holds no COLMAP model (cameras.txt and images.txt, or .bin)")
    cameras = dict(_parsed(cameras_file, _text_cameras, _binary_cameras))
    rows = _parsed(images_file, _text_images, _binary_images)
    views = []
    for name, camera, quaternion, translation in rows:
        if camera not in cameras:
            raise DatasetError(f"{images_file}: {name}: has camera {camera}, which {cameras_file.name} does not hold")
        pose = _cam2world(quaternion, translation)
        if pose is None:
            raise DatasetError(f"{images_file}: {name}: the pose holds no rotation, or numbers that are not finite")
        views.append(View(name, cameras[camera], pose))
    if not views:
        raise DatasetError(f"{images_file}: holds no registered picture")
    return sorted(views, key=lambda view: view.name)


def _parsed(file: Path, text: Callable[[Path], Iterator[T]], binary: Callable[[Path], Iterator[T]]) -> list[T]:
    try:
        return list((binary if file.suffix == ".bin" else text)(file))
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except struct.error as error:
        raise DatasetError(f"{file}: is damaged or no COLMAP file: it ends in the middle") from error
    except (ValueError, KeyError) as error:
        raise DatasetError(f"{file}: is damaged or no COLMAP file: {error}") from error


def _file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.bin", folder / f"{name}.txt") if p.is_file()), None)


def _camera(file: Path, identity: int, model: str, width: int, height: int, values: list[float]) -> tuple[int, Camera]:
    if model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        fx, cx, cy, *distortion = values
        fy = fx
    elif model in ("PINHOLE", "OPENCV", "FULL_OPENCV"):
        fx, fy, cx, cy, *distortion = values
    else:
        distortion = [float("nan")]  # no parameters make this lens a pinhole
    if any(value != 0 for value in distortion):
        raise DatasetError(
            f"{file}: camera {identity}: has the model {model} with lens distortion; PINHOLE and SIMPLE_PINHOLE are "
            "legal (colmap image_undistorter makes such pictures and their model)"
        )
    if width < 1 or height < 1:
        raise DatasetError(f"{file}: camera {identity}: is for pictures of {width}x{height} pixels")
    k = np.array([[fx / width, 0.0, cx / width], [0.0, fy / height, cy / height], [0.0, 0.0, 1.0]])
    if not (np.isfinite(k).all() and fx > 0 and fy > 0):
        raise DatasetError(f"{file}: camera {identity}: focal lengths must be positive and all numbers finite")
    return identity, Camera(width, height, k)


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]


@contextlib.contextmanager
def _told(line: str, legal: str) -> Iterator[None]:
    """Within it, what cannot be unpacked or converted is told as a fault of the line."""
    try:
        yield
    except DatasetError:
        raise
    except ValueError:
        raise ValueError(f"the line {line.strip()[:80]!r} is not {legal}") from None


def _text_cameras(file: Path) -> Iterator[tuple[int, Camera]]:
    for line in _lines(file):
        if line.strip():
            with _told(line, "number, model, width, height and the model's parameters"):
                identity, model, width, height, *values = line.split()
                camera = _camera(file, int(identity), model, int(width), int(height), [float(v) for v in values])
            yield camera


def _text_images(file: Path) -> Iterator[tuple[str, int, list[float], list[float]]]:
    # Two lines per picture; the second one, the points, may be empty.
    lines = _lines(file)
    while lines and not lines[-1].strip():
        lines.pop()
    for line in lines[::2]:
        with _told(line, "number, four of a quaternion, three of a translation, camera and name"):
            _, *pose, camera, name = line.split(maxsplit=9)
            numbers, number = [float(v) for v in pose], int(camera)
        yield name.strip(), number, numbers[:4], numbers[4:]


class _Reader:
    """Reads little-endian numbers and strings one after the other."""

    def __init__(self, file: Path):
        self.data, self.at = file.read_bytes(), 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise ValueError("ends in the middle")
        self.at += count

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        text, self.at = self.data[self.at : end].decode("utf-8"), end + 1
        return text


def _binary_cameras(file: Path) -> Iterator[tuple[int, Camera]]:
    reader = _Reader(file)
    for _ in range(reader.take("Q")[0]):
        identity, number, width, height = reader.take("iiQQ")
        model, count = _MODELS[number]
        yield _camera(file, identity, model, width, height, list(reader.take(f"{count}d")))


def _binary_images(file: Path) -> Iterator[tuple[str, int, list[float], list[float]]]:
    reader = _Reader(file)
    for _ in range(reader.take("Q")[0]):
        _, *pose, camera = reader.take("i7di")
        name = reader.text()
        reader.skip(24 * reader.take("Q")[0])  # x, y and the number of each point
        yield name, camera, pose[:4], pose[4:]


def _cam2world(quaternion: list[float], translation: list[float]) -> np.ndarray | None:
    """Converts COLMAP's world-to-camera rotation and translation; returns None if the numbers make no pose."""
    length = math.hypot(*quaternion)
    if not 1e-9 < length < 1e9 or not all(abs(value) < 1e100 for value in translation):
        return None
    w, x, y, z = np.array(quaternion) / length
    world2cam = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = world2cam.T
    pose[:3, 3] = -world2cam.T @ translation
    return pose
