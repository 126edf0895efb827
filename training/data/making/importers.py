"""Imports posed images of other programs as an image set: COLMAP models, transforms.json.

The world of such poses has any direction, place and size. It is turned, moved and scaled by what the cameras
themselves say (`world_axes.align`), so that the same scene from any program gives the same labels:

up      +y is the direction that the cameras' horizontal axes leave free, or the axis that is asked for
middle  the origin is the point nearest to all optical axes
front   +z points to the mean camera; if the cameras surround the middle, to the first one by name
size    the median distance is the one that the generators' constants fit (2.7 for FFHQ's focal length)
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gaussian import Cameras
from training.data.image_store import DatasetError, FolderStore, printable
from training.data.label_check import check_labels
from training.data.making import colmap, nerf_transforms
from training.data.making.camera_steps import UNDISTORT, Shot, prepare
from training.data.making.mask_files import find_masks, unused_masks
from training.data.making.set_writer import Box, Item, Report, require_free, write_set
from training.data.names import PICTURE_ENDINGS, Folder, some
from training.data.pixels import EXTENSIONS
from training.data.world_axes import align

__all__ = ["align", "import_colmap", "import_transforms"]

Progress = Callable[[int], None] | None


def import_colmap(
    source: Path,
    dest: Path,
    images: Path | None = None,  # folder of the pictures; None: images/ of the project
    resolution: int | None = None,
    crop: str | Box | None = None,
    up: str = "auto",
    progress: Progress = None,
    distortion: str = UNDISTORT,
) -> Report:
    """Imports the images that the largest COLMAP model in `source` registered.

    Masks are <project>/masks/<name>.png, COLMAP's own, or <project>/masks/<stem>.png. distortion: see
    `camera_steps.prepare`.
    """
    require_free(dest)
    model, views, notes = colmap.read_largest(source)
    pictures_folder, project = _project(source, images)
    folder = Folder(pictures_folder)
    found = [folder.find(view.name) for view in views]
    missing = [view.name for view, path in zip(views, found, strict=True) if path is None]
    if missing:
        raise DatasetError(
            f"{printable(str(folder.path / missing[0]))}: no such picture (of {len(missing)} missing); "
            "--images names the folder"
        )
    pictures = [path for path in found if path is not None]
    _require_single(pictures, [view.name for view in views], model)
    beside = Folder(project / "masks")
    masks = find_masks(beside, [view.name for view in views])
    shots = [
        Shot(path, mask, view.cam2world, view.camera.intrinsics,
             (view.camera.width, view.camera.height), view.camera.distortion)
        for path, mask, view in zip(pictures, masks, views, strict=True)
    ]  # fmt: skip
    notes += unused_masks(beside, masks)
    notes += _unused(folder, pictures, "is not registered in the model", "are not registered in the model")
    return _write(shots, notes, dest, resolution, crop, up, progress, distortion)


def import_transforms(
    source: Path,
    dest: Path,
    resolution: int | None = None,
    crop: str | Box | None = None,
    up: str = "auto",
    progress: Progress = None,
    distortion: str = UNDISTORT,
) -> Report:
    """Imports the frames of a transforms.json. Masks: the frames' mask_path, or the images' alpha channel."""
    require_free(dest)
    frames, notes = nerf_transforms.read_transforms(source)
    shots = [Shot(f.picture, f.mask, f.cam2world, f.lens.intrinsics, f.lens.size, f.lens.distortion) for f in frames]
    pictures = [frame.picture for frame in frames]
    masks = {frame.mask for frame in frames if frame.mask is not None}
    for place in sorted({path.parent for path in pictures}):
        own = [path for path in pictures if path.parent == place]
        beside = Folder(place)
        if place in [mask.parent for mask in masks]:
            own += [mask for mask in masks if mask.parent == place]
        notes += _unused(beside, own, "is in no frame", "are in no frame", flat=True)
    return _write(shots, notes, dest, resolution, crop, up, progress, distortion, axes="OpenGL")


def _project(source: Path, images: Path | None) -> tuple[Path, Path]:
    """Returns the folder of the pictures, and that of the project, which may hold masks."""
    # A path to a model itself, sparse/0, is two folders below its project.
    places = (source, *Path(os.path.abspath(source)).parents[:2])
    wanted = "images" if images is None else "masks"
    project = next((place for place in places if (place / wanted).is_dir()), source)
    return images or project / "images", project


def _require_single(pictures: Sequence[Path], names: Sequence[str], model: Path) -> None:
    """Raises DatasetError if two names of a model mean the same picture."""
    seen: dict[Path, str] = {}
    for path, name in zip(pictures, names, strict=True):
        if path in seen:
            raise DatasetError(f"{model}: {seen[path]} and {name} are the same picture, with two poses")
        seen[path] = name


def _unused(folder: Folder, used: Sequence[Path], one: str, many: str, flat: bool = False) -> list[str]:
    """Returns a line if there are more pictures below `folder` than are used; flat: only those in it."""
    chosen = {path.resolve() for path in used}
    files = [p for p in folder.files() if p.suffix.lower() in PICTURE_ENDINGS and (not flat or p.parent == folder.path)]
    others = [p for p in files if p.resolve() not in chosen]
    if not others:
        return []
    lost = [p.relative_to(folder.path).as_posix() for p in others if p.suffix.lower() in EXTENSIONS]
    foreign = [p.relative_to(folder.path).as_posix() for p in others if p.suffix.lower() not in EXTENSIONS]
    parts = [f"{len(lost)} {one if len(lost) == 1 else many} ({some(lost)})"] if lost else []
    if foreign:
        parts.append(f"{len(foreign)} of a format that is not read ({some(foreign)})")
    total = len(files)
    return [f"{folder.path}: {total - len(others)} used of {total} pictures; of the others {', '.join(parts)}"]


def _write(
    shots: list[Shot],
    notes: list[str],
    dest: Path,
    resolution: int | None,
    crop: str | Box | None,
    up: str,
    progress: Progress,
    distortion: str,
    axes: str = "OpenCV",  # of the cameras in the file
) -> Report:
    """Brings cameras and pictures into the form of a set, and writes it."""
    names = [str(shot.picture) for shot in shots]
    wrong = [name for shot, name in zip(shots, names, strict=True) if shot.picture.suffix.lower() not in EXTENSIONS]
    if wrong:
        raise DatasetError(f"{wrong[0]}: is no {', '.join(EXTENSIONS)} file (of {len(wrong)})")
    bare = [name for shot, name in zip(shots, names, strict=True) if shot.mask is None]
    if 0 < len(bare) < len(shots):
        raise DatasetError(f"{bare[0]}: has no mask, {len(shots) - len(bare)} others have one")
    ready = prepare(shots, distortion)
    alphas = [name for name, each in zip(names, ready.views, strict=True) if each.has_alpha]
    alpha = bool(bare) and 2 * len(alphas) >= len(shots)
    cameras = Cameras(
        torch.from_numpy(np.stack([each.cam2world for each in ready.views])),
        torch.from_numpy(np.stack([each.intrinsics for each in ready.views])),
    )
    problems = check_labels("imported cameras", names, cameras.labels.tolist(), axes)
    if problems:
        raise DatasetError(f"{problems[0]} ({len(problems)} of {len(names)} cameras)")
    labels = (cameras if up == "keep" else align(cameras, up)).labels.numpy()
    items = [
        Item(f"{i:05d}", names[i], _reader(shot.picture), labels[i], None if shot.mask is None else _reader(shot.mask),
             alpha, steps=ready.views[i].steps, turn=ready.views[i].turn)
        for i, shot in enumerate(shots)
    ]  # fmt: skip
    root = os.path.commonpath([shot.picture.parent for shot in shots])
    sources = [shot.picture.relative_to(root).as_posix() for shot in shots]
    report = write_set(items, dest, resolution, crop, extra={"sources": sources}, progress=progress)
    if alphas and not bare:
        notes.append("the masks' files are used, and not the alpha channel that pictures have too")
    report.notes[:0] = notes + ready.notes
    return report


def _reader(path: Path) -> Callable[[], bytes]:
    return partial(FolderStore(path.parent).read, path.name)
