"""Posed image sets: reading them, and the few functions that real and generated images go through alike.

Layout (FFHQC): <root>/dataset.json {"labels": [["00000.png", [25 numbers]], ...]}, <root>/mask/00000.png and
<root>/<resolution>/00000.png; a path names the folder of the images. Items are handed out as stored: flips and
backgrounds belong to the training step, which does both on the device.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dnnlib import cache_dir
from gaussian import Cameras, Geometry
from training.file_hashes import file_hashes
from training.label_check import check_labels, read_labels, require_labels

EXTENSIONS = (".png", ".jpg", ".jpeg")
MEMORY_LIMIT = 1 << 30  # bytes; sets whose decoded pixels fit are kept in memory
_DECODERS = 4  # threads that decode one batch
_PREFETCH = 2  # batches in flight per worker


@dataclass(frozen=True)
class Batch:
    """B items, as stored."""

    images: Tensor  # uint8 [B, 3, H, W]
    masks: Tensor | None  # uint8 [B, 1, H, W], 255 where the subject is; None for sets without masks
    labels: Tensor  # float32 [B, 25] in model units


class DatasetError(ValueError):
    """An image set that cannot be read; the message names the file."""


class _Folder:
    """The files of a set: images in the order of their names, with the mask of each."""

    def __init__(self, path: str | os.PathLike):
        self.images = Path(path).resolve()
        if not self.images.is_dir():
            raise DatasetError(f"{path}: is not a folder; the folder of the images, such as <root>/512, is legal")
        self.root = self.images.parent
        self.label_file = self.root / "dataset.json"
        self.mask_folder = self.root / "mask" if (self.root / "mask").is_dir() else None
        files = sorted(entry.name for entry in os.scandir(self.images) if entry.is_file())
        self.names = [name for name in files if Path(name).suffix.lower() in EXTENSIONS]
        self.stems = [Path(name).stem for name in self.names]
        if not self.names:
            raise DatasetError(f"{path}: holds no images ({', '.join(EXTENSIONS)})")
        twice = [a for a, b in zip(self.stems, self.stems[1:], strict=False) if a == b]
        if twice:
            raise DatasetError(f"{path}: holds several images called {twice[0]}")
        self.has_masks = self.mask_folder is not None or _is_transparent(_open(self.images / self.names[0]))

    def labels(self) -> list:
        """Per image its label as the file has it, or None. Raises LabelError if the file is unusable."""
        found = read_labels(self.label_file)
        return [found.get(stem) for stem in self.stems]

    def files(self) -> dict[str, Path]:
        """Every image and mask of the set by its name below the root."""
        found = {f"image/{name}": self.images / name for name in self.names}
        if self.mask_folder is not None:
            found |= {f"mask/{stem}.png": self.mask_folder / f"{stem}.png" for stem in self.stems}
        return found

    def missing_masks(self) -> list[Path]:
        if self.mask_folder is None:
            return []
        there = {entry.name for entry in os.scandir(self.mask_folder)}
        return [self.mask_folder / f"{stem}.png" for stem in self.stems if f"{stem}.png" not in there]

    def decode(self, index: int, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels uint8 [3, size, size] of an image and [1, size, size] of its mask. Raises DatasetError."""
        path = self.images / self.names[index]
        image = _open(path)
        if image.size != (size, size):
            raise DatasetError(f"{path}: is {image.size[0]}x{image.size[1]} pixels, the set is {size}x{size}")
        if image.mode.startswith(("I", "F")):
            raise DatasetError(f"{path}: has pixels of mode {image.mode}; 8 bits per channel are legal")
        pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        if not self.has_masks:
            return pixels, None
        if self.mask_folder is None:
            if not _is_transparent(image):
                raise DatasetError(f"{path}: has no alpha channel, unlike the first image of the set")
            mask = image.convert("RGBA").getchannel("A")
        else:
            mask = _open(self.mask_folder / f"{self.stems[index]}.png").convert("L")
            if mask.size != (size, size):
                mask = mask.resize((size, size), Image.Resampling.BILINEAR)
        return pixels, np.asarray(mask)[None]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _is_transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


