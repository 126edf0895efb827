"""Reads the classes of images: whole numbers from 0, or vectors with a single 1, as StyleGAN and EpiGRAF write them.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.data.names import some

MOST = 10_000  # classes; networks have a column of weights for each


@dataclass(frozen=True)
class Classes:
    """Holds the classes of the N images of a set, if they have any."""

    count: int = 0  # of classes, with or without images; 0: images have none that can be used
    of_images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # int64 [N], 0 to count - 1
    problems: list[str] = field(default_factory=list)  # what keeps them from being used, one line each

    @property
    def entry(self) -> dict[str, int]:
        """What a label file says of their number, if there are any."""
        return {"num_classes": self.count} if self.count else {}


def read_classes(source: str, names: Sequence[str], values: Sequence[Any], count: Any = None) -> Classes:
    """Returns the classes of images that a file gives `values`, or None, to.

    source, names: of the file and of the images, for messages. count: of classes, as the file has it; None takes the
    width of the vectors, or the largest number + 1, as the published readers do.
    """
    if all(value is None for value in values):
        return Classes()
    found = [_class_of(value) for value in values]
    if wrong := [name for name, one in zip(names, found, strict=True) if one is None]:
        first = values[found.index(None)]
        what = "has none" if first is None else f"{_short(first)} is none"
        return _unusable(
            f"{source}: {wrong[0]}: every image needs a class, and this one {what}; legal are whole numbers of 0 to "
            f"{MOST - 1}, or vectors with a single 1 ({len(wrong)} of {len(names)} images: {some(wrong)})"
        )
    kinds = sorted({width for _, width in found})  # type: ignore[misc]  # none is None here
    if len(kinds) > 1:
        words = ["numbers" if width == 0 else f"vectors of {width}" for width in kinds]
        return _unusable(f"{source}: the classes of images are {' and '.join(words)}; one form for all is legal")
    of_images = np.array([one[0] for one in found], dtype=np.int64)  # type: ignore[index]
    least = kinds[0] or int(of_images.max()) + 1
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not least <= count <= MOST):
        return _unusable(f"{source}: num_classes={_short(count)}: {least}, as classes go, to {MOST} are legal")
    return Classes(count or least, of_images)


def is_class(value: Any) -> bool:
    """Says whether a label is a class."""
    return _class_of(value) is not None


def _class_of(value: Any) -> tuple[int, int] | None:
    """Returns a class and the width of its vector, 0 for a number; None for what is no class."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, 0) if 0 <= value < MOST else None
    if not isinstance(value, list | tuple) or not 1 < len(value) <= MOST:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) or v not in (0, 1) for v in value) or sum(value) != 1:
        return None
    return list(value).index(1), len(value)


def _unusable(problem: str) -> Classes:
    return Classes(problems=[problem])


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
