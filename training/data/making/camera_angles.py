"""Imports sets whose labels are angles of the camera, as EpiGRAF's: dataset.json with "camera_angles".

Of each picture yaw, pitch and roll in radians: pitch from 0 at the zenith to pi, yaw turning from the front. Cameras
look at the middle, upright; their distance is the one that the generators' constants fit. The end points of a picture
are the middles of its outermost pixels there, so its field of view is that of one pixel less. Labels are classes.

Source: Skorokhodov et al. 2022 (EpiGRAF). Roll is stored there and read by nobody.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gaussian import Cameras
from gaussian.geometry import REFERENCE_HALF_EXTENT
from training.data.classes import Classes, is_class, read_classes
from training.data.image_store import MAX_JSON_BYTES, DatasetError, Store, join, open_store, printable
from training.data.label_file import LabelError, Labels, entries_of, parse_json
from training.data.layout import LABELS, Layout, open_layout
from training.data.making.set_writer import Box, Item, Report, write_set
from training.data.names import roots_of, some, stem_of

KEY = "camera_angles"
POLE = 1e-5  # radians that a pitch stays away from the poles
LEAST = 0.1  # root of the sum of squares of all yaws, and of all pitches, below which they say nothing


def import_angles(
    source: Path,  # a folder or a zip
    dest: Path,
    resolution: int | None = None,
    crop: str | Box | None = None,
    fov: float = 12.0,  # degrees
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Writes the pictures that have angles, with labels of 25 numbers. Raises DatasetError."""
    layout = _open(source)
    where = layout.store.where(join(layout.base, LABELS))
    content = parse_json(where, layout.store.read(join(layout.base, LABELS), MAX_JSON_BYTES))
    angles, notes = _read_angles(where, content, layout)
    named = {stem: i for i, stem in enumerate(_known_as(layout, angles)) if stem is not None}
    if not named:
        first = f", such as {printable(next(iter(angles)))}," if angles else ""
        raise DatasetError(f"{where}: none of its {len(angles)} {KEY}{first} names a picture here")
    stem_at = {i: stem for stem, i in named.items()}
    used = sorted(stem_at)
    for what, others in (
        (f"pictures have no {KEY}", [stem_of(file) for i, file in enumerate(layout.files) if i not in stem_at]),
        (f"{KEY} name no picture", [printable(stem) for stem in angles if stem not in named]),
    ):
        if others:
            notes.append(f"{where}: {len(others)} {what}: {some(others)}")
    classes = _read_classes(where, content, layout, used, notes)
    items = [
        replace(
            _item(layout.store, layout.names[i], f"{place:05d}", angles[stem_at[i]], fov),
            category=int(classes.of_images[place]) if classes.count else None,
        )
        for place, i in enumerate(used)
    ]
    sources = [layout.files[i] for i in used]
    report = write_set(items, dest, resolution, crop, extra={"sources": sources} | classes.entry, progress=progress)
    report.notes[:0] = notes
    return report


def _open(source: Path) -> Layout:
    """Finds pictures and label file as the reader of sets does, also in a folder called like the source in it."""
    store = open_store(source)
    inside = not store.has(LABELS) and store.has(join(source.stem, LABELS))
    layout = open_layout(source / source.stem if inside else source, labelled=False)
    name = join(layout.base, LABELS)
    if not layout.store.has(name):
        raise DatasetError(f"{layout.store.where(name)}: not found; it must hold the {KEY} of the pictures")
    return layout


def _names_of(layout: Layout) -> tuple[list[str], str]:
    """Returns where absolute names of the label file may lie below, and what others may begin with: the set's name."""
    return roots_of(layout.store.path / layout.base), f"{layout.store.path.stem}/"


def _known_as(layout: Layout, stems: Iterable[str]) -> list[str | None]:
    """Returns for each picture which of the stems the reader of labels takes for it, or None."""
    known = Labels()
    known.update((stem, stem) for stem in stems)
    reader = replace(layout, labels=known)
    return [reader.label(i) for i in range(len(layout.names))]


