"""Reads the lens of a frame of transforms.json: a frame's own values, in whichever key, beat the file's.

Values that belong together are taken together: a focal length, a principal point and a size in pixels of the frame,
else of the file. What a picture really measures decides where a stated size cannot be meant.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from training.data.image_store import DatasetError
from training.data.making.reshape import Distortion, Size

_DEGREES = {"camera_angle_x": "x_fov", "camera_angle_y": "y_fov"}  # instant-ngp's own names
_FOCAL = ("fl_x", "fl_y", *_DEGREES, *_DEGREES.values())
_MATRICES = ("K", "intrinsic_matrix", "intrinsics")
_SAME = 0.01  # relative difference up to which two widths over heights, or two focal lengths, are the same
_CENTRED, _OFF = 0.1, 0.2  # distances of the principal point from the middle, in sizes, that tell which size is meant
_LEAST_SIZE = 8  # pixels of a side from which on a principal point within the first pixel means something else
_OPENCV = ("k1", "k2", "p1", "p2", "k3")
_OTHERS = ("k4", "k5", "k6", "s1", "s2", "s3", "s4")  # programs do not agree on what these do
_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
# Keys of instant-ngp, nerfstudio and Blender that make a picture something else than a lens in front of a plane does.
_OTHER_LENSES = ("fisheye", "ftheta", "latlong", "equirectangular", "panoram", "orthograph")
_ROLLING = "rolling_shutter"
_OTHER_AXES = ("from_mitsuba", "from_na")  # instant-ngp then reads the matrices with other axes
_MOVING = ("transform_matrix_start", "transform_matrix_end")


class Lens(NamedTuple):
    """Holds the intrinsics of a picture."""

    size: Size  # width and height in pixels of a picture of the shape that the intrinsics are for
    intrinsics: np.ndarray  # float64 [3, 3], normalised by the picture's size
    distortion: Distortion
    remarks: tuple[str, ...]  # what was decided against the file


class _Level:
    """Holds what the frame, or what the file, says."""

    def __init__(self, where: str, values: Mapping[str, Any]):
        self.where, self.values = where, values
        self.matrix = self._matrix()
        self.width, self.height = self.number("w"), self.number("h")
        if any(side is not None and side < 1 for side in (self.width, self.height)):
            raise DatasetError(f"{where}: w and h must be at least 1")

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        return _finite(self.where, name, value)

    def _matrix(self) -> np.ndarray | None:
        """Returns K [3, 3] in pixels, if there is one."""
        name = next((name for name in _MATRICES if self.values.get(name) is not None), None)
        if name is None:
            return None
        try:
            k = np.array(self.values[name], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            k = np.zeros(0)
        if k.size == 9:
            k = k.reshape(3, 3)
        rest = [(0, 1), (1, 0), (2, 0), (2, 1)]
        if k.shape != (3, 3) or not np.isfinite(k).all() or any(k[place] for place in rest) or k[2, 2] != 1:
            raise DatasetError(f"{self.where}: {name} must be fx 0 cx, 0 fy cy, 0 0 1 in pixels (no skew)")
        return k

    def pixel(self, key: str, place: tuple[int, int]) -> float | None:
        """Returns a value in pixels: by its key, else from the matrix."""
        value = self.number(key)
        return float(self.matrix[place]) if value is None and self.matrix is not None else value

    @property
    def has_focal(self) -> bool:
        return self.matrix is not None or any(self.values.get(name) is not None for name in _FOCAL)

    @property
    def has_centre(self) -> bool:
        return self.matrix is not None or any(self.values.get(name) is not None for name in ("cx", "cy"))

    @property
    def has_size(self) -> bool:
        return self.width is not None or self.height is not None

    def size(self, other: "_Level") -> tuple[float, float] | None:
        """Returns the stated size; a side that this level lacks is the other's. None if it is not whole."""
        width = other.width if self.width is None else self.width
        height = other.height if self.height is None else self.height
        return None if width is None or height is None else (width, height)


