"""Makes an image set from another: other sizes, crops, another container, or without faulty files."""

import os
from collections.abc import Callable
from functools import partial

import numpy as np

from training.data.label_check import label_problems, require_labels
from training.data.label_file import LabelError
from training.data.layout import Layout, open_layout
from training.data.making.set_writer import CENTRE, Box, Item, Report, write_set

Progress = Callable[[int], None] | None


def convert_set(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    resolution: int | None = None,
    crop: str | Box | None = None,
    rename: bool = False,
    progress: Progress = None,
) -> Report:
    """Writes the set at `path` again, see `write_set`; masks stay masks, intrinsics follow the crop.

    rename: call the images 00000, 00001, ... in the order of their names, and keep their names under "sources".
    Raises DatasetError or LabelError at the first thing that is wrong.
    """
    layout = open_layout(path)
    layout.require_whole()
    labels = [layout.label(i) for i in range(len(layout.names))]
    require_labels(layout.label_source, layout.files, labels)
    names = [f"{i:05d}" for i in range(len(labels))] if rename else layout.stems
    items = [_item(layout, i, names[i]) for i in range(len(labels))]
    extra = {"sources": layout.files} if rename else None
    return write_set(items, dest, resolution, crop, extra=extra, progress=progress)


def fix_set(
    path: str | os.PathLike[str], dest: str | os.PathLike[str], resolution: int | None = None, progress: Progress = None
) -> Report:
    """Writes a copy that passes `validate_set`: square 8-bit RGB images and masks of the commonest size.

    Pictures that cannot be read, have no mask or no legal label are left out and listed. Raises LabelError if the
    labels as a whole are in another convention, which no copying mends.
    """
    layout = open_layout(path)
    dropped = layout.problems + layout.missing_masks()
    problems = label_problems([layout.label(i) for i in range(len(layout.names))])
    if None in problems:
        raise LabelError(f"{layout.label_source}: all labels: {problems[None]}")
    dropped += [f"{layout.label_source}: {layout.files[i]}: {what}" for i, what in problems.items() if i is not None]
    seen: set[str] = set()
    items = []
    for i, stem in enumerate(layout.stems):
        masked = layout.mask_store is None or stem in layout.masks
        if i not in problems and masked and stem not in seen:
            seen.add(stem)
            items.append(_item(layout, i, stem))
    report = write_set(items, dest, resolution, CENTRE, tolerant=True, progress=progress)
    report.dropped[:0] = dropped
    return report


def _item(layout: Layout, index: int, stem: str) -> Item:
    name, store, masks = layout.names[index], layout.store, layout.mask_store
    return Item(
        stem=stem,
        source=store.where(name),
        read=partial(store.read, name),
        label=np.asarray(layout.label(index), dtype=np.float64),
        read_mask=None if masks is None else partial(masks.read, layout.masks[layout.stems[index]]),
        alpha=layout.alpha,
    )
