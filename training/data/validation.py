"""Finds everything that is wrong with an image set, file by file."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from training.data.image_store import DatasetError
from training.data.label_check import check_labels
from training.data.layout import open_layout
from training.data.pixels import wrong_size

_DECODERS = 4  # threads; reading, inflating and decoding release the interpreter lock


def validate_set(path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> list[str]:
    """Returns what keeps the set at `path` from being used, one line per problem, each naming its file.

    Every image and mask is decoded. progress is called with the number of files checked since its last call.
    """
    try:
        layout = open_layout(path)
    except ValueError as error:
        return [str(error)]
    labels = [layout.label(i) for i in range(len(layout.names))]
    problems = layout.problems + layout.missing_masks() + check_labels(layout.label_source, layout.files, labels)

    def look(index: int) -> tuple[int, int] | str | None:
        """Returns width and height of an image that can be read; else its problem, None if it is reported already."""
        found: tuple[int, int] | str | None = None
        if layout.mask_store is None or layout.stems[index] in layout.masks:
            try:
                pixels, _ = layout.decode(index, None)
                found = pixels.shape[2], pixels.shape[1]
            except DatasetError as error:
                found = str(error)
        if progress is not None:
            progress(1)
        return found

    with ThreadPoolExecutor(_DECODERS) as pool:
        looks = list(pool.map(look, range(len(layout.names))))
    sizes = Counter(found for found in looks if isinstance(found, tuple))
    side = min(sizes.most_common(1)[0][0]) if sizes else 0
    for name, found in zip(layout.names, looks, strict=True):
        if isinstance(found, str):
            problems.append(found)
        elif found is not None and found != (side, side):
            problems.append(wrong_size(layout.store.where(name), found, (side, side)))
    return problems
