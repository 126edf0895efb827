"""Makes an image set from another: other sizes, crops, another container, or without faulty files."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from gaussian import Cameras
from training.data.classes import Classes
from training.data.image_store import DatasetError
from training.data.label_check import label_problems, require_labels
from training.data.label_file import LabelError
from training.data.layout import Layout, open_layout
from training.data.making.set_writer import CENTRE, Box, Item, Report, require_free, write_set
from training.data.validation import judge_masks, look_at_all
from training.data.world_axes import turn_up

Progress = Callable[[int], None] | None


def convert_set(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    resolution: int | None = None,
    crop: str | Box | None = None,
    rename: bool = False,
    progress: Progress = None,
    up: str = "keep",
) -> Report:
    """Writes the set at `path` again, see `write_set`; masks stay masks, intrinsics follow the crop.

    up: turn the world about its origin so that this axis of it ("auto": the one that is up for the cameras) is y.
    rename: call the images 00000, 00001, ... in the order of their names, and keep their names under "sources".
    Raises DatasetError or LabelError at the first thing that is wrong.
    """
    require_free(dest)
    layout = open_layout(path)
    layout.require_whole()
    found = [layout.label(i) for i in range(len(layout.names))]
    labels = require_labels(layout.label_source, layout.files, found)
    if up != "keep":
        labels = turn_up(Cameras.from_labels(torch.from_numpy(labels)), up).labels.numpy()
    names = [f"{i:05d}" for i in range(len(labels))] if rename else layout.stems
    classes = layout.classes()
    items = [_item(layout, i, names[i], labels[i], classes) for i in range(len(labels))]
    extra = ({"sources": layout.files} if rename else {}) | classes.entry
    report = write_set(items, dest, resolution, crop, extra=extra, progress=progress)
    report.notes[:0] = [*layout.notes, *(f"classes are left out: {problem}" for problem in classes.problems)]
    return report


def fix_set(
    path: str | os.PathLike[str], dest: str | os.PathLike[str], resolution: int | None = None, progress: Progress = None
) -> Report:
    """Writes a copy that passes `validate_set`: square 8-bit RGB images and masks of the commonest size.

    Masks of 0 and 1 and inverted ones are mended. Pictures that cannot be read, have no mask or no legal label are left
    out and listed. Raises LabelError if the labels as a whole are in another convention, and DatasetError for masks
    whose meaning is not clear: no copying mends these.
    """
    require_free(dest)
    layout = open_layout(path)
    dropped = layout.problems + layout.missing_masks()
    problems = label_problems([layout.label(i) for i in range(len(layout.names))])
    if None in problems:
        raise LabelError(f"{layout.label_source}: all labels: {problems[None]}")
    dropped += [f"{layout.label_source}: {layout.files[i]}: {what}" for i, what in problems.items() if i is not None]
    verdict = judge_masks(layout, look_at_all(layout))
    if verdict.problems and verdict.mend is None:
        raise DatasetError(f"{verdict.problems[0]}; what the values mean is not clear, so --fix does not change them")
    seen: set[str] = set()
    items, classes = [], layout.classes()
    for i, stem in enumerate(layout.stems):
        masked = layout.mask_store is None or stem in layout.masks
        if i not in problems and masked and stem not in seen:
            seen.add(stem)
            label = np.asarray(layout.label(i), dtype=np.float64)
            items.append(replace(_item(layout, i, stem, label, classes), mend_mask=verdict.mend))
    report = write_set(items, dest, resolution, CENTRE, tolerant=True, extra=classes.entry, progress=progress)
    report.dropped[:0] = dropped
    report.notes[:0] = [*layout.notes, *(f"classes are left out: {problem}" for problem in classes.problems)]
    if verdict.problems:
        report.notes.append(f"{len(verdict.problems)} faults of masks are mended, such as {verdict.problems[0]}")
    return report


def _item(layout: Layout, index: int, stem: str, label: np.ndarray, classes: Classes) -> Item:
    name, store, masks = layout.names[index], layout.store, layout.mask_store
    return Item(
        stem=stem,
        source=store.where(name),
        read=partial(store.read, name),
        label=label,
        read_mask=None if masks is None else partial(masks.read, layout.masks[layout.stems[index]]),
        alpha=layout.alpha,
        category=int(classes.of_images[index]) if classes.count else None,
    )
