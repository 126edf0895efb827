"""Makes an index list under which a set's cameras spread evenly over yaw and pitch.

Faces are mostly seen from the front; a generator then learns little about their sides. Each image is repeated (or left
out) in inverse proportion to how many share its bin of the yaw/pitch histogram, times a score of its own, as the
published smile-and-pose lists do for FFHQ.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gaussian import Cameras
from torch_utils import random
from training.data.image_store import DatasetError
from training.data.label_check import require_labels
from training.data.label_file import parse_json
from training.data.layout import Layout, numbers_of, open_layout
from training.data.names import roots_of, some, stem_of

MAX_REPEAT = 32  # how often one image may occur; the published list's largest multiplicity


class Rebalanced(NamedTuple):
    """Holds an index list and how evenly it spreads the cameras."""

    entries: list[int] | list[str]  # numbers of the images, or names where numbers do not tell them apart; sorted
    before: float  # entropy of the set's yaw/pitch histogram over that of an even one, 0..1
    after: float  # the same entropy under the list, 0..1
    images: int  # different images in the list
    notes: list[str]  # one line each on what of the set or the scores is not used


def rebalance(
    path: str,
    num: int | None = None,  # approximate length of the list; None: the number of images
    bin_degrees: float = 5.0,
    max_repeat: int = MAX_REPEAT,
    scores: Path | None = None,  # JSON {name or number: score >= 0} or a list in the order of the names
    seed: int = 0,
) -> Rebalanced:
    """Makes the list for the set at `path`. Raises DatasetError or LabelError for a set or scores it cannot use."""
    layout = open_layout(path)
    count = len(layout.names)
    labels = require_labels(layout.label_source, layout.files, [layout.label(i) for i in range(count)])
    cameras = Cameras.from_labels(torch.from_numpy(labels))
    angles = torch.stack(cameras.yaw_pitch(cameras.summary()), dim=-1).rad2deg().numpy()  # [N, 2]
    _, bins = np.unique(np.floor(angles / bin_degrees), axis=0, return_inverse=True)
    bins = bins.reshape(-1)
    notes = list(layout.notes)
    weights = np.ones(count) if scores is None else _read_scores(scores, layout, notes)
    repeats = repeats_of(bins, weights, num or count, max_repeat, seed)
    chosen = np.repeat(np.arange(count), repeats)
    if len(chosen) == 0:
        raise DatasetError(f"{path}: the scores leave no image")
    after = _evenness(bins[chosen], bins.max() + 1)
    return Rebalanced(_entries(layout, chosen), _evenness(bins), after, len(set(chosen)), notes)


def repeats_of(bins: np.ndarray, weights: np.ndarray, num: int, max_repeat: int, seed: int) -> np.ndarray:
    """Returns how often each image occurs, int64 [N]: proportional to weight / (its bin's weight), up to `max_repeat`.

    Fractions are rounded up or down by systematic sampling, so that the sum over every stretch of images is right to
    one.
    """
    mass = np.bincount(bins, weights)
    share = np.divide(weights, mass[bins], out=np.zeros(len(bins)), where=mass[bins] > 0)
    if not share.any():
        return np.zeros(len(bins), dtype=np.int64)
    # What the cap takes from the rare bins goes to the others, until the sum is right or everything is at its cap.
    low, high = 0.0, max_repeat / share[share > 0].min()
    for _ in range(60):
        factor = 0.5 * (low + high)
        low, high = (factor, high) if np.minimum(factor * share, max_repeat).sum() < num else (low, factor)
    wanted = np.minimum(high * share, max_repeat)
    order = random.permutation(seed, "rebalance/order", 0, len(bins))
    start = float(random.uniform(seed, "rebalance/start", [0], (1,)))
    steps = np.floor(np.concatenate([[0.0], np.cumsum(wanted[order])]) + start + 1e-9)
    repeats = np.zeros(len(bins), dtype=np.int64)
    repeats[order] = np.diff(steps)
    return np.minimum(repeats, max_repeat)


def _evenness(bins: np.ndarray, size: int | None = None) -> float:
    """Returns the histogram's entropy over the largest it could have; 1 if all bins are equally full."""
    counts = np.bincount(bins, minlength=size or 0)
    if len(counts) < 2:
        return 1.0
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum() / math.log(len(counts)))


def _entries(layout: Layout, chosen: np.ndarray) -> list[int] | list[str]:
    numbers = numbers_of(layout.stems)
    if numbers.min() >= 0 and len(set(numbers.tolist())) == len(numbers):
        return sorted(numbers[chosen].tolist())
    return sorted(layout.files[i] for i in chosen)


def _read_scores(file: Path, layout: Layout, notes: list[str]) -> np.ndarray:
    """Reads the scores, float64 [N]; images that the file does not name have the score 1, which a note says."""
    try:
        content = parse_json(str(file), file.read_bytes())
    except (OSError, ValueError) as error:
        cause = f"{file}: cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise DatasetError(cause) from error
    if isinstance(content, list):
        if len(content) != len(layout.names):
            raise DatasetError(f"{file}: has {len(content)} scores, the set has {len(layout.names)} images")
        return np.array([_score(file, layout.files[i], value) for i, value in enumerate(content)])
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: must be a JSON object of image names and scores, or a list of scores")
    roots = roots_of(layout.store.path / layout.base)
    by_name: dict[str, float] = {}
    for name, value in content.items():
        if stem_of(name, roots) in by_name:
            raise DatasetError(f"{file}: {name}: has two scores, under names that mean the same")
        by_name[stem_of(name, roots)] = _score(file, name, value)
    names = zip(layout.files, layout.stems, numbers_of(layout.stems).tolist(), strict=True)
    keys = [next((k for k in (stem_of(own), stem, str(n)) if k in by_name), None) for own, stem, n in names]
    if not any(keys):
        raise DatasetError(f"{file}: names no image of the set")
    bare = [layout.files[i] for i, key in enumerate(keys) if key is None]
    if bare:
        notes.append(f"{file}: {len(bare)} of {len(keys)} images have no score and count as 1: {some(bare)}")
    lost = sorted(by_name.keys() - set(keys))
    if lost:
        used = len(by_name) - len(lost)
        notes.append(f"{file}: {used} used of {len(by_name)} scores; the others are of no image: {some(lost)}")
    return np.array([1.0 if key is None else by_name[key] for key in keys])


def _score(file: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DatasetError(f"{file}: {name}: a score must be a finite number of at least 0, got {value!r}")
    return float(value)
