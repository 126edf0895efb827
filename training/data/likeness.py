"""Compares the framing of two image sets: size and place of the heads, cameras, mean picture, yaw histogram."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from gaussian import Cameras
from training.data.image_store import MAX_JSON_BYTES
from training.data.label_check import require_labels
from training.data.layout import LABELS, Layout, open_layout

_SIDE = 64  # pixels of the pictures that are compared
_MOST = 1000  # pictures of a set that are looked at, evenly over its names
_FRONT = 20.0  # degrees of yaw up to which a picture takes part in the mean of frontal ones
_BIN = 15.0  # degrees of a bin of yaw
_FEWEST = 5  # pictures below which a mean says nothing
# How far two sets may differ before a line says what to do.
SIZE, CENTRE, FOCAL, PITCH, YAW, MEAN = 0.04, 0.02, 0.02, 3.0, 0.25, 0.7


@dataclass(frozen=True)
class Look:
    """Holds what is compared of a set."""

    yaw: np.ndarray  # [N] degrees
    pitch: np.ndarray  # [N] degrees
    focal: float  # picture widths, the median
    radius: float  # world units, the median
    front: np.ndarray | None  # [S, S] mean of frontal pictures, 0..1 (of masks, if the set has them)
    bright: float  # mean grey value, 0..1; under the masks, if they are compared
    left: np.ndarray | None  # the same of those whose camera stands at yaw < -20 degrees
    right: np.ndarray | None
    masks: bool
    rules: dict[str, Any]  # of `import --from=photos`, where the set came of it


def look_at_set(path: str | os.PathLike[str], masks: bool, progress: Callable[[int], None] | None = None) -> Look:
    """Measures a set; `masks` says whether to compare masks. Raises ValueError if it cannot be used."""
    layout = open_layout(path)
    layout.require_whole()
    labels = require_labels(layout.label_source, layout.files, [layout.label(i) for i in range(len(layout.names))])
    cameras = Cameras.from_labels(torch.from_numpy(labels))
    geometry = cameras.summary()
    yaw, pitch = (np.degrees(angle.numpy()) for angle in cameras.yaw_pitch(geometry))
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _MOST)).round().astype(int))
    greys, shapes = [], []
    for i in chosen.tolist():
        pixels, mask = layout.decode(i, None)
        greys.append(_small(pixels.astype(np.float32).mean(0)))
        if masks and mask is not None:
            shapes.append(_small(mask[0].astype(np.float32)))
        if progress is not None:
            progress(1)
    grey = np.stack(greys)
    turn = yaw[chosen]
    return Look(
        yaw,
        pitch,
        float(np.median(labels[:, 16])),
        geometry.radius,
        _mean(np.stack(shapes) if shapes else grey, np.abs(turn) <= _FRONT),
        float(np.average(grey, weights=np.stack(shapes) + 1e-6) if shapes else grey.mean()),
        _mean(grey, turn < -_FRONT),
        _mean(grey, turn > _FRONT),
        bool(shapes),
        _rules(layout),
    )


def _small(values: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((_SIDE, _SIDE), Image.Resampling.BOX)) / 255.0


def _mean(pictures: np.ndarray, chosen: np.ndarray) -> np.ndarray | None:
    return pictures[chosen].mean(0) if chosen.sum() >= _FEWEST else None


def _rules(layout: Layout) -> dict[str, Any]:
    name = f"{layout.base}/{LABELS}" if layout.base else LABELS
    if not layout.store.has(name):
        return {}
    framing = json.loads(layout.store.read(name, MAX_JSON_BYTES)).get("rules", {})
    return framing.get("framing", {}) if isinstance(framing, dict) else {}


def compare(
    path: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    progress: Callable[[int], None] | None = None,
) -> tuple[list[str], list[str]]:
    """Returns what was compared, a line each, and what is off and what to do about it, a line each.

    Raises ValueError if one of the sets cannot be used.
    """
    masks = open_layout(path).has_masks and open_layout(reference).has_masks
    ours, theirs = look_at_set(path, masks, progress), look_at_set(reference, masks, progress)
    facts: list[str] = []
    advice: list[str] = []
    _compare_framing(ours, theirs, facts, advice)
    _compare_cameras(ours, theirs, facts, advice)
    _compare_sides(ours, theirs, advice)
    return facts, advice


def _option(ours: Look, name: str, value: float) -> str:
    done = "import again with" if ours.rules else "if it comes of import --from=photos: import again with"
    return f"{done} --{name}={value:.3g}"


def _compare_framing(ours: Look, theirs: Look, facts: list[str], advice: list[str]) -> None:
    what = "masks" if ours.masks else "mean pictures"
    if ours.front is None or theirs.front is None:
        facts.append(f"head height and centre: not compared; {_FEWEST} pictures within {_FRONT:g} degrees are needed")
    else:
        size, right, down, likeness = register(ours.front, theirs.front)
        facts.append(f"head height: {size:.2f} of the reference's (by the {what})")
        aside, below = "right" if right > 0 else "left", "lower" if down > 0 else "higher"
        facts.append(f"centre: {abs(right):.1%} of a picture further {aside}, {abs(down):.1%} {below}")
        facts.append(f"mean picture: correlation {likeness:.2f} once size and place agree")
        if abs(size - 1) > SIZE:
            zoom = float(ours.rules.get("zoom", 1.0)) / size
            advice.append(
                f"heads are {abs(size - 1):.0%} {'larger' if size > 1 else 'smaller'}: {_option(ours, 'zoom', zoom)}"
            )
        if abs(down) > CENTRE:
            shift = float(ours.rules.get("shift", 0.0)) - down
            advice.append(
                f"heads stand {abs(down):.1%} {'lower' if down > 0 else 'higher'}: {_option(ours, 'shift', shift)}"
            )
        if abs(right) > CENTRE:
            advice.append(
                f"heads stand {abs(right):.1%} further {'right' if right > 0 else 'left'}: the crops or the principal "
                "points are off; show-cameras shows where the labels put the origin"
            )
        if likeness < MEAN:
            advice.append(
                f"mean pictures differ (correlation {likeness:.2f}): another kind of picture, or crops that do not "
                "agree with each other; show-cameras shows the mean picture per yaw"
            )
    bright = ours.bright - theirs.bright
    where = "under the masks" if ours.masks else "backgrounds included"
    facts.append(f"brightness: {ours.bright:.2f} and {theirs.bright:.2f} of white, {where}")
    if abs(bright) > 0.15:
        advice.append(
            f"pictures are {'brighter' if bright > 0 else 'darker'} by {abs(bright):.2f} of white: exposure, or "
            "another kind of background"
        )


def register(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float, float]:
    """Finds by which size and shift [S, S] `ours` looks like `theirs`.

    Returns size (1.1: ours shows things a tenth larger), shifts right and down in picture widths, and the correlation.
    """
    best = (1.0, 0.0, 0.0, _alike(ours, theirs, 1.0, 0.0, 0.0))
    for reach, steps in ((0.24, 9), (0.06, 9), (0.015, 7), (0.004, 7)):
        offsets = np.linspace(-reach, reach, steps)
        centre = best
        for grow in offsets:
            for right in offsets / 2:
                for down in offsets / 2:
                    tried = centre[0] * math.exp(1.5 * grow), centre[1] + right, centre[2] + down
                    alike = _alike(ours, theirs, *tried)
                    if alike > best[3]:
                        best = (*tried, alike)
    return best


def _alike(ours: np.ndarray, theirs: np.ndarray, size: float, right: float, down: float) -> float:
    """Returns the correlation of `theirs` with `ours`, shrunk by `size` about its middle and moved back."""
    side = ours.shape[0]
    # Output pixel x shows what lies at (x - middle) size + middle + shift of ours.
    offset = 0.5 * side * (1 - size)
    data = (size, 0.0, offset + right * side, 0.0, size, offset + down * side)
    picture = Image.fromarray(ours.astype(np.float32))
    moved = np.asarray(picture.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))
    grid = np.arange(side) + 0.5
    x, y = size * grid + data[2], size * grid + data[5]
    seen = ((x > 0) & (x < side))[None] & ((y > 0) & (y < side))[:, None]
    a, b = moved[seen] - moved[seen].mean(), theirs[seen] - theirs[seen].mean()
    return float((a @ b) / max(math.sqrt(float(a @ a) * float(b @ b)), 1e-9))


def _compare_cameras(ours: Look, theirs: Look, facts: list[str], advice: list[str]) -> None:
    facts.append(f"focal length: {ours.focal:.4g} and {theirs.focal:.4g} picture widths")
    facts.append(f"distance: {ours.radius:.3g} and {theirs.radius:.3g} world units")
    wide = [look.radius / look.focal for look in (ours, theirs)]
    if abs(ours.focal / theirs.focal - 1) > FOCAL:
        advice.append(
            f"focal length is {ours.focal / theirs.focal:.2f} of the reference's: a generator learns one; import both "
            "sets under one convention (--focal), or give this set's own to every script"
        )
    if abs(wide[0] / wide[1] - 1) > SIZE:
        advice.append(f"a picture is {wide[0]:.3g} world units wide at the head, the reference's {wide[1]:.3g}")
    level, other_level = _front_pitch(ours), _front_pitch(theirs)
    pitch = level - other_level
    facts.append(f"median pitch of frontal cameras: {level:.1f} and {other_level:.1f} degrees")
    if abs(pitch) > PITCH:
        tilt = float(ours.rules.get("tilt", 0.0)) - pitch
        advice.append(
            f"cameras stand {abs(pitch):.1f} degrees {'higher' if pitch > 0 else 'lower'}: where both sets show heads "
            f"alike, level means another thing; {_option(ours, 'tilt', tilt)}"
        )
    edges = np.arange(-180, 180 + _BIN, _BIN)
    mine, other = (np.histogram(look.yaw, edges)[0] / len(look.yaw) for look in (ours, theirs))
    overlap = float(np.minimum(mine, other).sum())
    facts.append(
        f"yaw: {_spread(ours.yaw)} and {_spread(theirs.yaw)}; the histograms share {overlap:.0%} (bins of {_BIN:g} "
        "degrees)"
    )
    if 1 - overlap > YAW:
        narrower = np.std(ours.yaw) < np.std(theirs.yaw)
        advice.append(
            f"yaw histograms share {overlap:.0%}: "
            + ("side views are rarer: add some, or dataset_tool.py rebalance" if narrower else "rebalance this set")
        )


def _front_pitch(look: Look) -> float:
    """Returns a median in degrees. A face that looks up moves the pitch of cameras at its sides less."""
    front = np.abs(look.yaw) <= _FRONT
    return float(np.median(look.pitch[front] if front.sum() >= _FEWEST else look.pitch))


def _spread(yaw: np.ndarray) -> str:
    low, high = np.quantile(yaw, (0.05, 0.95))
    return f"{low:.0f} to {high:.0f} degrees (90 % of pictures)"


def _compare_sides(ours: Look, theirs: Look, advice: list[str]) -> None:
    """Finds a yaw of the opposite sign: heads that turn the other way than the reference's."""
    if ours.left is None or ours.right is None or theirs.left is None or theirs.right is None:
        return
    own, other = ours.right - ours.left, theirs.right - theirs.left
    likeness = _alike(own, other, 1.0, 0.0, 0.0)
    if likeness < -0.2:
        advice.append(
            f"heads turn against their yaw, compared with the reference (correlation {likeness:.2f}): labels or "
            "pictures are mirrored"
        )
