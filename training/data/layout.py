"""Finds the images, labels and masks of an image set in the layouts that the field uses. Imports no torch.

FFHQC   <root>/dataset.json, <root>/mask/00000.png, <root>/512/00000.png; the path names <root>/512, or <root> if it
        holds one resolution only
EG3D    dataset.json inside the folder of the images, which may be nested: <path>/00000/img00000000.png
zip     either of them inside a zip; <file>.zip/512 names a folder within

Masks are <root>/mask/<name of the image>.png, else a zip or folder beside the images' called as in `_mask_siblings`
(GGHead), else the images' alpha channel, else there are none.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.data.classes import Classes, is_class, read_classes
from training.data.image_store import MAX_JSON_BYTES, DatasetError, Store, digest, is_zip, join, open_store, printable
from training.data.label_file import LabelError, Labels, parse_labels
from training.data.names import PICTURE_ENDINGS, roots_of, some, stem_of
from training.data.pixels import EXTENSIONS, Decoded, has_alpha, open_image, read_image, read_mask

LABELS = "dataset.json"
_MASK_FOLDERS = ("mask", "masks")
_SAMPLE = 64  # pictures whose heads say whether a set has alpha channels, and which size it has


@dataclass
class Layout:
    """Holds the files of a set, images in the order of their names. Safe in threads and in other processes."""

    store: Store  # where images and labels are
    base: str  # folder of dataset.json in the store
    title: str  # the set's name in messages and run folders
    label_source: str  # the label file's name in messages
    labels: Labels  # by image name without extension, below `base` or below the images' folder
    names: list[str]  # the images' names in the store
    files: list[str]  # the images' names below `base`
    stems: list[str]  # the images' names below their folder, without extension
    mask_store: Store | None = None  # where masks are, if they are files
    mask_folder: str = ""  # folder of the masks in mask_store
    masks: dict[str, str] = field(default_factory=dict)  # stem -> name in mask_store
    alpha: bool = False  # the images' alpha channel is the mask
    size: tuple[int, int] = (0, 0)  # width and height in pixels of most of the images that were looked at
    problems: list[str] = field(default_factory=list)  # one line per file that keeps the set from being used
    notes: list[str] = field(default_factory=list)  # one line each on what is there and is not used

    @property
    def has_masks(self) -> bool:
        return self.alpha or self.mask_store is not None

    def label(self, index: int) -> Any:
        """Returns the label of an image as the file has it, or None."""
        return self.labels.get(self._label_name(index))

    def classes(self, labelled: bool = True) -> Classes:
        """Returns the classes of the images: those beside the labels, or labels that are classes.

        labelled: labels are cameras.
        """
        known, index = self.labels.classes, range(len(self.names))
        if self.labels.class_problem is not None:
            return Classes(problems=[self.labels.class_problem])
        if known is not None:
            values = [known.get(self._label_name(i, known)) for i in index]
        else:
            values = [self.label(i) for i in index]
            if labelled or not any(is_class(value) for value in values):
                return Classes()
        return read_classes(self.label_source, self.files, values, self.labels.num_classes)

    def _label_name(self, index: int, labels: Labels | None = None) -> str:
        """Returns the name under which the label file, or another list of it, may know an image."""
        own = stem_of(self.files[index])
        return own if own in (self.labels if labels is None else labels) else self.stems[index]

    @property
    def alpha_means(self) -> bool | None:
        """The argument `alpha` of `read_image`: files of masks leave alpha channels without a meaning."""
        return None if self.mask_store is not None else self.alpha

    def decode(self, index: int, resolution: int | None, data: bytes | None = None) -> Decoded:
        """Returns pixels uint8 [3, R, R] and mask [1, R, R] of an image.

        resolution: R; None leaves both at their own sizes. data: the image's file, if it has been read already.
        Raises DatasetError.
        """
        name, stem = self.names[index], self.stems[index]
        data = self.store.read(name) if data is None else data
        pixels, mask = read_image(data, self.store.where(name), resolution, self.alpha_means)
        if self.mask_store is not None:
            name = self.masks[stem]
            mask = read_mask(self.mask_store.read(name), self.mask_store.where(name), resolution)
        return pixels, mask

    def missing_masks(self) -> list[str]:
        """Returns one line per image without its mask."""
        if self.mask_store is None:
            return []
        absent = [stem for stem in self.stems if stem not in self.masks]
        return [f"{self.mask_store.where(join(self.mask_folder, stem + '.png'))}: no such mask" for stem in absent]

    def require_whole(self) -> None:
        """Raises DatasetError with the first file that keeps the set from being used."""
        problems = self.problems + self.missing_masks()
        if problems:
            others = len(problems) - 1
            more = f" (and {others} more: dataset_tool.py validate lists them)" if others else ""
            raise DatasetError(problems[0] + more)

    def content_key(self, extra: list[bytes]) -> str:
        """Returns a hash of the files by name, size and checksum, and of `extra`; the set's place does not matter."""
        lines = [f"image {s} {c}" for s, c in zip(self.stems, self.store.contents(self.names), strict=True)]
        if self.mask_store is not None:
            stems = sorted(self.masks)
            found = self.mask_store.contents([self.masks[stem] for stem in stems])
            lines += [f"mask {stem} {content}" for stem, content in zip(stems, found, strict=True)]
        return digest([*lines, *(part.hex() for part in extra)])


