"""Reads index lists: which images of a set a run uses, and how often.

A list is a JSON file with numbers (the digits at the end of an image's name) or names, duplicates allowed; the set then
has one item per entry whose image is there, in the order of the list. Published lists are `ffhq_default` and
`smile_pose_rebalancing`; `dataset_tool.py rebalance` writes one for any set.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

import dnnlib
from training.data.image_store import MAX_JSON_BYTES, DatasetError, join, printable
from training.data.label_file import parse_json
from training.data.layout import Layout, numbers_of
from training.data.names import roots_of, some, stem_of

CUSTOM_LISTS = dnnlib.ROOT / "custom_dist"  # of a checkout; installed code has none, and the working folder serves
DEFAULT_LIST = "smile_pose_rebalancing"  # the published default, where it lies beside the data
FFHQ_LIST = "ffhq_default"  # omits 43 of 70,000 images
ALL = "all"


class IndexList(NamedTuple):
    """Describes the images that a run uses."""

    items: np.ndarray  # int64 [N], positions in the layout
    name: str  # "all", or the list's name as given
    description: str  # one line for the messages at the start of a run


def resolve_index_list(layout: Layout, wanted: str | os.PathLike[str] | None) -> IndexList:
    """Returns the items of a set under the list `wanted`.

    wanted: "all"; a file; a name, looked up as <name>.json beside dataset.json, then in custom_dist/ of the working
    folder and of the project; or None for `smile_pose_rebalancing` if it lies beside dataset.json, else all images.
    `ffhq_default` without a file is all images. Raises DatasetError for any other list that is not there, or that names
    no image of the set.
    """
    count = len(layout.names)
    everything = IndexList(np.arange(count), ALL, f"all {count} labelled images")
    if wanted is None:
        found = _beside(layout, DEFAULT_LIST)
        return everything if found is None else _read(layout, DEFAULT_LIST, *found)
    value = os.fspath(wanted)
    if value == ALL:
        return everything
    if os.path.isfile(value):
        return _read(layout, value, os.path.abspath(value), _read_file(Path(value)))
    if value.endswith(".json") or os.sep in value:
        raise DatasetError(f"{printable(value)}: no such index list")
    found = _beside(layout, value) or _of_project(value)
    if found is not None:
        return _read(layout, value, *found)
    if value == FFHQ_LIST:
        return everything._replace(description=f"all {count} labelled images ({FFHQ_LIST}.json is not there)")
    raise DatasetError(
        f"--index-list={printable(value)}: not found; put it at {_place_beside(layout, value)} or as "
        f"{CUSTOM_LISTS.name}/{printable(value)}.json into the working folder, or give a file"
    )


def _place_beside(layout: Layout, name: str) -> Path:
    folder = Path(layout.label_source).parent
    return next((p.parent for p in (folder, *folder.parents) if p.is_file()), folder) / f"{name}.json"


def _beside(layout: Layout, name: str) -> tuple[str, bytes] | None:
    """Returns place and bytes of the list, in the store or beside the zip; None if it is not there."""
    within = join(layout.base, f"{name}.json")
    if layout.store.has(within):
        return layout.store.where(within), layout.store.read(within, MAX_JSON_BYTES)
    path = _place_beside(layout, name)
    return (str(path), _read_file(path)) if path.is_file() else None


def _of_project(name: str) -> tuple[str, bytes] | None:
    paths = (folder / f"{name}.json" for folder in (Path.cwd() / CUSTOM_LISTS.name, CUSTOM_LISTS))
    return next(((str(path), _read_file(path)) for path in paths if path.is_file()), None)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{printable(str(path))}: cannot be read: {error.strerror}") from error


def _read(layout: Layout, name: str, source: str, data: bytes) -> IndexList:
    source = printable(source)
    try:
        entries = parse_json(source, data)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    if isinstance(entries, list) and entries and all(type(n) is int for n in entries):
        places = _places_by_number(layout, source)
        found = [places.get(n) for n in entries]
    elif isinstance(entries, list) and entries and all(type(n) is str for n in entries):
        by_name = {stem_of(file): i for i, file in enumerate(layout.files)}
        by_name |= {stem: i for i, stem in enumerate(layout.stems)}
        roots = roots_of(layout.store.path / layout.base)
        found = [by_name.get(stem_of(n, roots)) for n in entries]
    else:
        raise DatasetError(f"{source}: must be a JSON list of whole numbers, or of names of images")
    items = [place for place in found if place is not None]
    lost = [str(n) for n, place in zip(entries, found, strict=True) if place is None]
    if not items:
        example = f"{printable(lost[0])!r}, the first image is called {layout.files[0]!r}"
        raise DatasetError(f"{source}: names no image of the set; its first entry is {example}")
    used, description = len(set(items)), f"{name} ({source}): {len(items)} items, "
    if lost:
        left = f"{len(items)} used of {len(entries)}; the others name no image of the set: {some(lost)}"
        description = f"{name} ({source}): {printable(left)}; "
    return IndexList(np.array(items, dtype=np.int64), name, f"{description}{used} images")


def _places_by_number(layout: Layout, source: str) -> dict[int, int]:
    numbers = numbers_of(layout.stems)
    places: dict[int, int] = {}
    for place, number in enumerate(numbers.tolist()):
        if number in places:
            two = f"{layout.files[places[number]]} and {layout.files[place]}"
            raise DatasetError(f"{source}: {two} have the same number; a list of names is legal here")
        if number >= 0:
            places[number] = place
    return places
