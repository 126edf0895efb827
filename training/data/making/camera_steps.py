"""Decides what is done to each picture of an import before its crop: turned upright, undistorted, or nothing."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.image_store import DatasetError, FolderStore
from training.data.making.reshape import MIRRORING, TRANSPOSING, Distortion, Size, Step, Turn, Undistort
from training.data.names import some
from training.data.pixels import has_alpha, open_image, orientation

UNDISTORT, REFUSE = "undistort", "refuse"  # what is done with pictures of distorting lenses
_ASPECT_TOLERANCE = 0.01  # relative difference of width over height between an image and its camera's image


@dataclass(frozen=True)
class Shot:
    """Holds a picture with its camera, as another program has left them."""

    picture: Path
    mask: Path | None
    cam2world: np.ndarray  # float64 [4, 4], OpenCV axes
    intrinsics: np.ndarray  # float64 [3, 3], normalised by the picture's size
    size: Size  # width and height in pixels that the camera is for; a picture may be a scaled copy
    distortion: Distortion


@dataclass(frozen=True)
class Prepared:
    """Holds the camera of a picture after the steps, and the steps."""

    cam2world: np.ndarray
    intrinsics: np.ndarray
    steps: tuple[Step, ...]
    turn: Turn | None  # what the picture's orientation tag asks for, whether or not it is done
    has_alpha: bool


@dataclass
class Preparation:
    """Holds all pictures of an import, and one line for each thing that was decided."""

    views: list[Prepared]
    notes: list[str]


class _Told:
    """Collects what was decided, with the pictures that it was decided for."""

    def __init__(self) -> None:
        self._by_what: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, name: str) -> None:
        self._by_what[what].append(name)

    def lines(self, total: int) -> list[str]:
        return [
            f"{len(names)} of {total} pictures {what}: {some(names)}" for what, names in sorted(self._by_what.items())
        ]


def prepare(shots: Sequence[Shot], distortion: str = UNDISTORT) -> Preparation:
    """Opens the head of each picture and decides its steps.

    distortion: "undistort" resamples pictures of lenses with distortion, "refuse" raises. A picture with an EXIF
    orientation is turned upright with its camera; whether the camera is for the pixels as stored or upright follows
    from its width and height, and where these are equal it is for the pixels as stored, as COLMAP reads them.
    Raises DatasetError for a camera that is for a picture of another shape.
    """
    told = _Told()
    lenses: dict[tuple[Distortion, tuple[float, ...]], Undistort] = {}
    views = []
    for shot in shots:
        name = str(shot.picture)
        image = open_image(FolderStore(shot.picture.parent).read(shot.picture.name), name, decode=False)
        tag = orientation(image)
        before, pose, k, after = _turned(shot, name, image.size, tag, told)
        steps = list(before)
        if not shot.distortion.is_none:
            if distortion == REFUSE:
                raise DatasetError(
                    f"{name}: its lens has distortion, and --distortion=refuse; undistorted ones are legal"
                )
            lens = float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])
            step = lenses.setdefault((shot.distortion, lens), Undistort(shot.distortion, lens))
            try:
                steps.append(step)
                k = step.intrinsics()
            except DatasetError as error:
                raise DatasetError(f"{name}: {error}") from None
            told.add(f"were undistorted and resampled ({step.part:.0%} of the width and height)", name)
        if after is not None:
            steps.append(after)
            pose, k = after.camera(pose, k)
        views.append(Prepared(pose, k, tuple(steps), Turn(tag) if tag > 1 else None, has_alpha(image)))
    return Preparation(views, told.lines(len(shots)))


def _turned(
    shot: Shot, name: str, stored: Size, tag: int, told: _Told
) -> tuple[tuple[Step, ...], np.ndarray, np.ndarray, Turn | None]:
    """Returns steps before any undistortion, pose and intrinsics for their result, and a turn after it or None."""
    upright = stored[::-1] if tag in TRANSPOSING else stored
    for_stored, for_upright = _alike(shot.size, stored), _alike(shot.size, upright)
    if not for_stored and not for_upright:
        raise DatasetError(
            f"{name}: is {stored[0]}x{stored[1]} pixels, its camera is for {shot.size[0]}x{shot.size[1]}; "
            "the picture was cropped or turned after its camera was found"
        )
    own = stored if for_stored else upright
    if shot.size != own:
        told.add(f"are scaled copies of those of their cameras ({shot.size[0]}x{shot.size[1]} there)", name)
    if tag == 1:
        return (), shot.cam2world, shot.intrinsics, None
    if not for_stored:
        told.add(f"carry the EXIF orientation {tag}, and their cameras are for upright pictures: they are turned", name)
        return (Turn(tag),), shot.cam2world, shot.intrinsics, None
    if tag in MIRRORING:
        told.add(
            f"carry the EXIF orientation {tag}, which mirrors them: their pixels are taken as they are stored", name
        )
        return (), shot.cam2world, shot.intrinsics, None
    told.add(f"carry the EXIF orientation {tag}, and were turned upright together with their cameras", name)
    return (), shot.cam2world, shot.intrinsics, Turn(tag)


def _alike(a: Size, b: Size) -> bool:
    return min(a) > 0 and abs(a[0] / a[1] * b[1] / b[0] - 1) <= _ASPECT_TOLERANCE
