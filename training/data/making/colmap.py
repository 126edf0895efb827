"""Reads COLMAP's sparse models, text and binary: cameras and images; skips points.

A pose is world to camera with OpenCV axes: x_cam = R(q) x_world + t, q = (w, x, y, z). Pixel (0, 0) has its centre at
(0.5, 0.5), so that dividing the intrinsics by the image size normalises them. From 3.12 on there are files of rigs and
frames beside these; the images still hold each picture's own pose, put together from both, so they are not needed.
"""

import contextlib
import math
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from training.data.image_store import DatasetError
from training.data.making.lens import require_pixels
from training.data.making.reshape import Distortion

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
_COUNTS = dict(_MODELS.values())
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")  # f, cx, cy, ...; the other usable ones fx, fy, cx, cy, ...
_USABLE = (*_ONE_FOCAL, "PINHOLE", "OPENCV", "FULL_OPENCV")
_MAKES = "PINHOLE and SIMPLE_PINHOLE are legal, and colmap image_undistorter makes them"
_IMAGE_WORDS = 10  # number, four of a quaternion, three of a translation, camera, name
_STATED = re.compile(r"Number of images:\s*(\d+)")


class Camera(NamedTuple):
    """Holds a camera of the model."""

    width: int  # pixels
    height: int  # pixels
    intrinsics: np.ndarray  # float64 [3, 3], normalised by the image size
    distortion: Distortion
    model: str


class View(NamedTuple):
    """Holds an image that COLMAP registered."""

    name: str  # file name below the image folder, as the model has it
    camera: Camera
    cam2world: np.ndarray  # float64 [4, 4], OpenCV axes


class _Row(NamedTuple):
    """Holds what a file says of an image."""

    name: str
    camera: int
    quaternion: list[float]
    translation: list[float]


def find_models(source: Path) -> list[Path]:
    """Finds the folders of a project's models: `source` alone if it is one, else those in it. Raises DatasetError."""
    if _is_model(source):
        return [source]
    for place in (source / "sparse", source / "colmap" / "sparse", source / "dense" / "sparse", source):
        found = [place] if _is_model(place) else []
        if place.is_dir():
            found += sorted(filter(_is_model, place.iterdir()), key=lambda p: (len(p.name), p.name))
        if found:
            return found
    raise DatasetError(
        f"{source}: holds no COLMAP model (cameras.txt and images.txt, or .bin, there or in sparse/0); "
        "colmap model_converter writes either"
    )


def read_largest(source: Path) -> tuple[Path, list[View], list[str]]:
    """Reads the model with the most pictures; returns its folder, its views and lines about the others.

    Raises DatasetError if the model cannot be used; another one that cannot be read only makes a line.
    """
    models = find_models(source)
    if len(models) == 1:
        return models[0], *_read(models[0])
    counts: dict[Path, int] = {}
    told = []
    for folder in models:
        try:
            counts[folder] = len(_rows(folder))
            told.append(f"{folder.name} with {counts[folder]} pictures")
        except DatasetError as error:
            told.append(f"{folder.name}, which cannot be read ({error})")
    if not counts:
        raise DatasetError(f"{source}: none of its {len(models)} models can be read: {'; '.join(told)}")
    best = max(counts, key=lambda folder: counts[folder])
    views, notes = _read(best)
    line = f"{source}: holds {len(models)} models: {', '.join(told)}; {best} is taken, a path to another takes that one"
    return best, views, [line, *notes]


