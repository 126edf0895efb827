"""Moves the camera of a film: closed paths about a data set's own geometry, and cameras from a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras, Geometry
from training.data.image_store import printable
from training.data.label_check import require_labels
from training.data.label_file import parse_json
from training.data.names import roots_of, stem_of

PATHS = ("front", "circle", "orbit", "wiggle", "still", "swell")
# "front", in the angles h (yaw, frontal at pi/2) and v (pitch, level at pi/2) of EG3D (Chan et al. 2022).
FRONT_YAW, FRONT_PITCH, FRONT_LIFT = 0.35, 0.25, -0.05  # radians of h, of v, and added to v: seen a little from above
SWELL_PITCH = 0.8  # of the yaw's half axis, of "swell" (Sun et al. 2022, CGOF)
CIRCLE = 0.6 / 2.7  # radius of "circle" over the radius of the data's cameras, as in GGHead (Kirschstein et al. 2024)


def camera_path(
    kind: str,  # see PATHS
    geometry: Geometry,
    num_frames: int,
    yaw_limits: tuple[float, float] = (-math.pi / 6, math.pi / 6),  # radians; of "wiggle" only
    turns: int = 1,  # times round the path
) -> Cameras:
    """Returns cameras [num_frames] about the centre. The path closes: the camera after the last one would be the first.

    front: once round an ellipse before the face. circle: once round a circle before the face, from above, whose axis is
    world z. orbit: a full turn at level pitch, from the front towards world +x.
    wiggle: from side to side within `yaw_limits`, as far as the data's cameras stand. still: frontal. swell: twice
    round an ellipse that grows to these limits and shrinks again, in even steps (CGOF's films of poses).
    Raises ValueError for an unknown kind or no frame.
    """
    if num_frames < 1:
        raise ValueError(f"a film needs at least 1 frame, got {num_frames}")
    phase = torch.arange(num_frames, dtype=torch.float64) * (2 * math.pi * turns / num_frames)
    if kind == "front":
        cameras = look_at_angles(
            math.pi / 2 + FRONT_YAW * phase.sin(), math.pi / 2 + FRONT_LIFT + FRONT_PITCH * phase.cos(), geometry
        )
    elif kind == "circle":
        way = torch.stack([-CIRCLE * phase.sin(), CIRCLE * phase.cos(), torch.ones_like(phase)], dim=-1)
        position = phase.new_tensor(geometry.centre) + geometry.radius * way
        cameras = Cameras.look_at(position, geometry.pivot, intrinsics=phase.new_tensor(geometry.intrinsics))
    elif kind == "orbit":
        cameras = geometry.orbit(phase)
    elif kind == "wiggle":
        low, high = yaw_limits
        cameras = geometry.orbit((low + high) / 2 + (high - low) / 2 * phase.sin())
    elif kind == "still":
        cameras = geometry.orbit(0 * phase)
    elif kind == "swell":
        cameras = geometry.orbit(*swelling(num_frames, max(abs(limit) for limit in yaw_limits), turns))
    else:
        raise ValueError(f"camera path {kind!r} does not exist; legal are {', '.join(PATHS)} and a file.json")
    return cameras.to(dtype=torch.float32)


def swelling(num_frames: int, most: float, turns: int = 1) -> tuple[Tensor, Tensor]:
    """Returns yaw and pitch [num_frames], radians, of a camera that goes twice round an ellipse for every turn.

    Its half axes grow from 0 to `most` and SWELL_PITCH of it, and shrink again. Steps are equally long.
    """
    place = torch.linspace(0, 1, 2000 * turns + 1, dtype=torch.float64)
    size = most * (1 - (2 * (place * turns % 1) - 1).abs())
    yaw, pitch = size * (4 * math.pi * turns * place).cos(), SWELL_PITCH * size * (4 * math.pi * turns * place).sin()
    length = torch.nn.functional.pad(torch.hypot(yaw.diff(), pitch.diff()).cumsum(0), (1, 0))
    asked = torch.arange(num_frames, dtype=torch.float64) * (length[-1] / num_frames)
    after = torch.searchsorted(length, asked).clamp(min=1)
    part = (asked - length[after - 1]) / (length[after] - length[after - 1]).clamp(min=1e-12)
    return torch.lerp(yaw[after - 1], yaw[after], part), torch.lerp(pitch[after - 1], pitch[after], part)


def breathing(cameras: Cameras, degrees: float) -> Cameras:
    """Returns cameras [F] of a film whose field of view widens and narrows once, as pi-GAN's films do.

    The angle across the image grows by `degrees` times 1 + sin over the film: between 0 and twice as much.
    Raises ValueError for a field of view that leaves 0..180 degrees.
    """
    phase = torch.arange(len(cameras), dtype=torch.float64) * (2 * math.pi / len(cameras))
    half = torch.atan(0.5 / cameras.intrinsics[:, 0, 0].double())
    wider = half + math.radians(degrees) / 2 * (1 + phase.sin())
    if not bool(((wider > 0) & (wider < math.pi / 2)).all()):
        raise ValueError(f"--fov-breathing={degrees:g}: the field of view must stay within 0 to 180 degrees")
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, :2] *= (half.tan() / wider.tan()).to(intrinsics)[:, None, None]
    return Cameras(cameras.cam2world, intrinsics)


def look_at_angles(h: Tensor, v: Tensor, geometry: Geometry) -> Cameras:
    """Returns cameras of h's and v's (broadcast) shape by the angles of EG3D's sampler, looking at the pivot.

    h: radians, frontal at pi/2, larger towards world +x. v: radians in 0..pi, level at pi/2, smaller is higher; the
    height above the centre is radius (1 - 2 v / pi), so that even steps of v are even steps of height.
    """
    return geometry.orbit(h - math.pi / 2, torch.asin((1 - 2 * v / math.pi).clamp(-1, 1)))


def read_cameras(path: str | Path, geometry: Geometry, pictures: Sequence[str] = ()) -> Cameras:
    """Reads cameras [F] from a file, one per frame, in model units.

    pictures: files whose cameras are wanted; the labels of a dataset.json are then taken by name, not in order.

    The file is JSON: a list of labels of 25 numbers each (camera-to-world 4x4, then intrinsics 3x3 normalised by the
    image size, row by row), or a dataset.json, whose labels are taken in their order. Both in the units of the data
    set's own labels. Raises ValueError if it is not there, is neither, is empty, or holds what is no camera; OSError.
    """
    name = str(path)
    try:
        content = parse_json(name, Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file of cameras") from None
    entries = content.get("labels") if isinstance(content, dict) else content
    if isinstance(entries, dict):
        entries = [list(entry) for entry in entries.items()]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{name}: no cameras; legal is [[25 numbers], ...], or a dataset.json with its labels")
    if pictures and all(_is_named(e) for e in entries):
        entries = [_label_of(name, entries, picture) for picture in pictures]
    pairs = [e if _is_named(e) else (f"camera {i}", e) for i, e in enumerate(entries)]
    labels = require_labels(name, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return geometry.normalize(Cameras.from_labels(torch.from_numpy(labels))).to(dtype=torch.float32)


def write_cameras(path: str | Path, cameras: Cameras, geometry: Geometry) -> None:
    """Writes cameras [F] in model units as a file that `read_cameras` reads."""
    labels = geometry.denormalize(cameras.to(dtype=torch.float64)).labels
    Path(path).write_text(json.dumps(labels.tolist()) + "\n")


def _label_of(source: str, entries: Sequence[Any], picture: str) -> Any:
    """Returns the entry of a dataset.json that names a picture as it lies in its set, spelt as `names` allows.

    A label may name as many of the picture's folders as it likes. Raises ValueError for none, and for more than one.
    """
    roots = [root for place in (source, picture) for root in roots_of(Path(place).parent)]
    where = stem_of(os.path.abspath(picture))
    found = [entry for entry in entries if where.endswith(f"/{stem_of(entry[0], roots)}")]
    if not found:
        hint = f"the name {Path(picture).name} would be legal, its first label is called {entries[0][0]}"
    else:
        hint = f"only one is legal of {' and '.join(entry[0] for entry in found[:2])}"
    if len(found) != 1:
        raise ValueError(printable(f"{source}: has {len(found)} label(s) for {picture}; {hint}"))
    return found[0]


def _is_named(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
