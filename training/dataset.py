"""Opens posed image sets as training and metrics see them.

`training.data.layout` knows where the files of a set lie. Items are handed out as stored: flips and backgrounds belong
to the training step, which does both on the device (`training.images`).
"""

import copy
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from gaussian import Cameras, Geometry
from training.data.image_store import DatasetError
from training.data.index_lists import resolve_index_list
from training.data.label_check import label_notes, label_problems, require_labels
from training.data.layout import Layout, open_layout
from training.data.pixels import Decoded, PixelMemory, memory_limit
from training.data.poses import PoseLaw

_PREFETCH = 2  # jobs in flight per worker

J = TypeVar("J")
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Holds B items, as stored."""

    images: Tensor  # uint8 [B, 3, H, W]
    masks: Tensor | None  # uint8 [B, 1, H, W], 255 where the subject is; None for sets without masks
    labels: Tensor  # float32 [B, 25] in model units


class ImageDataset:
    """Reads a posed image set in one of the layouts of `training.data.layout`.

    path: the folder of the images, or a zip. index_list: a file, a name, "all", or None for the default, see
    `training.data.index_lists.resolve_index_list`; the set has one item per entry of the list.

    pose_law: of sets whose cameras nobody knows. The cameras of items are then drawn from it, and labels, which a set
    need not have, are left alone; those that contradict the law are refused.

    Images may have classes: beside the labels, or in place of them where a law draws the cameras.

    Every label is checked here. Cameras in other units than FFHQ's are brought to the units that the generators fit,
    see `Geometry.world_scale`; `raw_labels` stay as stored. May be sent to other processes, by fork or spawn.
    Raises LabelError or DatasetError (both ValueErrors).
    """

    name: str  # of the folder or zip that holds the set, and of the folder of its images
    resolution: int  # pixels, width and height
    has_masks: bool
    index_list: str  # name or file of the list in use; "all" if there is none
    index_description: str  # one line that says which list is in use, where it lies and how many items it gives
    raw_labels: np.ndarray  # float32 [N, 25] as stored
    labels: np.ndarray  # float32 [N, 25] in model units
    geometry: Geometry  # of all labels, in model units
    num_classes: int  # of images; 0: they have none, or `class_problem` says why they cannot be used
    classes: np.ndarray  # int64 [N]; all 0 where there are none
    class_problem: str | None
    notes: list[str]  # one line each on what of the files is not used, and on labels that may be meant otherwise

    def __init__(
        self,
        path: str | os.PathLike,
        index_list: str | os.PathLike | None = None,
        pose_law: PoseLaw | None = None,
    ):
        self._layout = layout = open_layout(path, labelled=pose_law is None)
        layout.require_whole()
        self.name, self.resolution = layout.title, _resolution(layout)
        self.has_masks = layout.has_masks
        count = len(layout.names)
        self.notes = list(layout.notes)
        stored, scaled, self.geometry = self._cameras(path, pose_law)
        self._items, self.index_list, self.index_description = resolve_index_list(layout, index_list)
        self.raw_labels, self.labels = (labels.astype(np.float32)[self._items] for labels in (stored, scaled))
        found = layout.classes(labelled=pose_law is None)
        self.num_classes, self.class_problem = found.count, next(iter(found.problems), None)
        self.classes = (found.of_images if found.count else np.zeros(count, np.int64))[self._items]
        self._memory = PixelMemory(count, self.resolution, self.has_masks, memory_limit())

    def _cameras(self, path: str | os.PathLike, law: PoseLaw | None) -> tuple[np.ndarray, np.ndarray, Geometry]:
        """Returns labels as stored, in model units, and their geometry: those of the files, or drawn from the law."""
        layout = self._layout
        labels = [layout.label(i) for i in range(len(layout.names))]
        known = law is None or not label_problems(labels)  # a set may have classes as labels, or nothing
        if known:
            stored = require_labels(layout.label_source, layout.files, labels)
            cameras = Cameras.from_labels(torch.from_numpy(stored))
            measured = cameras.summary()
        if law is None:
            self.notes += label_notes(layout.label_source, labels, path)
            scaled = stored if measured.world_scale == 1.0 else measured.normalize(cameras).labels.numpy()
            return stored, scaled, measured.to_model_units()
        if known and (why := law.contradiction(cameras, measured)) is not None:
            raise DatasetError(
                f"--pose={law.name} contradicts the labels of {path}: {why}; --pose=labels takes the cameras from there"
            )
        if known:
            self.notes.append(f"{layout.label_source}: is not used, as cameras are drawn by --pose={law.name}")
        drawn = law.labels(0, "data", range(len(labels))).numpy()
        return drawn, drawn, law.geometry

    def __len__(self) -> int:
        return len(self._items)

    def head(self, count: int) -> "ImageDataset":
        """Returns a set of the first `count` items (all, if fewer), with the same cameras and decoded pixels."""
        part = copy.copy(self)
        for name in ("_items", "raw_labels", "labels", "classes"):
            setattr(part, name, getattr(self, name)[:count])
        return part

    def names(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """Names the files of the items `indices`, as messages do."""
        return [self._layout.store.where(self._layout.names[self._items[i]]) for i in indices]

    def load(self, indices: Sequence[int] | np.ndarray | Tensor) -> Batch:
        """Loads the items `indices` as stored; safe in several threads. Raises DatasetError for an unusable file."""
        indices = np.asarray(indices, dtype=np.int64)
        images, masks = self._memory.take(self._items[indices], self._decode)
        return Batch(
            images=torch.from_numpy(images),
            masks=None if masks is None else torch.from_numpy(masks),
            labels=torch.from_numpy(self.labels[indices]),
        )

    def _decode(self, file: int) -> Decoded:
        return self._layout.decode(file, self.resolution)

    def content_key(self) -> str:
        """Hashes images, masks, labels and which items there are; equal for the same set in another place."""
        parts = [self.raw_labels.tobytes(), self._items.tobytes()]
        return self._layout.content_key([*parts, self.classes.tobytes()] if self.num_classes else parts)


def _resolution(layout: Layout) -> int:
    width, height = layout.size
    if width != height:
        raise DatasetError(
            f"{layout.store.where(layout.names[0])}: has {width}x{height} pixels like others; images must be square "
            "(dataset_tool.py convert --crop=centre)"
        )
    return width


def iterate(
    dataset: ImageDataset, index_batches: Iterable[Sequence[int] | np.ndarray], workers: int = 1
) -> Generator[Batch]:
    """Yields `dataset.load` of each list of indices in order, read ahead by `workers` threads; see `ahead`."""
    return ahead(dataset.load, index_batches, workers)


def ahead(make: Callable[[J], T], jobs: Iterable[J], workers: int = 1) -> Generator[T]:
    """Yields `make` of each job in order, done ahead by `workers` threads (0: when asked for).

    `jobs` may be endless; it is read in the calling thread.
    """
    if workers == 0:
        yield from map(make, jobs)
        return
    pending = iter(jobs)
    pool = ThreadPoolExecutor(workers)
    try:
        running = deque(pool.submit(make, job) for job in islice(pending, workers * _PREFETCH))
        while running:
            made = running.popleft().result()
            running.extend(pool.submit(make, job) for job in islice(pending, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


class LookAhead(Generic[T]):
    """Takes items from a generator, always `depth` before they are needed, so that an error is known that early.

    near: called on the item that will be taken next, while the last one is worked on.
    """

    def __init__(self, items: Generator[T], depth: int, near: Callable[[T], None] | None = None):
        self._items, self._depth, self._near = items, depth, near
        self._ready: deque[T] = deque()
        self.error: Exception | None = None  # that ended `items`; what was ready before it can still be taken

    def take(self) -> T:
        """Returns the next item. Raises `error` once nothing before it is left, and StopIteration at the end."""
        while self.error is None and len(self._ready) <= self._depth:
            try:
                self._ready.append(next(self._items))
            except StopIteration:
                break
            except Exception as error:  # raised by whoever takes
                self.error = error
        if not self._ready:
            raise self.error or StopIteration
        taken = self._ready.popleft()
        if self._near is not None and self._ready:
            self._near(self._ready[0])
        return taken

    def close(self) -> None:
        """Ends the threads that work ahead."""
        self._items.close()