def read_lens(where: str, own: Mapping[str, Any], shared: Mapping[str, Any], real: Size, turned: Size) -> Lens:
    """Reads the lens of a frame. Raises DatasetError, one line that begins with `where`.

    own: the frame's keys; shared: the file's. real: the picture's width and height in pixels, as it is stored;
    turned: the same if it is turned as its orientation tag says.
    """
    check_meaning(where, {**shared, **own})
    levels = [_Level(where, own), _Level(where, {k: v for k, v in shared.items() if k != "frames"})]
    focal = next((level for level in levels if level.has_focal), None)
    if focal is None:
        raise DatasetError(f"{where}: needs fl_x, camera_angle_x, x_fov or K, of its own or of the file")
    centre = next((level for level in levels if level.has_centre), None)
    stated = levels[0].size(levels[1])
    # A lens of the frame's own need not be for the size of the file's.
    foreign = focal is levels[0] and not focal.has_size
    size, remarks = _size_of(where, stated, foreign, focal, centre, real, turned)
    fx, fy = _focal_lengths(where, focal, size)
    remarks += _disagreement(focal, size)
    cx, cy = 0.5, 0.5
    if centre is not None:
        # What the file says of the middle goes with the file's size, also where the frame has another one.
        base = size if centre is focal else (centre.size(levels[1]) or size)
        base = size if _near(base, size) or _centre_fits(centre, size) > _centre_fits(centre, base) else base
        px, py = centre.pixel("cx", (0, 2)), centre.pixel("cy", (1, 2))
        cx, cy = (0.5 if px is None else px / base[0]), (0.5 if py is None else py / base[1])
    if centre is not None:
        require_pixels(where, size, cx * size[0], cy * size[1])
    k = np.array([[fx / size[0], 0.0, cx], [0.0, fy / size[1], cy], [0.0, 0.0, 1.0]])
    return Lens((round(size[0]), round(size[1])), k, _distortion(where, levels), tuple(remarks))


def require_pixels(where: str, size: tuple[float, float], cx: float, cy: float) -> None:
    """Raises DatasetError for a principal point that seems to be divided by the size of its picture, or left at 0.

    Focal lengths that are, and these alone, are found by `label_check`, as they come of any file.
    """
    if min(size) >= _LEAST_SIZE and max(abs(cx), abs(cy)) <= 1:
        raise DatasetError(
            f"{where}: the principal point {cx:g}, {cy:g} must be in pixels of a picture of "
            f"{size[0]:g}x{size[1]:g}, and seems to be divided by the picture's size"
        )


def check_meaning(where: str, values: Mapping[str, Any]) -> None:
    """Raises DatasetError for keys under which numbers mean something else than a lens in front of a plane."""
    for name, value in values.items():
        if any(word in name.lower() for word in _OTHER_LENSES) and _is_set(value):
            raise DatasetError(
                f"{where}: {name} is {value if not isinstance(value, list | dict) else 'set'}: its pictures are no "
                "pinhole's, whatever the coefficients; undistorted pictures are legal"
            )
        if "distort" in name.lower().replace("undistort", "") and name != "distortion_params" and _is_set(value):
            raise DatasetError(
                f"{where}: {name} is set, and says in no way that is known here how the lens distorts; k1, k2, k3, p1, "
                "p2 and distortion_params are legal, and undistorted pictures"
            )
    rolling = values.get(_ROLLING)
    if _is_set(rolling):
        raise DatasetError(
            f"{where}: {_ROLLING} is set: each line of a picture has a pose of its own; one pose is legal"
        )
    for name in _OTHER_AXES:
        if _is_set(values.get(name)):
            raise DatasetError(f"{where}: {name} is set: its matrices have other axes; OpenGL's are legal")
    start, end = (values.get(name) for name in _MOVING)
    if start != end:
        raise DatasetError(f"{where}: its camera moves from {_MOVING[0]} to {_MOVING[1]}; one pose is legal")
    model = values.get("camera_model")
    if model is not None and str(model).upper() not in _PINHOLE_MODELS:
        raise DatasetError(
            f"{where}: has lens distortion (camera_model {str(model)[:40]}); undistorted pictures are legal"
        )


def _is_set(value: Any) -> bool:
    """Tells whether a flag or coefficient is other than absent, false and 0."""
    if isinstance(value, list | dict):
        return any(map(_is_set, value.values() if isinstance(value, dict) else value))
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "false", "no", "none", "off")
    return bool(value)


