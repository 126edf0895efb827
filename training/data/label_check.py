"""Checks camera labels before any training, since a wrong convention trains without an error.

A label is 25 numbers: the camera-to-world matrix (4x4, row-major, OpenCV axes: x right, y down, z forward), then the
intrinsics (3x3, row-major, normalised by the image size). Each check has its own message, one line that names the file,
the image and the field.
"""

import os
from collections.abc import Iterable, Sequence
from typing import SupportsFloat

import numpy as np
import torch

from gaussian import Cameras
from gaussian.cameras import LABEL_WIDTH
from training.data.label_file import LabelError
from training.data.world_axes import other_up

_ORTHONORMAL_TOLERANCE = 1e-3  # on the entries of R^T R; float32 labels written with 4 digits pass
_EXACT_TOLERANCE = 1e-5  # on numbers that must be 0 or 1
_PIXEL_FOCAL = 50.0  # image widths: a field of view of 1.1 degrees; focal lengths in pixels are above
_LEAST_FOCAL = 0.1  # image widths: a field of view of 157 degrees; focal lengths that were divided twice are below
_PIXEL_CENTRE = 2.0  # image widths; principal points in pixels are above
_VIEW_MARGIN = 0.5  # image widths by which the middle of the set may miss the picture
# The median angle (rad) between the optical axes and the middle may be the floor plus the ratio times that of the
# inverted poses.
_MISS_FLOOR, _MISS_RATIO = 0.02, 4.0
_LARGEST = 1e6  # limit on any number in a label; float32 positions beyond resolve no image

Label = object  # what dataset.json holds for an image: 25 numbers where all is well, else any JSON value, or None


_AXES = {
    "OpenCV": "OpenCV axes (x right, y down, z forward)",
    "OpenGL": "OpenGL axes (x right, y up, z backward)",
}  # of cameras


def label_problems(labels: Sequence[Label], axes: str = "OpenCV") -> dict[int | None, str]:
    """Returns what is wrong with labels, by their position; None stands for all of them. Empty if nothing is wrong.

    labels: per image its 25 numbers, or None where there are none. Where the cameras look is checked when each label is
    well formed. axes: those of the poses before they became labels, which messages are about.
    """
    problems: dict[int | None, str] = {}
    for i, label in enumerate(labels):
        problem = _check_numbers(label)
        if problem:
            problems[i] = problem
    well_formed = [i for i in range(len(labels)) if i not in problems]
    if well_formed:
        values = np.array([labels[i] for i in well_formed], dtype=np.float64)  # [M, 25]
        problems |= {well_formed[row]: what for row, what in _check_matrices(values)}
        if not problems:
            problems |= _check_aim(torch.from_numpy(values), axes)
    return {i: problems[i] for i in sorted(problems, key=lambda i: -1 if i is None else i)}


def check_labels(source: str, names: Sequence[str], labels: Sequence[Label], axes: str = "OpenCV") -> list[str]:
    """Returns `label_problems` as lines; `names` are the labels' images, `source` is the file they come from."""
    return problem_lines(source, names, label_problems(labels, axes))


def problem_lines(source: str, names: Sequence[str], problems: dict[int | None, str]) -> list[str]:
    """Returns what `label_problems` has found as lines, as `check_labels` does."""
    return [
        f"{source}: {f'all {len(names)} labels' if i is None else names[i]}: {what}" for i, what in problems.items()
    ]


def require_labels(source: str, names: Sequence[str], labels: Sequence[Label]) -> np.ndarray:
    """Returns labels as float64 [N, 25]; raises LabelError with the first problem and the number of the others."""
    problems = check_labels(source, names, labels)
    if problems:
        others = f" (and {len(problems) - 1} more: dataset_tool.py validate lists them)" if len(problems) > 1 else ""
        raise LabelError(problems[0] + others)
    return np.asarray(labels, dtype=np.float64).reshape(-1, LABEL_WIDTH)


