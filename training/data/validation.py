"""Finds everything that is wrong with an image set, file by file."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from training.data import mask_check
from training.data.image_store import DatasetError
from training.data.label_check import label_notes, label_problems, problem_lines
from training.data.layout import Layout, open_layout
from training.data.mask_check import MaskLook, Verdict
from training.data.names import some
from training.data.pixels import open_image, orientation, wrong_shape, wrong_size

_DECODERS = 4  # threads; reading, inflating and decoding release the interpreter lock
Progress = Callable[[int], None] | None


@dataclass
class Findings:
    """Holds what was found out about a set, one line each."""

    problems: list[str] = field(default_factory=list)  # what keeps the set from being used, each naming its file
    notes: list[str] = field(default_factory=list)  # what is there and not used, and what may be meant otherwise
    fixable: bool = True  # a copy without what the problems name would be a set


@dataclass
class _Seen:
    """Holds what decoding an image and its mask has shown."""

    size: tuple[int, int] | None = None  # width and height, if the image can be read
    problem: str | None = None
    mask: MaskLook | None = None
    turned: bool = False  # it carries an EXIF orientation other than upright


def validate_set(path: str | os.PathLike[str], progress: Progress = None) -> list[str]:
    """Returns what keeps the set at `path` from being used, as `inspect_set` finds it."""
    return inspect_set(path, progress).problems


def inspect_set(path: str | os.PathLike[str], progress: Progress = None) -> Findings:
    """Looks at every label, image and mask of the set at `path`, and decodes all of them.

    progress is called with the number of files checked since its last call.
    """
    try:
        layout = open_layout(path)
    except ValueError as error:
        return Findings([str(error)], fixable=False)
    labels = [layout.label(i) for i in range(len(layout.names))]
    wrong = label_problems(labels)
    problems = layout.problems + layout.missing_masks() + problem_lines(layout.label_source, layout.files, wrong)
    problems += layout.classes().problems
    found = Findings(problems, layout.notes + label_notes(layout.label_source, labels, path), None not in wrong)
    seen = look_at_all(layout, progress)
    sizes = Counter(each.size for each in seen if each.size is not None)
    side = min(sizes.most_common(1)[0][0]) if sizes else 0
    for name, each in zip(layout.names, seen, strict=True):
        if each.problem is not None:
            found.problems.append(each.problem)
        elif each.size is not None and each.size != (side, side):
            found.problems.append(wrong_size(layout.store.where(name), each.size, (side, side)))
    verdict = judge_masks(layout, seen)
    found.problems += verdict.problems
    found.fixable = found.fixable and (not verdict.problems or verdict.mend is not None)
    found.notes += verdict.notes
    turned = [name for name, each in zip(layout.names, seen, strict=True) if each.turned]
    if turned:
        found.notes.append(
            f"{layout.store.where('')}: {len(turned)} pictures carry an EXIF orientation ({some(turned)}); their "
            "pixels are taken as they are stored, as their labels must be"
        )
    return found


def look_at_all(layout: Layout, progress: Progress = None) -> list[_Seen]:
    """Decodes every image and mask; one that is reported elsewhere, as it has no mask, has neither size nor problem."""

    def look(index: int) -> _Seen:
        seen = _Seen()
        if layout.mask_store is None or layout.stems[index] in layout.masks:
            try:
                _look(layout, index, seen)
            except DatasetError as error:
                seen.problem = str(error)
        if progress is not None:
            progress(1)
        return seen

    with ThreadPoolExecutor(_DECODERS) as pool:
        return list(pool.map(look, range(len(layout.names))))


def _look(layout: Layout, index: int, seen: _Seen) -> None:
    name = layout.names[index]
    data = layout.store.read(name)
    pixels, mask = layout.decode(index, None, data)
    size = pixels.shape[2], pixels.shape[1]
    if mask is not None:
        own = mask.shape[2], mask.shape[1]
        if not mask_check.fits(own, size):
            assert layout.mask_store is not None
            raise DatasetError(wrong_shape(layout.mask_store.where(layout.masks[layout.stems[index]]), own, size))
        seen.mask = mask_check.look_at(mask[0])
    if b"Exif" in data or b"eXIf" in data or b"tiff:Orientation" in data:
        seen.turned = orientation(open_image(data, layout.store.where(name), decode=False)) != 1
    seen.size = size


def judge_masks(layout: Layout, seen: list[_Seen]) -> Verdict:
    """Judges the masks of a set by what was seen of them."""
    looks, names = [], []
    for i, each in enumerate(seen):
        if each.mask is not None:
            store, name = layout.store, layout.names[i]
            if layout.mask_store is not None:
                store, name = layout.mask_store, layout.masks[layout.stems[i]]
            looks.append(each.mask)
            names.append(store.where(name))
    title = layout.store.where("")
    if layout.mask_store is not None:
        title = layout.mask_store.where(layout.mask_folder)
    return mask_check.judge(looks, names, title)
