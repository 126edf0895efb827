"""Imports posed images of other programs as an image set: COLMAP models, transforms.json.

The world of such poses has any direction, place and size. It is turned, moved and scaled here by what the cameras
themselves say, so that the same scene from any program gives the same labels:

up      +y is the direction that the cameras' horizontal axes leave free, or the axis that is asked for
middle  the origin is the point nearest to all optical axes
front   +z points to the mean camera; if the cameras surround the middle, to the first one by name
size    the median distance is the one that the generators' constants fit (2.7 for FFHQ's focal length)
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gaussian import Cameras
from gaussian.geometry import REFERENCE_HALF_EXTENT
from training.data.image_store import DatasetError, FolderStore
from training.data.label_check import check_labels
from training.data.making import colmap, nerf_transforms
from training.data.making.set_writer import Box, Item, Report, write_set
from training.data.pixels import EXTENSIONS, has_alpha, open_image

_SURROUND = 0.1  # mean horizontal offset, in camera distances, below which cameras count as surrounding the middle
_FREE = 0.2  # the least eigenvalue leaves a direction free up to this share of the middle one
_TURN = 0.02  # middle eigenvalue from which on the cameras' horizontal axes span a plane (a yaw spread of 8 degrees)


def import_colmap(
    source: Path,
    dest: Path,
    images: Path | None = None,  # folder of the pictures; None: <source>/images
    resolution: int | None = None,
    crop: str | Box | None = None,
    up: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Imports the images that a COLMAP model registered.

    Masks are <source>/masks/<name>.png, COLMAP's own, or <source>/masks/<stem>.png.
    """
    views = colmap.read_model(colmap.find_model(source))
    folder = images or source / "images"
    missing = [view.name for view in views if not (folder / view.name).is_file()]
    if missing:
        raise DatasetError(
            f"{folder / missing[0]}: no such picture (of {len(missing)} missing); --images names the folder"
        )
    pictures = [folder / view.name for view in views]
    masks = [_mask_of(source / "masks", view.name) for view in views]
    cameras = [(view.cam2world, view.camera.intrinsics) for view in views]
    sizes = [(view.camera.width, view.camera.height) for view in views]
    return _write(pictures, masks, cameras, sizes, dest, resolution, crop, up, progress)


def import_transforms(
    source: Path,
    dest: Path,
    resolution: int | None = None,
    crop: str | Box | None = None,
    up: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Imports the frames of a transforms.json. Masks: the frames' mask_path, or the images' alpha channel."""
    frames = nerf_transforms.read_transforms(source)
    cameras = [(frame.cam2world, frame.intrinsics) for frame in frames]
    pictures, masks = [frame.picture for frame in frames], [frame.mask for frame in frames]
    return _write(pictures, masks, cameras, [f.size for f in frames], dest, resolution, crop, up, progress)


def _mask_of(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.png", (folder / name).with_suffix(".png")) if p.is_file()), None)


def _write(
    pictures: list[Path],
    masks: list[Path | None],
    matrices: list[tuple[np.ndarray, np.ndarray]],
    sizes: list[tuple[int, int]],
    dest: Path,
    resolution: int | None,
    crop: str | Box | None,
    up: str,
    progress: Callable[[int], None] | None,
) -> Report:
    wrong = [p for p in pictures if p.suffix.lower() not in EXTENSIONS]
    if wrong:
        raise DatasetError(f"{wrong[0]}: is no {', '.join(EXTENSIONS)} file")
    if any(masks) and not all(masks):
        lost = pictures[masks.index(None)]
        raise DatasetError(f"{lost}: has no mask, {sum(m is not None for m in masks)} others have one")
    poses, intrinsics = (torch.from_numpy(np.stack(part)) for part in zip(*matrices, strict=True))
    cameras = Cameras(poses, intrinsics)
    labels = (cameras if up == "keep" else align(cameras, up)).labels.numpy()
    names = [str(p) for p in pictures]
    problems = check_labels("imported cameras", names, labels.tolist())
    if problems:
        raise DatasetError(f"{problems[0]} ({len(problems)} of {len(names)} cameras)")
    alpha = not any(masks) and has_alpha(open_image(pictures[0].read_bytes(), names[0]))
    items = [
        Item(f"{i:05d}", names[i], _reader(p), labels[i], None if m is None else _reader(m), alpha, sizes[i])
        for i, (p, m) in enumerate(zip(pictures, masks, strict=True))
    ]
    root = os.path.commonpath([p.parent for p in pictures])
    sources = [p.relative_to(root).as_posix() for p in pictures]
    return write_set(items, dest, resolution, crop, extra={"sources": sources}, progress=progress)


def _reader(path: Path) -> Callable[[], bytes]:
    return partial(FolderStore(path.parent).read, path.name)


def align(cameras: Cameras, up: str = "auto") -> Cameras:
    """Moves cameras [N] to a world with y up, the subject in the middle, the front at +z and FFHQ's size; float64.

    up: "auto" or an axis of the given world ("z", "-y", ...). The result is the same for every rotation, shift and
    scale of the given world if `up` is "auto". Raises DatasetError if the cameras have no middle.
    """
    cameras = cameras.to(dtype=torch.float64)
    try:
        middle = torch.tensor(cameras.summary().pivot, dtype=torch.float64)
    except ValueError as error:
        raise DatasetError(f"imported cameras: {error}") from error
    upward = _up(cameras, up)
    offsets = cameras.positions - middle  # [N, 3]
    distance = float(offsets.norm(dim=-1).quantile(0.5))
    level = offsets - (offsets @ upward)[:, None] * upward
    front = level.mean(0)
    if front.norm() < _SURROUND * distance:
        front = level[int((level.norm(dim=-1) > _SURROUND * distance).to(torch.uint8).argmax())]
    if not front.norm() > 0:
        raise DatasetError("imported cameras: all stand right above the middle; there is no front to turn to")
    z = front / front.norm()
    turn = torch.stack([torch.linalg.cross(upward, z), upward, z])  # rows: the new axes in the given world
    focal = float(cameras.intrinsics[:, 0, 0].quantile(0.5))
    scale = 2 * focal * REFERENCE_HALF_EXTENT / distance
    poses = cameras.cam2world.clone()
    poses[:, :3, :3] = turn @ cameras.cam2world[:, :3, :3]
    poses[:, :3, 3] = scale * offsets @ turn.T
    return Cameras(poses, cameras.intrinsics)


def _up(cameras: Cameras, up: str) -> torch.Tensor:
    """Returns the up direction, a unit vector [3] in the given world."""
    if up != "auto":
        axis = torch.zeros(3, dtype=torch.float64)
        axis["xyz".index(up[-1])] = -1.0 if up.startswith("-") else 1.0
        return axis
    right, down = cameras.cam2world[:, :3, 0], cameras.cam2world[:, :3, 1]
    mean = -down.mean(0)
    values, vectors = torch.linalg.eigh(right.T @ right / len(right))  # ascending
    if values[1] > _TURN and values[0] < _FREE * values[1]:
        free = vectors[:, 0]
        return free * torch.sign(free @ mean)
    if mean.norm() < 1e-6:
        raise DatasetError("imported cameras: have no common up direction; give --up")
    return mean / mean.norm()