def label_notes(source: str, labels: Sequence[Label], path: str | os.PathLike[str]) -> list[str]:
    """Returns a line if the world of well-formed labels has another up than +y; `path` is the set's, in messages."""
    if any(_check_numbers(label) for label in labels):
        return []
    axis = other_up(
        Cameras.from_labels(torch.from_numpy(np.asarray(labels, dtype=np.float64).reshape(-1, LABEL_WIDTH)))
    )
    if axis is None:
        return []
    return [
        f"{source}: the cameras' up is world {axis} and not y: films would turn about the wrong axis; "
        f"dataset_tool.py import {path} --from=eg3d --up={axis} --dest=NEW turns the set"
    ]


def _check_numbers(label: Label) -> str | None:
    if label is None:
        return "has no label"
    if not isinstance(label, list | tuple | np.ndarray) or len(label) != LABEL_WIDTH:
        size = f"{len(label)} numbers" if hasattr(label, "__len__") else repr(label)
        return f"label: must be {LABEL_WIDTH} numbers (camera-to-world 4x4, intrinsics 3x3), got {size}"
    if any(hasattr(value, "__len__") and not isinstance(value, str) for value in label):
        return f"label: must be a flat list of {LABEL_WIDTH} numbers"
    values = np.asarray(label)
    # Text, null, booleans, and whole numbers beyond 64 bits; a boolean among numbers would count as 0 or 1.
    if values.dtype.kind not in "iuf" or any(isinstance(value, bool) for value in label):
        return "label: holds something that is not a number"
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        return f"label[{int(np.argmin(np.isfinite(values)))}]: must be finite, got NaN or infinity"
    if np.abs(values).max() > _LARGEST:
        worst = int(np.abs(values).argmax())
        return f"label[{worst}]: must lie within {_LARGEST:.0e}, got {values[worst]:.4g}"
    return None


def _check_matrices(values: np.ndarray) -> list[tuple[int, str]]:
    """Returns (row, problem) for each label [N, 25] whose matrices are no rigid pose or no normalised intrinsics."""
    pose, intrinsics = values[:, :16].reshape(-1, 4, 4), values[:, 16:].reshape(-1, 3, 3)
    rotation = pose[:, :3, :3]
    unit = np.array([0.0, 0.0, 0.0, 1.0])

    def off(actual: np.ndarray, expected: np.ndarray | float) -> np.ndarray:  # [N] bool
        return np.abs(actual - expected).reshape(len(values), -1).max(axis=1) > _EXACT_TOLERANCE

    bottom = off(pose[:, 3], unit)
    transposed = bottom & ~off(pose[:, :, 3], unit)
    gram = np.swapaxes(rotation, -1, -2) @ rotation
    skewed = np.abs(gram - np.eye(3)).max(axis=(1, 2)) > _ORTHONORMAL_TOLERANCE
    mirrored = np.linalg.det(rotation) < 0.0
    fx, fy, cx, cy = intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2]
    pixels = (np.maximum(fx, fy) > _PIXEL_FOCAL) | (np.maximum(np.abs(cx), np.abs(cy)) > _PIXEL_CENTRE)
    checks = [
        (transposed, lambda i: "pose (label[0:16]): is transposed; the translation belongs in label[3], [7] and [11]"),
        (bottom, lambda i: f"pose (label[0:16]): the last row must be 0 0 0 1, got {_numbers(pose[i, 3])}"),
        (
            skewed,
            lambda i: (
                f"rotation (label[0:12]): must be orthonormal; R^T R has the diagonal {_numbers(np.diag(gram[i]))}"
            ),
        ),
        (mirrored, lambda i: "rotation (label[0:12]): must have determinant +1, got -1 (one axis is flipped)"),
        (
            pixels,
            lambda i: (
                "intrinsics (label[16:25]): must be divided by the image size, these look like pixels: "
                f"fx, fy, cx, cy = {_numbers((fx[i], fy[i], cx[i], cy[i]))}"
            ),
        ),
        (
            np.minimum(fx, fy) < _LEAST_FOCAL,
            lambda i: (
                f"intrinsics (label[16:25]): fx and fy must be at least {_LEAST_FOCAL:g} image widths, "
                f"got {_numbers((fx[i], fy[i]))}"
            ),
        ),
        (
            off(intrinsics[:, [0, 1], [1, 0]], 0.0) | off(intrinsics[:, 2], unit[1:]),
            lambda i: (
                f"intrinsics (label[16:25]): must be fx 0 cx, 0 fy cy, 0 0 1 (no skew), got {_numbers(values[i, 16:])}"
            ),
        ),
    ]
    wrong = np.nonzero(np.any([bad for bad, _ in checks], axis=0))[0].tolist()
    return [(i, next(message(i) for bad, message in checks if bad[i])) for i in wrong]


