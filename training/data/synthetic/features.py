"""Knows where the eyes, the mouth and the chin of a procedural head are seen, and builds heads with faults.

A fault changes the solids and leaves the rest of the head as it was: where an eye was is skin. What a picture shows is
read off the ray-cast hits, so that an eye behind the nose or under hair does not count. NumPy only.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.synthetic.heads import EYE, LIPS, SKIN, Head, build_head, shade
from training.data.synthetic.raycast import EMPTY, Hits, cast, resolve_samples
from training.data.synthetic.traits import HEAD_UNIT, Draws, sample_traits

FAULTS = ("none", "no eyes", "one eye", "no mouth", "no face", "cyclops", "three eyes", "two mouths")
FEATURES = ("eye", "mouth", "chin")  # the kinds of what is to be found
MAX_FEATURES = 6  # of a head: three eyes, two mouths and the chin
_STREAM = 11  # of the numbers that decide faults; identities and cameras have streams of their own
_APART = 0.075  # least distance of an added feature from another of its kind, in HEAD_UNIT


@dataclass(frozen=True)
class Feature:
    """Is one eye, mouth or chin of a head."""

    kind: int  # index into FEATURES
    point: np.ndarray  # [3] world units, on the surface
    solids: tuple[int, ...]  # what shows it; () for the chin, which is a place on the jaw


def features_of(head: Head) -> list[Feature]:
    """Returns every eye and mouth that the head has, and its chin: the lowest point of the jaw."""
    solids = head.solids
    found = [
        Feature(0, solids.centres[i] + [0.0, 0.0, solids.axes[i, 2]], (int(i),))
        for i in np.nonzero(head.paints == EYE)[0]
    ]
    lips = np.nonzero(head.paints == LIPS)[0]
    for left, right in zip(lips[::2], lips[1::2], strict=True):  # a mouth has two halves
        middle = (solids.centres[left] + solids.centres[right]) / 2 + [0.0, 0.0, solids.axes[left, 2]]
        found.append(Feature(1, middle, (int(left), int(right))))
    traits = head.traits
    return [*found, Feature(2, HEAD_UNIT * np.array([0.0, -0.045 - traits.jaw_length, 0.035]), ())]


def seen_area(head: Head, hits: Hits, feature: Feature, samples: int) -> float:
    """Returns in how many pixels of `samples` x `samples` rays an eye (without its lids) or a mouth is seen."""
    owner = hits.owner[hits.owner != EMPTY]
    mine = np.isin(owner, feature.solids)
    if feature.kind == FEATURES.index("eye"):
        height, lid = hits.local[:, 1], 2.0 * head.traits.eye_open - 1.0
        mine &= (height < lid - 0.18) & (height > -0.88) & (hits.local[:, 2] > 0)  # as `heads` paints it
    return float(mine.sum()) / samples**2


# ---------------------------------------------------------------- faults


def with_fault(head: Head, fault: str, draws: Draws) -> Head:
    """Returns the head with one of FAULTS. Raises ValueError for another word."""
    eyes, lips = np.nonzero(head.paints == EYE)[0], np.nonzero(head.paints == LIPS)[0]
    if fault == "none":
        return head
    if fault == "no eyes":
        return _without(head, eyes)
    if fault == "one eye":
        return _without(head, eyes[[draws.choice((1, 1))]])
    if fault == "no mouth":
        return _without(head, lips)
    if fault == "no face":
        return _without(head, np.concatenate([eyes, lips]))
    if fault == "cyclops":
        place = (draws.uniform(-0.015, 0.015), head.traits.eye_height + draws.uniform(-0.01, 0.01))
        return _without(_moved(head, eyes[:1], place), eyes[1:])
    if fault == "three eyes":
        return _with_copy(head, eyes[:1], _free_place(head, draws, low=-0.06, high=0.12))
    if fault == "two mouths":
        return _with_copy(head, lips, _free_place(head, draws, low=-0.05, high=0.09))
    raise ValueError(f"fault {fault!r} does not exist; legal are {', '.join(FAULTS)}")


def _free_place(head: Head, draws: Draws, low: float, high: float) -> tuple[float, float]:
    """Draws (x, y) in HEAD_UNIT on the face, away from its eyes and its mouth."""
    taken = [feature.point[:2] / HEAD_UNIT for feature in features_of(head)[:-1]]
    for _ in range(20):
        place = np.array([draws.uniform(-0.09, 0.09), draws.uniform(low, high)])
        if min(np.linalg.norm(place - other) for other in taken) > _APART:
            break
    return float(place[0]), float(place[1])


def _without(head: Head, which: np.ndarray) -> Head:
    """Returns the head without some solids, none of which may be one of the smooth ones."""
    keep = np.setdiff1d(np.arange(len(head.paints)), which)
    return _chosen(head, keep)


def _chosen(head: Head, order: np.ndarray) -> Head:
    solids = dataclasses.replace(
        head.solids, **{f.name: getattr(head.solids, f.name)[order].copy() for f in dataclasses.fields(head.solids)}
    )
    smooth = np.nonzero(np.isin(order, head.smooth))[0]
    return dataclasses.replace(
        head, solids=solids, colours=head.colours[order], paints=head.paints[order], smooth=smooth
    )


def _with_copy(head: Head, which: np.ndarray, place: tuple[float, float]) -> Head:
    count = len(head.paints)
    copied = _chosen(head, np.concatenate([np.arange(count), which]))
    return _moved(copied, np.arange(count, count + len(which)), place)


def _moved(head: Head, which: np.ndarray, place: tuple[float, float]) -> Head:
    """Moves solids so that the mean of their centres is at (x, y) in HEAD_UNIT, as deep in the skin as before."""
    solids = _chosen(head, np.arange(len(head.paints))).solids
    old = solids.centres[which].mean(0)
    new = np.array([*place, 0.0]) * HEAD_UNIT
    skin = head.paints == SKIN
    new[2] = old[2] + head.front(new[None, :2], skin)[0] - head.front(old[None, :2], skin)[0]
    solids.centres[which] += new - old
    return dataclasses.replace(head, solids=solids)


# ---------------------------------------------------------------- pictures with truth


@dataclass(frozen=True)
class Truths:
    """Holds N pictures of heads and what is seen in them; K = MAX_FEATURES, unused places have kind -1."""

    images: np.ndarray  # uint8 [N, 3, R, R], not premultiplied
    masks: np.ndarray  # uint8 [N, 1, R, R]
    kinds: np.ndarray  # int8 [N, K] indices into FEATURES, -1 for none
    places: np.ndarray  # float32 [N, K, 2] in units of the image, 0..1 from the left and from the top
    areas: np.ndarray  # float32 [N, K] seen pixels of R x R; inf for a chin


def joined(*parts: Truths) -> Truths:
    """Returns all pictures of some parts, one after the other."""
    return Truths(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def render_truths(
    seed: int, indices: Sequence[int], faults: Sequence[str], labels: np.ndarray, resolution: int, samples: int = 2
) -> Truths:
    """Renders heads `indices` of the set `seed` with a fault each, under labels [N, 25], and reads what they show."""
    count = len(indices)
    images = np.empty((count, 3, resolution, resolution), np.uint8)
    masks = np.empty((count, 1, resolution, resolution), np.uint8)
    kinds = np.full((count, MAX_FEATURES), -1, np.int8)
    places = np.zeros((count, MAX_FEATURES, 2), np.float32)
    areas = np.zeros((count, MAX_FEATURES), np.float32)
    for n, (index, fault, label) in enumerate(zip(indices, faults, labels, strict=True)):
        pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
        head = with_fault(build_head(sample_traits(seed, int(index))), fault, Draws(seed, _STREAM, int(index)))
        hits = cast(head.solids, pose, intrinsics, resolution, samples)
        images[n], masks[n], _ = resolve_samples(hits, shade(head, hits), resolution)
        for k, feature in enumerate(features_of(head)):
            local = (feature.point - pose[:3, 3]) @ pose[:3, :3]
            kinds[n, k] = feature.kind
            places[n, k] = (intrinsics[:2] @ local) / local[2]
            areas[n, k] = seen_area(head, hits, feature, samples) if feature.solids else np.inf
    return Truths(images, masks, kinds, places, areas)