def _read_classes(where: str, content: Any, layout: Layout, used: list[int], notes: list[str]) -> Classes:
    """Returns the classes of the pictures `used`, which such files have as labels. Raises DatasetError."""
    roots, title = _names_of(layout)
    try:
        labels = entries_of(where, content.get("labels") or {}, "labels", "3", roots)
    except LabelError as error:
        raise DatasetError(str(error)) from None
    known = {stem.removeprefix(title): value for stem, value in labels.items()}
    if not any(is_class(value) for value in known.values()):
        notes += [f"{where}: {len(known)} labels are no classes, and are not read"] if known else []
        return Classes()
    names = _known_as(layout, known)
    values = [None if (name := names[i]) is None else known[name] for i in used]
    found = read_classes(where, [stem_of(layout.files[i]) for i in used], values, content.get("num_classes"))
    if found.problems:
        raise DatasetError(found.problems[0])
    return found


def _read_angles(where: str, content: Any, layout: Layout) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Returns yaw and pitch by the pictures' names without extension, and lines on what is not used."""
    entries = content.get(KEY) if isinstance(content, dict) else None
    if isinstance(entries, dict):
        entries = list(entries.items())
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f'{where}: has no "{KEY}"; legal is {{"{KEY}": {{"00000.png": [yaw, pitch, roll], ...}}}}')
    found: dict[str, tuple[float, float]] = {}
    roots, title = _names_of(layout)
    rolled = 0
    for place, entry in enumerate(entries):
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise DatasetError(f'{where}: {KEY}[{place}] is not ["name.png", [yaw, pitch, roll]]')
        name, values = entry
        what = f"{where}: {KEY} of {printable(name)}"
        stem = stem_of(name, roots).removeprefix(title)
        if stem in found:
            raise DatasetError(f"{what}: there twice")
        yaw, pitch, roll = _three(what, values)
        if not -math.pi <= yaw <= math.pi:
            raise DatasetError(f"{what}: yaw={yaw:g}: -pi to pi are legal, radians")
        if not 0 <= pitch <= math.pi:
            raise DatasetError(f"{what}: pitch={pitch:g}: 0 (from above) to pi are legal, radians")
        rolled += abs(roll) > 1e-6
        found[stem] = yaw, pitch
    for name, numbers in (("yaw", [y for y, _ in found.values()]), ("pitch", [p for _, p in found.values()])):
        if math.hypot(*numbers) <= LEAST:
            raise DatasetError(f"{where}: {KEY}: every {name} is 0: they say nothing of the cameras")
    return found, [f"{where}: {rolled} cameras have a roll, which is not read"] if rolled else []


def _three(what: str, values: Any) -> tuple[float, float, float]:
    numbers = values if isinstance(values, list) else []
    if len(numbers) != 3 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise DatasetError(f"{what}: three numbers are legal: yaw, pitch, roll")
    if not all(math.isfinite(v) for v in numbers):
        raise DatasetError(f"{what}: must be finite")
    yaw, pitch, roll = (float(v) for v in numbers)
    return yaw, pitch, roll


def _item(store: Store, name: str, stem: str, angles: tuple[float, float], fov: float) -> Item:
    try:
        with Image.open(io.BytesIO(store.read(name))) as picture:
            pixels = picture.width
    except (OSError, ValueError) as error:
        raise DatasetError(f"{store.where(name)}: cannot be read: {error}") from None
    if pixels < 2:
        raise DatasetError(f"{store.where(name)}: has {pixels} pixels across; 2 are the least")
    camera = camera_of(*angles, 0.5 / math.tan(math.radians(fov / 2)) * (pixels - 1) / pixels)
    return Item(stem, store.where(name), partial(store.read, name), camera.labels.numpy())


def camera_of(yaw: float, pitch: float, focal: float) -> Cameras:
    """Returns a camera (leading shape []) of angles in radians; focal: in image widths. float64."""
    pitch = min(max(pitch, POLE), math.pi - POLE)
    way = (-math.sin(pitch) * math.sin(yaw), math.cos(pitch), math.sin(pitch) * math.cos(yaw))
    distance = 2 * focal * REFERENCE_HALF_EXTENT
    intrinsics = torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float64)
    return Cameras.look_at([distance * v for v in way], (0.0, 0.0, 0.0), intrinsics=intrinsics)