def _check_aim(values: torch.Tensor, axes: str) -> dict[int | None, str]:
    """Returns problems by row for cameras that look away from the middle of the set; row None is the whole set."""
    cameras = Cameras.from_labels(values)
    inverses = Cameras(cameras.world2cam, cameras.intrinsics)
    flipped = Cameras(cameras.cam2world * torch.tensor([1.0, -1.0, -1.0, 1.0]), cameras.intrinsics)
    middle, inverse_middle, flipped_middle = (_middle(c) for c in (cameras, inverses, flipped))
    # World-to-camera matrices of an orbit put all cameras at one place, where a narrow spread still sees the middle.
    bound = _MISS_FLOOR + _MISS_RATIO * _miss(inverses, inverse_middle).median()
    expected = f"camera-to-world with {_AXES[axes]} is expected"
    if _miss(cameras, middle).median() > bound and _miss(flipped, flipped_middle).median() > bound:
        return {None: f"pose (label[0:16]): is world-to-camera (the inverses look at one point); {expected}"}
    seen = _sees(cameras, middle)
    others = next(name for name in _AXES if name != axes)
    other = _sees(flipped, middle) | _sees(flipped, flipped_middle)
    inverted = _sees(inverses, middle) | _sees(inverses, inverse_middle)
    point = _numbers(middle.tolist())
    found: dict[int | None, str] = {}
    for i in torch.nonzero(~seen).flatten().tolist():
        guess = f"{others} axes?" if other[i] else "world-to-camera?" if inverted[i] else "another convention?"
        what = f"the camera looks away from the middle of the set at {point}: {guess}"
        found[i] = f"pose (label[0:16]): {what} {expected}"
    return found


def _middle(cameras: Cameras) -> torch.Tensor:
    """Returns the centre [3] of the cameras; for cameras that all stand at one place, that place."""
    try:
        return torch.tensor(cameras.summary().centre, dtype=cameras.dtype)
    except ValueError:
        return cameras.positions.mean(0)


def _to_middle(cameras: Cameras, middle: torch.Tensor) -> torch.Tensor:
    """Returns the middle in each camera's axes, [N, 3]."""
    return ((middle - cameras.positions)[:, None] @ cameras.cam2world[:, :3, :3])[:, 0]


def _miss(cameras: Cameras, middle: torch.Tensor) -> torch.Tensor:
    """Returns the angles [N] in radians between the optical axes and the middle."""
    x, y, z = _to_middle(cameras, middle).unbind(-1)
    return torch.atan2(torch.hypot(x, y), z)


def _sees(cameras: Cameras, middle: torch.Tensor) -> torch.Tensor:
    """Tells for each camera, bool [N], whether the middle is before it and inside the image widened by the margin."""
    xy, z = cameras.project(middle.expand(len(cameras), 1, 3))
    return (z[:, 0] > 0) & ((xy[:, 0] - 0.5).abs() <= 0.5 + _VIEW_MARGIN).all(-1)


def _numbers(values: Iterable[SupportsFloat]) -> str:
    return ", ".join(f"{float(v):.4g}" for v in values)