class ImageDataset:
    """A posed image set in the FFHQC layout.

    path: the folder of the images; masks are read from <root>/mask, else from the images' alpha channel, else there are
    none. index_list: a JSON file with a list of image numbers, duplicates allowed; the set then has one item per entry
    whose image is there, in the order of the list.

    Every label is checked here. Cameras in other units than FFHQ's are brought to the units that the generators fit,
    see `Geometry.world_scale`; `raw_labels` stay as stored. Raises LabelError or DatasetError (both ValueErrors).
    """

    name: str  # of the folder that holds the set, and its resolution
    resolution: int  # pixels, width and height
    has_masks: bool
    raw_labels: np.ndarray  # float32 [N, 25] as stored
    labels: np.ndarray  # float32 [N, 25] in model units
    geometry: Geometry  # of all labels, in model units

    def __init__(self, path: str | os.PathLike, index_list: str | os.PathLike | None = None):
        self._folder = folder = _Folder(path)
        missing = folder.missing_masks()
        if missing:
            raise DatasetError(f"{missing[0]}: no such mask (and {len(missing) - 1} more are missing)")
        width, height = _open(folder.images / folder.names[0]).size
        if width != height:
            raise DatasetError(f"{folder.images / folder.names[0]}: is {width}x{height} pixels; images must be square")
        self.name, self.resolution = f"{folder.root.name}-{folder.images.name}", width
        self.has_masks = folder.has_masks
        stored = require_labels(str(folder.label_file), folder.names, folder.labels())
        cameras = Cameras.from_labels(torch.from_numpy(stored))
        measured = cameras.summary()
        self.geometry = measured.to_model_units()
        self._items = np.arange(len(folder.names)) if index_list is None else _read_index_list(index_list, folder.stems)
        self.raw_labels = stored.astype(np.float32)[self._items]
        scaled = stored if measured.world_scale == 1.0 else measured.normalize(cameras).labels.numpy()
        self.labels = scaled.astype(np.float32)[self._items]
        self._memory = _Memory(len(folder.names), self.resolution, self.has_masks)

    def __len__(self) -> int:
        return len(self._items)

    def load(self, indices: Sequence[int] | np.ndarray | Tensor) -> Batch:
        """The items `indices` as stored; safe in several threads. Raises DatasetError for an unusable file."""
        indices = np.asarray(indices, dtype=np.int64)
        images, masks = self._memory.take(self._items[indices], self._decode)
        return Batch(
            images=torch.from_numpy(images),
            masks=None if masks is None else torch.from_numpy(masks),
            labels=torch.from_numpy(self.labels[indices]),
        )

    def _decode(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        return self._folder.decode(index, self.resolution)

    def content_key(self) -> str:
        """Hash of the images, masks, labels and of which items there are; equal for the same set in another place."""
        digest = hashlib.sha256()
        files = self._folder.files()
        hashes = file_hashes(list(files.values()), cache_dir("file-hashes"))
        for name, path in sorted(files.items()):
            digest.update(f"{name} {path.stat().st_size} {hashes[path]}\n".encode())
        digest.update(self.raw_labels.tobytes())
        digest.update(self._items.astype(np.int64).tobytes())
        return digest.hexdigest()


class _Memory:
    """Decoded pixels, kept from the first touch on if the whole set fits below the limit."""

    def __init__(self, count: int, resolution: int, has_masks: bool, limit: int = MEMORY_LIMIT):
        self._shape, self._has_masks = (resolution, resolution), has_masks
        self._store = self._empty(count) if count * (3 + has_masks) * resolution**2 <= limit else None
        self._filled = np.zeros(count, dtype=bool)

    def _empty(self, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        masks = np.empty((count, 1, *self._shape), np.uint8) if self._has_masks else None
        return np.empty((count, 3, *self._shape), np.uint8), masks

    def take(self, wanted: np.ndarray, decode) -> tuple[np.ndarray, np.ndarray | None]:
        """Images [B, 3, H, W] and masks [B, 1, H, W] of the files `wanted`; what is not in memory is decoded.

        Two threads may decode the same file; both write the same bytes, and a file counts as filled after its bytes.
        """
        if self._store is None:
            return self._fill(self._empty(len(wanted)), wanted, np.arange(len(wanted)), decode)
        absent = np.unique(wanted[~self._filled[wanted]])
        images, masks = self._fill(self._store, absent, absent, decode)
        self._filled[absent] = True
        return images[wanted], None if masks is None else masks[wanted]

    @staticmethod
    def _fill(arrays, indices: np.ndarray, places: np.ndarray, decode) -> tuple[np.ndarray, np.ndarray | None]:
        images, masks = arrays

        def put(index: int, place: int) -> None:
            pixels, mask = decode(index)
            images[place] = pixels
            if masks is not None:
                masks[place] = mask

        if len(indices):
            with ThreadPoolExecutor(_DECODERS) as pool:  # Pillow lets go of the interpreter while it decodes
                list(pool.map(put, indices.tolist(), places.tolist()))
        return images, masks


def _read_index_list(path: str | os.PathLike, stems: Sequence[str]) -> np.ndarray:
    try:
        numbers = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
        raise DatasetError(f"{path}: must be a JSON list of whole numbers")
    place = {int(stem): i for i, stem in enumerate(stems) if stem.isdigit()}
    items = [place[n] for n in numbers if n in place]
    if not items:
        raise DatasetError(f"{path}: names no image of the set")
    return np.array(items, dtype=np.int64)


def iterate(dataset: ImageDataset, index_batches: Iterable[Sequence[int]], workers: int = 1) -> Iterator[Batch]:
    """`dataset.load` of each list of indices, in order, read ahead by `workers` threads (0: when asked for).

    Draws no random numbers: the order is the caller's. `index_batches` may be endless; it is read in the calling
    thread.
    """
    if workers == 0:
        yield from map(dataset.load, index_batches)
        return
    batches = iter(index_batches)
    pool = ThreadPoolExecutor(workers)
    try:
        running = deque(pool.submit(dataset.load, indices) for indices in islice(batches, workers * _PREFETCH))
        while running:
            batch = running.popleft().result()
            running.extend(pool.submit(dataset.load, indices) for indices in islice(batches, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def composite(images: Tensor, masks: Tensor | None, background: Tensor) -> Tensor:
    """Images over backgrounds: float32 [B, 3, H, W] in -1..1, on the images' device.

    images: uint8 [B, 3, H, W], not premultiplied; masks: uint8 [B, 1, H, W], or None to leave the images as they are;
    background: [B, 3] RGB in 0..1. Unlike the published code, the result is not rounded to 8 bits.
    """
    image = images.to(torch.float32) / 127.5 - 1
    if masks is None:
        return image
    colour = (2 * background.to(image) - 1)[:, :, None, None]
    return colour + (masks.to(torch.float32) / 255) * (image - colour)


def mirror(images: Tensor, masks: Tensor | None, labels: Tensor, flip: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Left and right swapped in the items where flip [B] (bool) is set, cameras included; nothing is changed in place.

    images [B, 3, H, W], masks [B, 1, H, W] or None, labels [B, 25]. The pose becomes F M F with F = diag(-1, 1, 1, 1),
    and the principal point moves to 1 - cx (the published code leaves it).
    """
    wide, mirrored = flip[:, None, None, None], Cameras.from_labels(labels).mirror().labels
    return (
        torch.where(wide, images.flip(-1), images),
        None if masks is None else torch.where(wide, masks.flip(-1), masks),
        torch.where(flip[:, None], mirrored, labels),
    )


def quantize(image: Tensor) -> Tensor:
    """Images in -1..1 as uint8: (x + 1) 127.5, rounded to the nearest and clamped to 0..255.

    Undoes x / 127.5 - 1 exactly. The published code truncates in some places and rounds in others; metrics and pictures
    here use this function only.
    """
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def validate_set(path: str | os.PathLike) -> list[str]:
    """Everything that keeps the set at `path` from being used, one line per problem, each naming its file."""
    try:
        folder = _Folder(path)
        labels = folder.labels()
    except ValueError as error:
        return [str(error)]
    problems = check_labels(str(folder.label_file), folder.names, labels)
    missing = set(folder.missing_masks())
    problems += [f"{mask}: no such mask" for mask in sorted(missing)]

    def problem_of(index: int) -> str | None:
        if folder.mask_folder is not None and folder.mask_folder / f"{folder.stems[index]}.png" in missing:
            return None
        try:
            folder.decode(index, size)
        except DatasetError as error:
            return str(error)
        return None

    try:
        size = min(_open(folder.images / folder.names[0]).size)
    except DatasetError as error:
        return [*problems, str(error)]
    with ThreadPoolExecutor(_DECODERS) as pool:
        return problems + [found for found in pool.map(problem_of, range(len(folder.names))) if found]