def open_layout(path: str | os.PathLike[str], labelled: bool = True) -> Layout:
    """Finds the files of the set at `path`; only some images are opened, for their heads.

    labelled: there must be labels; otherwise a plain folder of images will do, and what cannot be read as labels is
    none.
    Raises LabelError if there are no labels or none of an image, DatasetError if there are no images. What is wrong
    with single files is listed in the result's `problems`, what is there and not used in its `notes`.
    """
    store, folder = _locate(path)
    base, label_source, labels = folder, "", Labels()
    try:
        label_store, base, label_name = _find_labels(store, folder, path)
        label_source, folder = label_store.where(label_name), folder or base
        labels = _read_labels(label_store, base, label_name, store.path / folder)
    except LabelError:
        if labelled:
            raise
    listing = store.listing(folder)
    masks = tuple(join(base, word) + "/" for word in _MASK_FOLDERS)
    names = [name for name in listing.names if name.lower().endswith(EXTENSIONS) and not name.startswith(masks)]
    if not names:
        raise DatasetError("; ".join([f"{path}: holds no images ({', '.join(EXTENSIONS)})", *listing.problems[:1]]))
    if folder == base:
        folder = _one_resolution(names, folder, labels, path)
    files, stems = _below(names, base), [stem_of(name) for name in _below(names, folder)]
    layout = Layout(store, base, _title(store, folder), label_source, labels, names, files, stems)
    layout.problems += listing.problems
    seen: dict[str, str] = {}
    for name, stem in zip(names, stems, strict=True):
        if stem in seen:
            layout.problems.append(f"{store.where(name)}: has the name of {_of_other(seen[stem], name)}")
        seen[stem] = name
    _find_masks(layout, folder)
    _look_at_some(layout)
    _note_others(layout, listing.names, folder, labelled)
    return layout


def _of_other(other: str, name: str) -> str:
    """Says in what a name with the stem of another differs from it."""
    two, one = (os.path.splitext(n)[0] for n in (name, other))
    return f"{other}, apart from the {'extension' if one == two else f'Unicode form: {two!a} and {one!a}'}"


def _read_labels(store: Store, base: str, name: str, images: Path) -> Labels:
    """Reads the labels in a store, whose names may be absolute ones of its own or of the images' folder."""
    home = store.path.parent if is_zip(store.path) else store.path
    roots = [root for place in (store.path / base, home / base, images) for root in roots_of(place)]
    return parse_labels(store.where(name), store.read(name, MAX_JSON_BYTES), roots)


