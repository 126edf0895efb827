"""Writes an image set in the FFHQC layout from images of any size: crops, resizes and adapts the intrinsics.

<dest>/dataset.json, <dest>/<resolution>/<name>.png, <dest>/mask/<name>.png; a dest that ends in .zip is a zip of these.
"""

import io
import json
import os
import shutil
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

import dnnlib
from gaussian import Cameras
from torch_utils import distributed
from training.data import mask_check
from training.data.image_store import DatasetError, printable
from training.data.making.mask_files import read_mask_as_stored
from training.data.making.reshape import Size, Step, Turn
from training.data.mask_check import MaskLook
from training.data.names import some
from training.data.pixels import eight_bits, has_alpha, open_image, orientation, split_alpha

CENTRE = "centre"
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Entry = list[str | list[float]]  # an entry of dataset.json: file name and label
Job = TypeVar("Job")
Result = TypeVar("Result")
_ASPECT_TOLERANCE = 0.01  # relative difference of width over height between an image and its camera's image


@dataclass(frozen=True)
class Item:
    """Holds an image with its camera, before cropping."""

    stem: str  # name in the new set, without extension
    source: str  # name in messages
    read: Callable[[], bytes]  # returns the image file's content
    label: np.ndarray  # float64 [25], pose and intrinsics of the whole image
    read_mask: Callable[[], bytes] | None = None  # returns the mask file's content
    alpha: bool = False  # the alpha channel is the mask
    size: Size | None = None  # width and height in pixels that the intrinsics are for; None: the image's
    steps: tuple[Step, ...] = ()  # applied to picture and mask before the crop; `label` is for what they make
    turn: Turn | None = None  # what the picture's orientation tag asks for, if the mask may be upright
    category: int | None = None  # its class
    mend_mask: Callable[[np.ndarray], np.ndarray] | None = None  # makes a right mask of a wrong one, uint8 [H, W]


@dataclass
class Report:
    """Describes the set that was written."""

    images: Path  # argument of --data
    count: int = 0  # images written
    resolution: int = 0  # pixels
    dropped: list[str] = field(default_factory=list)  # one line per image left out
    notes: list[str] = field(default_factory=list)  # one line each on what was not used, or was decided


def write_set(
    items: Sequence[Item],
    dest: str | os.PathLike[str],  # a new folder, or a new file that ends in .zip
    resolution: int | None = None,  # None: the side of the pictures after the crop, which must then be one
    crop: str | Box | None = None,  # "centre" (the largest square), a square box, or None for square pictures
    tolerant: bool = False,  # leave out what cannot be read instead of raising; None takes the commonest resolution
    extra: dict[str, Any] | None = None,  # goes into dataset.json, beside the labels and classes
    progress: Callable[[int], None] | None = None,  # called with the number of images written since its last call
) -> Report:
    """Writes the items to `dest`, as a whole or not at all.

    Raises DatasetError for an image that cannot be used, masks that are wrong as a whole or a dest that exists already.
    """
    dropped: list[str] = []
    looks: dict[str, MaskLook] = {}
    turned: set[str] = set()
    boxes = list(_in_threads(lambda item: _attempt(lambda: _box_of(item, crop), tolerant, dropped), items))
    found = [(item, *box) for item, box in zip(items, boxes, strict=True) if box is not None]
    if not found:
        raise DatasetError(f"{dest}: no picture is left to be written: {dropped[0] if dropped else 'none given'}")
    size = resolution or _common_side([box for _, _, box in found], tolerant)
    with _Destination(Path(dest), size) as place:

        def add(job: tuple[Item, tuple[int, int], Box]) -> Entry | None:
            entry = _attempt(lambda: _add(place, *job, size, looks, turned), tolerant, dropped)
            if progress is not None:
                progress(1)
            return entry

        entries = [entry for entry in _in_threads(add, found) if entry is not None]
        if not entries:
            raise DatasetError(f"{dest}: no picture is left to be written: {dropped[0]}")
        sources = sorted(looks)
        verdict = mask_check.judge([looks[source] for source in sources], sources, f"masks of {_root(sources)}")
        if verdict.problems:
            raise DatasetError(verdict.problems[0])
        tagged = [item.source for item in items if item.source in turned]
        if tagged:
            verdict.notes.append(
                f"{len(tagged)} pictures carry an EXIF orientation ({some(tagged)}): their pixels are taken as they "
                "are stored, as their labels must be, and the tags are left out"
            )
        of = {f"{item.stem}.png": item.category for item in items if item.category is not None}
        classes = [[name, of[name]] for name, _ in entries if name in of]  # type: ignore[index]
        content = {"labels": entries, **({"classes": classes} if classes else {}), **(extra or {})}
        place.put("dataset.json", json.dumps(content).encode())
    return Report(place.images, len(entries), size, sorted(dropped), verdict.notes)


