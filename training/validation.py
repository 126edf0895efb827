"""Everything that is wrong with an image set, file by file."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from training.image_store import DatasetError
from training.label_check import check_labels
from training.layout import Layout, open_layout
from training.pixels import DECODERS, open_image


def validate_set(path: str | os.PathLike, progress: Callable[[int], None] | None = None) -> list[str]:
    """What keeps the set at `path` from being used, one line per problem, each naming its file; empty if all is well.

    Every image and mask is decoded. progress is told how many files have been looked at since it was last called.
    """
    try:
        layout = open_layout(path)
    except ValueError as error:
        return [str(error)]
    labels = [layout.label(i) for i in range(len(layout.names))]
    problems = layout.problems + layout.missing_masks() + check_labels(layout.label_source, layout.files, labels)
    with ThreadPoolExecutor(DECODERS) as pool:
        sizes = Counter(size for size in pool.map(lambda i: _size_of(layout, i), range(len(layout.names))) if size)
        resolution = min(sizes.most_common(1)[0][0]) if sizes else 0

        def problem_of(index: int) -> str | None:
            found = _problem_of(layout, index, resolution)
            if progress is not None:
                progress(1)
            return found

        return problems + [found for found in pool.map(problem_of, range(len(layout.names))) if found]


def _size_of(layout: Layout, index: int) -> tuple[int, int] | None:
    """Width and height of an image as its head says; None if it cannot be read."""
    try:
        name = layout.names[index]
        return open_image(layout.store.read(name), layout.store.where(name), decode=False).size
    except DatasetError:
        return None  # named when it is decoded


def _problem_of(layout: Layout, index: int, resolution: int) -> str | None:
    if layout.mask_store is not None and layout.stems[index] not in layout.masks:
        return None  # named already
    try:
        layout.decode(index, resolution)
    except DatasetError as error:
        return str(error)
    return None