def _look_at_some(layout: Layout) -> None:
    """Takes size and alpha from the heads of some images, spread over the set, by the majority."""
    places = np.unique(np.linspace(0, len(layout.names) - 1, min(_SAMPLE, len(layout.names))).astype(int)).tolist()
    sizes: Counter[tuple[int, int]] = Counter()
    alphas, first_error = 0, None
    for place in places:
        name = layout.names[place]
        try:
            image = open_image(layout.store.read(name), layout.store.where(name), decode=False)
        except DatasetError as error:  # whoever reads the image will say so
            first_error = first_error or error
            continue
        sizes[image.size] += 1
        alphas += has_alpha(image)
    if not sizes:
        assert first_error is not None
        raise first_error
    layout.size = sizes.most_common(1)[0][0]
    layout.alpha = layout.mask_store is None and 2 * alphas >= sizes.total()
    if layout.mask_store is not None and alphas:
        where = layout.mask_store.where(layout.mask_folder)
        layout.notes.append(f"{where}: these masks are used, and not the alpha channel that images have too")


def _note_others(layout: Layout, everything: Sequence[str], folder: str, labelled: bool) -> None:
    """Counts labels, files and masks that belong to no image. Raises LabelError if no label that must does."""
    spelt = _of_no_image(layout, layout.labels)
    if labelled and len(spelt) == len(layout.labels):
        first = printable(spelt[0]) if spelt else None
        what = f"such as {first!r}" if first else "it is empty"
        raise LabelError(
            f"{layout.label_source}: none of its {len(spelt)} labels ({what}) names an image here, "
            f"such as {layout.files[0]!r}"
        )
    for what, known in (("labels", layout.labels), ("classes", layout.labels.classes)):
        if known is not None and (others := _of_no_image(layout, known)):
            layout.notes.append(
                f"{layout.label_source}: {len(known)} {what}, {len(others)} of them name no picture here, "
                f"{some([printable(name) for name in others])}"
            )
    chosen = set(layout.names)
    masked = tuple(join(layout.base, word) + "/" for word in _MASK_FOLDERS)
    within = [name for name in _below(list(everything), folder) if join(folder, name) not in chosen]
    others = [n for n in within if os.path.splitext(n)[1].lower() in PICTURE_ENDINGS - set(EXTENSIONS)]
    others = [n for n in others if not join(folder, n).startswith(masked)]
    if others:
        layout.notes.append(
            f"{layout.store.where(folder)}: {len(chosen)} used of {len(chosen) + len(others)} pictures; the others are "
            f"no {', '.join(EXTENSIONS)} files: {some(sorted(others))}"
        )


def _of_no_image(layout: Layout, known: Labels) -> list[str]:
    """Returns the names of a list of the label file, as they are spelt there, that are no image's."""
    used = {layout._label_name(i, known) for i in range(len(layout.names))}
    return [known.spelt[stem] for stem in known if stem not in used]


def _below(names: list[str], folder: str) -> list[str]:
    return [name[len(folder) + 1 :] for name in names] if folder else names


def _locate(path: str | os.PathLike[str]) -> tuple[Store, str]:
    """Returns the store that holds the set, and the folder of the images in it."""
    place = Path(os.path.abspath(path))
    if place.is_dir():
        if (place / LABELS).is_file():
            return open_store(place), ""
        return open_store(place.parent), place.name
    for zipped in (place, *place.parents):
        if is_zip(zipped):
            inside = place.relative_to(zipped).as_posix()
            return open_store(zipped), "" if inside == "." else inside
    raise DatasetError(
        f"{printable(str(path))}: is neither a folder nor a zip; the folder of the images, such as <root>/512, is legal"
    )


def _find_labels(store: Store, folder: str, path: str | os.PathLike[str]) -> tuple[Store, str, str]:
    """Returns store, base folder and name of the label file."""
    parent = os.path.dirname(folder)
    for base in dict.fromkeys((folder, parent)):
        if store.has(join(base, LABELS)):
            return store, base, join(base, LABELS)
    if is_zip(store.path):
        tops = {name.split("/")[0] for name in store.listing("").names if name.endswith("/" + LABELS)}
        if not folder and len(tops) == 1 and store.has(join(*tops, LABELS)):
            return store, join(*tops), join(*tops, LABELS)
        beside = open_store(store.path.parent)
        if beside.has(LABELS):
            return beside, "", LABELS
    also = f" (nor is there one in {path})" if folder else ""
    raise LabelError(f"{store.where(join(parent, LABELS))}: not found{also}; it must hold the camera labels of {path}")