def _root(sources: list[str]) -> str:
    """Names the folder that holds pictures, for messages."""
    return os.path.commonpath([os.path.dirname(source) for source in sources]) if sources else ""


def _in_threads(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """Yields results in order; when it ends, by an error or not, no job runs any more."""
    pool = ThreadPoolExecutor(distributed.usable_cores())
    try:
        yield from pool.map(work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(work: Callable[[], Result], tolerant: bool, dropped: list[str]) -> Result | None:
    """Returns the result of `work`; where it fails and `tolerant`, returns None and adds a line to `dropped`."""
    try:
        return work()
    except DatasetError as error:
        if not tolerant:
            raise
        dropped.append(str(error))
        return None


def _box_of(item: Item, crop: str | Box | None) -> tuple[tuple[int, int], Box]:
    """Returns the size of the image and the square that is cut out of it, both in pixels."""
    size = open_image(item.read(), item.source, decode=False).size
    for step in item.steps:
        size = step.size(size)
    width, height = size
    if item.size is not None and abs(width / height * item.size[1] / item.size[0] - 1) > _ASPECT_TOLERANCE:
        raise DatasetError(
            f"{item.source}: is {width}x{height} pixels, its camera is for {item.size[0]}x{item.size[1]}; "
            "the picture was cropped or turned after its camera was found"
        )
    return size, crop_box(size, crop, item.source)


def crop_box(size: tuple[int, int], crop: str | Box | None, source: str) -> Box:
    """Returns the square to cut out of an image. Raises DatasetError if it is not square or leaves the image."""
    width, height = size
    if crop is None:
        if width != height:
            raise DatasetError(f"{source}: is {width}x{height} pixels, not square; --crop=centre or a box cuts it")
        return 0.0, 0.0, float(width), float(height)
    if crop == CENTRE:
        side = min(width, height)
        left, top = float((width - side) // 2), float((height - side) // 2)  # whole pixels: nothing is blurred
        return left, top, left + side, top + side
    if isinstance(crop, str):
        raise DatasetError(f"--crop={crop}: {CENTRE}, or left, top, right, bottom of a square, are legal")
    left, top, right, bottom = crop
    if right - left != bottom - top or right <= left:
        raise DatasetError(
            f"--crop={left:g},{top:g},{right:g},{bottom:g}: left, top, right, bottom of a square are legal"
        )
    if left < 0 or top < 0 or right > width or bottom > height:
        raise DatasetError(
            f"{source}: is {width}x{height} pixels; --crop={left:g},{top:g},{right:g},{bottom:g} leaves it"
        )
    return crop


def _common_side(boxes: list[Box], tolerant: bool) -> int:
    sides = Counter(round(box[2] - box[0]) for box in boxes)
    if len(sides) > 1 and not tolerant:
        raise DatasetError(
            f"the pictures are {min(sides)} to {max(sides)} pixels wide after the crop; give --resolution"
        )
    return sides.most_common(1)[0][0]


def crop_label(label: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Returns the label [25] of the part `box` of an image of `size`, both in pixels, at any resolution."""
    width, height = size
    part = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    return Cameras.from_labels(torch.from_numpy(np.asarray(label, dtype=np.float64))).crop(part).labels.numpy()


def _add(
    place: "_Destination",
    item: Item,
    size: Size,  # of the image, after the item's steps
    box: Box,
    resolution: int,
    looks: dict[str, MaskLook],  # gets what the mask holds
    turned: set[str],  # gets the image, if it carries an orientation tag that nothing is done about
) -> Entry | None:
    """Writes an image and its mask, and returns the entry of dataset.json."""
    data = item.read()
    picture = open_image(data, item.source)
    if item.turn is None and not item.steps and orientation(picture) > 1:
        turned.add(item.source)
    picture = eight_bits(picture)
    mask: Image.Image | None = None
    if item.read_mask is not None:
        mask = read_mask_as_stored(item.read_mask(), f"mask of {item.source}", picture.size, item.turn)
        mask = _after(item.steps, _mended(item, mask))
        sx, sy = mask.width / size[0], mask.height / size[1]
        mask = _cut(mask, (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy), resolution)
    elif item.alpha:
        if not has_alpha(picture):
            raise DatasetError(f"{item.source}: has no alpha channel, unlike other pictures of the set")
        # Together, since Pillow then keeps the colours of transparent pixels out of their neighbours.
        picture = picture.convert("RGBA")
        picture.putalpha(_mended(item, picture.getchannel("A")))
        picture = _cut(_after(item.steps, picture), box, resolution)
        mask = picture.getchannel("A")
    elif has_alpha(picture):
        split_alpha(picture, item.source, alpha=False)
    if not item.alpha:
        picture = _cut(_after(item.steps, picture.convert("RGB")), box, resolution)
    name = f"{item.stem}.png"
    if mask is not None:
        looks[item.source] = mask_check.look_at(np.asarray(mask))
        place.put(f"mask/{name}", _png(mask))
    place.put(f"{resolution}/{name}", _png(picture.convert("RGB")))
    return [name, crop_label(item.label, size, box).tolist()]


def _mended(item: Item, mask: Image.Image) -> Image.Image:
    return mask if item.mend_mask is None else Image.fromarray(item.mend_mask(np.asarray(mask)))


def _after(steps: Sequence[Step], picture: Image.Image) -> Image.Image:
    for step in steps:
        picture = step.apply(picture)
    return picture


def _cut(picture: Image.Image, box: Box, resolution: int) -> Image.Image:
    """Returns a part of the image at a resolution. Edges go to edges, so that normalised intrinsics stay valid."""
    if (box[2] - box[0], box[3] - box[1]) == (resolution, resolution) and all(v == int(v) for v in box):
        left, top, right, bottom = (int(v) for v in box)
        return picture.crop((left, top, right, bottom))
    return picture.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def require_free(dest: str | os.PathLike[str]) -> None:
    """Raises DatasetError if no set can be written there: something is there already, or its folder is closed.

    Called before any work, which may take hours, and again when the set is written.
    """
    dest = Path(dest)
    if dest.exists() and (dest.suffix.lower() == ".zip" or not dest.is_dir() or any(dest.iterdir())):
        raise DatasetError(f"{printable(str(dest))}: exists already; choose another --dest or remove it")
    dnnlib.require_place(dest, "--dest")
    above = next((folder for folder in dest.absolute().parents if folder.is_dir()), dest)
    if not os.access(above, os.W_OK | os.X_OK):
        raise DatasetError(f"{printable(str(dest))}: cannot be written: {printable(str(above))} is closed to this user")


class _Destination:
    """Writes a new folder or zip beside its place and renames it when it is complete."""

    def __init__(self, dest: Path, resolution: int):
        self.dest, self.images = dest, dest / str(resolution)
        self._zip = dest.suffix.lower() == ".zip"
        if self._zip:
            self.images = dest
        require_free(dest)
        self._lock = threading.Lock()

    def __enter__(self) -> "_Destination":
        try:
            self.dest.parent.mkdir(parents=True, exist_ok=True)
            self._building = Path(tempfile.mkdtemp(prefix=f"{self.dest.name}.partial-", dir=self.dest.parent))
        except OSError as error:
            raise DatasetError(f"{printable(str(self.dest))}: cannot be written: {error.strerror}") from error
        self._building.chmod(0o755)  # mkdtemp keeps everybody else out
        # Pictures are compressed already.
        self._archive = zipfile.ZipFile(self._building / "set.zip", "w") if self._zip else None
        return self

    def put(self, name: str, data: bytes) -> None:
        try:
            if self._archive is not None:
                with self._lock:
                    deflate = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
                    self._archive.writestr(name, data, deflate)
                return
            path = self._building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:  # a full disk ends the work, also where broken pictures are tolerated
            raise OSError(f"{printable(str(self.dest))}: cannot be written: {error.strerror}") from error

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if self._archive is not None:
                self._archive.close()
            if kind is None:
                os.replace(self._building / "set.zip" if self._zip else self._building, self.dest)
        finally:
            shutil.rmtree(self._building, ignore_errors=True)