def read_model(folder: Path) -> list[View]:
    """Reads the registered images in the order of their names. Raises DatasetError for damage and unusable lenses."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[list[View], list[str]]:
    """Returns the views of a model, and lines about what seems to be lost of it."""
    cameras_file, images_file = _need(folder)
    rows, notes = _rows(folder), _unread(folder, (cameras_file, images_file))
    cameras: dict[int, Callable[[], Camera]] = {}
    for identity, camera in _parsed(cameras_file, _text_cameras, _binary_cameras):
        if identity in cameras:
            raise DatasetError(f"{cameras_file}: camera {identity}: is there twice")
        cameras[identity] = camera
    used: dict[int, Camera] = {}
    views: dict[str, View] = {}
    for row in rows:
        if row.camera not in cameras:
            raise DatasetError(
                f"{images_file}: {row.name}: has camera {row.camera}, which {cameras_file.name} does not hold"
            )
        pose = _cam2world(row.quaternion, row.translation)
        if pose is None:
            raise DatasetError(f"{images_file}: {row.name}: the pose holds no rotation, or numbers that are not finite")
        if row.name in views:
            raise DatasetError(f"{images_file}: {row.name}: is there twice, with two poses")
        if row.camera not in used:
            used[row.camera] = cameras[row.camera]()
        views[row.name] = View(row.name, used[row.camera], pose)
    if not views:
        raise DatasetError(f"{images_file}: holds no registered picture")
    stated = _stated(images_file)
    if stated is not None and stated != len(views):
        notes.append(f"{images_file}: says that it has {stated} pictures and has {len(views)}")
    return sorted(views.values(), key=lambda view: view.name), notes


def _rows(folder: Path) -> list[_Row]:
    return _parsed(_need(folder)[1], _text_images, _binary_images)


def _parsed(file: Path, text: Callable[[Path], Iterator[T]], binary: Callable[[Path], Iterator[T]]) -> list[T]:
    damaged = f"{file}: is damaged or no COLMAP file"
    try:
        return list((binary if file.suffix == ".bin" else text)(file))
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}") from error
    except struct.error as error:
        raise DatasetError(f"{damaged}: it ends in the middle") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{damaged}: a name or line is no UTF-8 text") from error
    except _Damaged as error:
        raise DatasetError(f"{damaged}: {error}") from error


class _Damaged(ValueError):
    """Says in the reader's own words what is wrong with a file."""


def _is_model(folder: Path) -> bool:
    return _files(folder) is not None


def _files(folder: Path) -> tuple[Path, Path] | None:
    """Returns the files of cameras and images: both binary, as COLMAP prefers, else both text, else one of each."""
    kinds = ((".bin", ".bin"), (".txt", ".txt"), (".bin", ".txt"), (".txt", ".bin"))
    pairs = [(folder / f"cameras{cameras}", folder / f"images{images}") for cameras, images in kinds]
    return next((pair for pair in pairs if all(path.is_file() for path in pair)), None)


def _need(folder: Path) -> tuple[Path, Path]:
    files = _files(folder)
    if files is None:
        raise DatasetError(f"{folder}: holds no COLMAP model (cameras.txt and images.txt, or both as .bin)")
    return files


def _unread(folder: Path, read: tuple[Path, Path]) -> list[str]:
    """Returns a line if the folder holds its model, or half of one, in the other form too."""
    files = [folder / f"{name}{ending}" for name in ("cameras", "images") for ending in (".bin", ".txt")]
    others = [path.name for path in files if path not in read and path.is_file()]
    used = " and ".join(path.name for path in read)
    return [f"{folder}: {used} are read, and not {' and '.join(others)} beside them"] if others else []


# ---- cameras


def _camera(file: Path, identity: int, model: str, width: int, height: int, values: list[float]) -> Camera:
    """Checks what a file says of a camera that an image has. Raises DatasetError."""
    where = f"{file}: camera {identity}"
    if model not in _USABLE:
        raise DatasetError(
            f"{where}: has the model {model} with lens distortion of a kind that is not undone; {_MAKES}"
        )
    if len(values) != _COUNTS[model]:
        raise DatasetError(f"{where}: has {len(values)} parameters; {model} has {_COUNTS[model]}")
    if width < 1 or height < 1:
        raise DatasetError(f"{where}: is for pictures of {width}x{height} pixels")
    first = values[:1] if model in _ONE_FOCAL else []
    fx, fy, cx, cy, *distortion = first + values
    require_pixels(where, (width, height), cx, cy)
    k = np.array([[fx / width, 0.0, cx / width], [0.0, fy / height, cy / height], [0.0, 0.0, 1.0]])
    if not (np.isfinite(k).all() and fx > 0 and fy > 0 and all(map(math.isfinite, distortion))):
        raise DatasetError(f"{where}: focal lengths must be positive and all numbers finite")
    return Camera(width, height, k, Distortion(*distortion), model)