def _one_resolution(names: list[str], folder: str, labels: Labels, path: str | os.PathLike[str]) -> str:
    """Returns the folder that the labels' names are relative to: `folder`, or the only one in it (FFHQC's root)."""
    below = _below(names, folder)
    if any(stem_of(name) in labels for name in below):
        return folder
    tops = sorted({name.split("/")[0] for name in below if "/" in name})
    mixed = not all("/" in name for name in below)
    if (len(tops) > 1 or mixed) and any(stem_of(name.partition("/")[2]) in labels for name in below if "/" in name):
        others = " and other images" if mixed else ""
        raise DatasetError(
            f"{path}: holds the image folders {', '.join(tops)}{others}; give one of them, as {path}/{tops[0]}"
        )
    return join(folder, tops[0]) if len(tops) == 1 and not mixed else folder


def _title(store: Store, folder: str) -> str:
    root = store.path.stem if is_zip(store.path) else store.path.name
    return "-".join(part for part in (root, folder.replace("/", "-")) if part)


def _mask_siblings(layout: Layout, folder: str) -> list[Path]:
    """Returns the zips and folders beside the set's that may hold its masks."""
    top = layout.store.path if is_zip(layout.store.path) or not folder else layout.store.path / folder
    stem = top.stem if is_zip(top) else top.name
    own = [f"{stem}{joint}{word}" for joint in "_-" for word in _MASK_FOLDERS]
    found = [top.with_name(name + ending) for name in own for ending in (".zip", "")]
    return found + [top.with_name(word + ".zip") for word in _MASK_FOLDERS]


def _find_masks(layout: Layout, folder: str) -> None:
    for word in _MASK_FOLDERS:
        below = join(layout.base, word)
        if is_zip(layout.store.path):
            there = any(name.startswith(below + "/") for name in layout.store.listing("").names)
        else:
            there = (layout.store.path / below).is_dir()
        if there and layout.mask_store is None:
            _take_masks(layout, layout.store, below)
        elif there:
            layout.notes.append(f"{layout.store.where(below)}: is not read, for there are masks in {_MASK_FOLDERS[0]}")
    for path in _mask_siblings(layout, folder):
        if not is_zip(path) and not path.is_dir():
            continue
        if layout.mask_store is None:
            _take_masks(layout, open_store(path), "")
        else:
            where = layout.mask_store.where(layout.mask_folder)
            layout.notes.append(f"{printable(str(path))}: is not read, for there are masks in {where}")


def _take_masks(layout: Layout, store: Store, folder: str) -> None:
    """Takes the masks below `folder`, also if all of them lie one folder deeper than the images' names say."""
    listing = store.listing(folder)
    names = [name for name in listing.names if name.lower().endswith(EXTENSIONS)]
    stems = [stem_of(short) for short in _below(names, folder)]
    wanted = set(layout.stems)
    if not wanted.intersection(stems):
        stems = [stem.partition("/")[2] for stem in stems]
    below: dict[str, str] = {}
    for stem, name in zip(stems, names, strict=True):
        if stem in below and stem in wanted:
            layout.problems.append(f"{store.where(name)}: has the name of {below[stem]}, apart from the extension")
        below[stem] = name
    layout.mask_store, layout.mask_folder = store, folder
    layout.masks = {stem: name for stem, name in below.items() if stem in wanted}
    unused = sorted(name for stem, name in below.items() if stem not in wanted)
    if unused:
        layout.notes.append(
            f"{store.where(folder)}: {len(layout.masks)} used of {len(below)} masks; the others belong to no image: "
            f"{some(unused)}"
        )
    if not (store is layout.store and is_zip(store.path)):  # whose problems are listed already
        layout.problems += listing.problems


def numbers_of(stems: list[str]) -> np.ndarray:
    """Returns the number in each name, int64 [N]: the last digits of the file's own name, -1 where there are none."""
    found = np.full(len(stems), -1, dtype=np.int64)
    for i, stem in enumerate(stems):
        digits = "".join(c if c.isdigit() and c.isascii() else " " for c in stem.rpartition("/")[2]).split()
        if digits and len(digits[-1]) < 18:
            found[i] = int(digits[-1])
    return found