def _finite(where: str, name: str, value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    shown = repr(value)
    raise DatasetError(
        f"{where}: {name} must be a finite number, got {shown if len(shown) < 40 else shown[:37] + '...'}"
    )


def _shape(size: tuple[float, float]) -> float:
    return size[0] / size[1]


def _near(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(a[0] - b[0]) < 1 and abs(a[1] - b[1]) < 1


def _alike(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(_shape(a) / _shape(b) - 1) <= _SAME


def _centre_fits(level: _Level, size: tuple[float, float]) -> int:
    """Returns 1 if the level's principal point lies near the middle of a picture of `size`, -1 if far off, else 0."""
    cx, cy = level.pixel("cx", (0, 2)), level.pixel("cy", (1, 2))
    off = [abs(c / s - 0.5) for c, s in ((cx, size[0]), (cy, size[1])) if c is not None]
    if not off:
        return 0
    return 1 if max(off) < _CENTRED else -1 if max(off) > _OFF else 0


def _size_of(
    where: str,
    stated: tuple[float, float] | None,
    foreign: bool,  # the size is the file's, the lens the frame's
    focal: _Level,
    centre: _Level | None,
    real: Size,
    turned: Size,
) -> tuple[tuple[float, float], list[str]]:
    """Returns the size whose pixels the lens is in, and what was decided."""
    if stated is None:
        return real, []
    if _near(stated, real) or (turned != real and _near(stated, turned)):
        return stated, []
    shown = f"{stated[0]:g}x{stated[1]:g}"
    by_real = f"says {shown}, its picture has {real[0]}x{real[1]} pixels: the picture's size is taken"
    in_pixels = focal.matrix is not None or any(focal.values.get(n) is not None for n in ("fl_x", "fl_y"))
    told = centre is focal  # a principal point from elsewhere says nothing of this lens
    fits_real = _centre_fits(focal, real) if told else 0
    fits_stated = _centre_fits(focal, stated) if told else 0
    if fits_real > fits_stated or (foreign and fits_real == fits_stated):
        return real, [by_real]
    if _alike(stated, real) or (turned != real and _alike(stated, turned)):
        return stated, [f"is for {shown}, its picture has {real[0]}x{real[1]} pixels: taken as a scaled copy"]
    if not in_pixels:  # an angle is across the picture as it is
        return real, [by_real]
    raise DatasetError(
        f"{where}: its picture is {real[0]}x{real[1]} pixels, its camera is for {shown}; "
        "the picture was cropped or turned after its camera was found"
    )


def _focal_lengths(where: str, level: _Level, size: tuple[float, float]) -> tuple[float, float]:
    """Returns fx and fy in pixels of a picture of `size`; pixels are square unless the level says otherwise."""
    fx, fy = level.pixel("fl_x", (0, 0)), level.pixel("fl_y", (1, 1))
    fx = _of_angle(level, "camera_angle_x", size[0]) if fx is None else fx
    if fy is None and level.number("fl_x") is None:
        fy = _of_angle(level, "camera_angle_y", size[1])
    fx, fy = fx if fx is not None else fy, fy if fy is not None else fx
    if fx is None or fy is None or not (fx > 0 and fy > 0):
        raise DatasetError(f"{where}: fl_x, fl_y and angles of view must be greater than 0")
    return fx, fy


def _of_angle(level: _Level, name: str, length: float) -> float | None:
    """Returns the focal length by an angle of view in radians, or in degrees under its other name."""
    angle, most = level.number(name), math.pi
    if angle is None:
        name, most = _DEGREES[name], 180.0
        angle = level.number(name)
    if angle is None:
        return None
    if not 0 < angle < most:
        legal = "0 and pi (radians)" if most == math.pi else "0 and 180 (degrees)"
        raise DatasetError(f"{level.where}: {name} must lie between {legal}, got {angle:g}")
    return 0.5 * length / math.tan(0.5 * angle * math.pi / most)


def _disagreement(level: _Level, size: tuple[float, float]) -> list[str]:
    """Returns what is said twice with two meanings by one level."""
    given = {"fl_x": level.pixel("fl_x", (0, 0))}
    for name, angle, most in (("camera_angle_x", level.number("camera_angle_x"), math.pi),
                              ("x_fov", level.number("x_fov"), 180.0)):  # fmt: skip
        if angle is not None and 0 < angle < most:
            given[name] = 0.5 * size[0] / math.tan(0.5 * angle * math.pi / most)
    known = [(name, value) for name, value in given.items() if value is not None]
    return [
        f"has a focal length of {known[0][1]:g} pixels, and of {value:g} by {name}: the first is taken"
        for name, value in known[1:]
        if abs(value / known[0][1] - 1) > _SAME
    ]


def _distortion(where: str, levels: list[_Level]) -> Distortion:
    """Returns the distortion of the first level that says anything of it."""
    for level in levels:
        listed = level.values.get("distortion_params")
        values = {name: level.number(name) for name in (*_OPENCV, *_OTHERS)}
        if listed is not None:
            if not isinstance(listed, list) or len(listed) > 6:
                raise DatasetError(f"{where}: distortion_params must be a list of k1, k2, k3, k4, p1, p2")
            order = ("k1", "k2", "k3", "k4", "p1", "p2")  # nerfstudio's
            values |= {
                n: _finite(where, f"distortion_params[{i}]", v)
                for i, (n, v) in enumerate(zip(order, listed, strict=False))
            }
        given = {name: value for name, value in values.items() if value is not None}
        if not given:
            continue
        unclear = [name for name in _OTHERS if given.get(name)]
        if unclear:
            raise DatasetError(
                f"{where}: has lens distortion ({', '.join(unclear)}) of a kind that is not undone; "
                "undistorted pictures are legal"
            )
        return Distortion(**{name: given[name] for name in _OPENCV if name in given})
    return Distortion()
