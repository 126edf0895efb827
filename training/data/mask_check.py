"""Judges what masks hold: a mask of the wrong range, or an inverted one, trains without an error. Imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from training.data.names import some

_REACH = 128  # a set whose masks stay below is not in 0..255
_WEAK = 8  # a single mask that stays below, where others do not, holds numbers of classes
_EMPTY_COVER = 0.005  # share of the pictures that the masks of a set cover on average, below which a note says so
_FULL = 0.999  # share from which on a mask covers everything
_ON, _OFF = 0.7, 0.3  # means of border and middle over an inverted set
_ALL_ON, _ALL_OFF = 0.9, 0.1  # the same for a single mask among right ones
_RING = 16  # the border is a 16th of the picture's side wide
_ASPECT_TOLERANCE = 0.01  # relative difference of width over height between a mask and its picture


class MaskLook(NamedTuple):
    """Holds what is judged of a mask."""

    most: int  # largest value, 0..255
    levels: int  # number of different values
    cover: float  # mean of all values over 255
    middle: float  # the same of the middle third in both directions
    border: float  # the same along the border at the top and at the sides; at the bottom, subjects run out of pictures


def look_at(mask: np.ndarray) -> MaskLook:
    """Measures a mask, uint8 [H, W]."""
    height, width = mask.shape
    counts = np.bincount(mask.reshape(-1), minlength=256)
    found = np.flatnonzero(counts)
    total = float(counts @ np.arange(256))
    middle = mask[height // 3 : height - height // 3, width // 3 : width - width // 3]
    ring = max(1, min(height, width) // _RING)
    upper = mask[: height - height // 3]
    inner = upper[ring:, ring : width - ring]
    border = float(upper.sum(dtype=np.int64) - inner.sum(dtype=np.int64)) / max(upper.size - inner.size, 1)
    return MaskLook(int(found[-1]), len(found), total / mask.size / 255, float(middle.mean()) / 255, border / 255)


def fits(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Tells whether a mask has the shape of its picture; both sizes are (width, height), at any resolution."""
    return abs(mask[0] / mask[1] * picture[1] / picture[0] - 1) <= _ASPECT_TOLERANCE


@dataclass
class Verdict:
    """Holds what was found out about all masks of a set."""

    problems: list[str] = field(default_factory=list)  # one line each; what keeps the set from being used
    notes: list[str] = field(default_factory=list)  # one line each; what a user should know
    mend: Callable[[np.ndarray], np.ndarray] | None = None  # makes a right mask of any of them, uint8 [H, W]


def judge(looks: Sequence[MaskLook], names: Sequence[str], title: str) -> Verdict:
    """Judges the masks of a set; `names` are the masks' or their pictures', `title` is the set's, in messages."""
    verdict = Verdict()
    if not looks:
        return verdict
    reach = max(look.most for look in looks)
    if reach == 0:
        verdict.problems.append(f"{title}: all {len(looks)} masks are empty (0 everywhere); 255 belongs on the subject")
        return verdict
    if reach < _REACH:
        verdict.problems.append(
            f"{title}: the masks reach {reach} of 255, so the subject would be all but transparent; "
            "255 belongs on the subject, 0 behind it"
        )
    else:
        verdict.problems += [
            f"{name}: the mask reaches {look.most} of 255, others {reach}"
            for name, look in zip(names, looks, strict=True)
            if 0 < look.most < _WEAK
        ]
    scale = 255 / reach if reach < _REACH else 1.0
    upside = _inverted(looks, names, title, scale, verdict)
    if verdict.problems and all(look.levels <= 2 for look in looks if look.most < _REACH):
        verdict.mend = _mender(upside, reach < _REACH)
    _note_coverage(looks, names, title, scale, verdict)
    return verdict


def _inverted(looks: Sequence[MaskLook], names: Sequence[str], title: str, scale: float, verdict: Verdict) -> bool:
    """Adds problems for masks that cover what is behind the subject; returns whether that is so for the whole set."""
    border, middle = (scale * float(np.mean([getattr(look, n) for look in looks])) for n in ("border", "middle"))
    if border > _ON and middle < _OFF:
        verdict.problems.append(
            f"{title}: the masks look inverted: they cover {border:.0%} of the pictures' border and {middle:.0%} of "
            "the middle; 255 belongs on the subject, 0 behind it"
        )
        return True
    verdict.problems += [
        f"{name}: the mask looks inverted, unlike others: it covers the border and not the middle"
        for name, look in zip(names, looks, strict=True)
        if scale * look.border > _ALL_ON and scale * look.middle < _ALL_OFF
    ]
    return False


def _mender(upside: bool, weak: bool) -> Callable[[np.ndarray], np.ndarray]:
    def mend(mask: np.ndarray) -> np.ndarray:
        look = look_at(mask)
        if weak or 0 < look.most < _WEAK:
            mask = np.where(mask > 0, np.uint8(255), np.uint8(0))
            look = look_at(mask)
        if upside or (look.border > _ALL_ON and look.middle < _ALL_OFF):
            mask = 255 - mask
        return mask

    return mend


def _note_coverage(looks: Sequence[MaskLook], names: Sequence[str], title: str, scale: float, verdict: Verdict) -> None:
    empty = [name for name, look in zip(names, looks, strict=True) if look.most == 0]
    if empty:
        verdict.notes.append(f"{title}: {len(empty)} of {len(looks)} masks are empty: {some(empty)}")
    covers = [scale * look.cover for look in looks]
    mean, border = float(np.mean(covers)), scale * float(np.mean([look.border for look in looks]))
    if min(covers) > _FULL:
        verdict.notes.append(f"{title}: every mask is full, as if no picture had a background")
    elif mean < _EMPTY_COVER:
        verdict.notes.append(f"{title}: the masks cover {mean:.2%} of the pictures on average")
    elif border > 0.5:
        verdict.notes.append(
            f"{title}: the masks cover {border:.0%} of the pictures' border: the subject runs out of the pictures"
        )