def _text_cameras(file: Path) -> Iterator[tuple[int, Callable[[], Camera]]]:
    for number, line in _lines(file):
        with _told(number, line, "number, model, width, height and the model's parameters"):
            identity, model, width, height, *values = line.split()
            found = int(identity), model, int(width), int(height), [float(v) for v in values]
        if model not in _COUNTS:
            raise DatasetError(
                f"{file}: camera {identity}: has the model {model[:40]}, which is not known here; {_MAKES}"
            )
        yield found[0], _later(file, *found)


def _later(file: Path, identity: int, model: str, width: int, height: int, values: list[float]) -> Callable[[], Camera]:
    return lambda: _camera(file, identity, model, width, height, values)


def _binary_cameras(file: Path) -> Iterator[tuple[int, Callable[[], Camera]]]:
    reader = _Reader(file)
    for _ in range(reader.take("Q")[0]):
        identity, number, width, height = reader.take("iiQQ")
        if number not in _MODELS:  # how many numbers it has is not known either
            raise DatasetError(
                f"{file}: camera {identity}: has the model number {number}, which is not known here; {_MAKES}"
            )
        model, count = _MODELS[number]
        yield identity, _later(file, identity, model, width, height, list(reader.take(f"{count}d")))
    reader.end()


# ---- images


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that are neither empty nor comments, with their numbers from 1 on."""
    # Not splitlines, which also ends lines at characters that names may hold.
    for number, line in enumerate(file.read_text("utf-8-sig").split("\n"), 1):
        line = line.strip(" \t\r")
        if line and not line.startswith("#"):
            yield number, line


def _stated(file: Path) -> int | None:
    """Returns the number of images that the comments of a text file state."""
    if file.suffix == ".bin":
        return None
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for line in lines:
            if not line.lstrip().startswith("#"):
                return None
            if found := _STATED.search(line):
                return int(found[1][:9])
    return None


@contextlib.contextmanager
def _told(number: int, line: str, legal: str) -> Iterator[None]:
    """Within it, what cannot be unpacked or converted is told as a fault of the line."""
    try:
        yield
    except ValueError:
        raise _Damaged(f"the line {number}, {line[:80]!r}, is not {legal}") from None


def _text_images(file: Path) -> Iterator[_Row]:
    """Yields the images: each has a line, and one for its points, which may be empty or lacking."""
    points_may_follow = False
    for number, line in _lines(file):
        row = _image_row(line)
        if row is not None and not (points_may_follow and _is_points(line)):
            yield row
            points_may_follow = True
        elif points_may_follow and _is_points(line):
            points_may_follow = False
        else:
            legal = "number, four of a quaternion, three of a translation, camera and name"
            with _told(number, line, f"{legal}, nor points in threes"):
                raise ValueError


def _image_row(line: str) -> _Row | None:
    words = line.split(maxsplit=_IMAGE_WORDS - 1)
    if len(words) < _IMAGE_WORDS:
        return None
    try:
        int(words[0])
        numbers = [float(v) for v in words[1:8]]
        return _Row(words[9], int(words[8]), numbers[:4], numbers[4:])
    except ValueError:
        return None


def _is_points(line: str) -> bool:
    """Tells whether a line holds x, y and number of each of any number of points."""
    words = line.split()
    if len(words) % 3:
        return False
    try:
        return all(math.isfinite(float(v)) for v in words) and all(int(v) >= -1 for v in words[2::3])
    except ValueError:
        return False


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
            raise _Damaged("it ends in the middle")
        self.at += count

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise _Damaged("it ends in the middle of a name")
        text, self.at = self.data[self.at : end].decode("utf-8"), end + 1
        return text

    def end(self) -> None:
        if self.at != len(self.data):
            raise _Damaged(f"{len(self.data) - self.at} bytes follow the number of entries that it states")


def _binary_images(file: Path) -> Iterator[_Row]:
    reader = _Reader(file)
    for _ in range(reader.take("Q")[0]):
        _, *pose, camera = reader.take("i7di")
        name = reader.text()
        reader.skip(24 * reader.take("Q")[0])  # x, y and the number of each point
        yield _Row(name, camera, pose[:4], pose[4:])
    reader.end()


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
