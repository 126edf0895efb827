"""Reads landmarks.json: the faces that any detector found in a folder of pictures. NumPy only.

    {"order": "dlib68", "exif": "applied",
     "pictures": {"a.jpg": {"size": [1024, 768], "faces": [[[x, y], ... 68 times], ...]}, "b.jpg": {"faces": []}}}

order   whose points these are and how many, a key of ORDERS
exif    "applied", if pictures were turned as their orientation tag says before the detector saw them, or "ignored";
        needed only if a picture carries such a tag
size    width and height of what the detector saw, if that is not the picture's; points are scaled by it
points  pixels from the upper left corner, x to the right, y down; a third number is legal and not used
"""

import math
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.data.image_store import MAX_JSON_BYTES, DatasetError, FolderStore, printable
from training.data.label_file import parse_json
from training.data.names import tidy

FILE = "landmarks.json"
_OUTLINE = 17  # points of the jaw, the first of the 68
# The points of mediapipe's mesh that lie where points 17 to 67 of the 68 lie.
_MESH = [
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
    *(168, 197, 5, 4, 98, 97, 2, 326, 327),  # nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # outer edge of the lips
    *(78, 82, 13, 312, 308, 317, 14, 87),  # inner edge
]
_SIXTY_EIGHT = list(range(_OUTLINE, 68))
ORDERS = {
    "dlib68": (68, _SIXTY_EIGHT),
    "3ddfa68": (68, _SIXTY_EIGHT),
    "mediapipe468": (468, _MESH),
    "mediapipe478": (478, _MESH),  # the last ten are the irises
}  # name -> number of points, and which of them are the 51 of photos_face
_NORMALISED = 2.0  # coordinates that all stay below are not pixels


@dataclass(frozen=True)
class Landmarks:
    """Holds the faces of a folder of pictures."""

    source: str  # the file's name in messages
    exif: str | None  # "applied", "ignored" or not said
    faces: dict[str, np.ndarray] = field(default_factory=dict)  # tidied name -> [F, 51, 2] pixels
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)  # tidied name -> width, height


def find_landmarks(pictures: Path, command: str, folder: Path) -> Path:
    """Runs a detector, `{in}` of whose command line is the pictures' folder and `{out}` the file to write."""
    out = folder / FILE
    run_program("--landmarks-command", command, pictures, out)
    if not out.is_file():
        raise DatasetError(f"--landmarks-command={command}: wrote no file {{out}}")
    return out


def run_program(option: str, command: str, given: Path, out: Path) -> None:
    """Runs the command line that `option` names, without a shell. Raises DatasetError if it cannot or fails."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise DatasetError(f"{option}={command}: is no command line: {str(error).lower()}") from error
    if "{in}" not in command or "{out}" not in command:
        raise DatasetError(f"{option}={command}: must hold {{in}} and {{out}}")
    # Absolute, since the program may stand in another folder; a path with braces in it is not filled twice.
    places = {"{in}": str(given.absolute()), "{out}": str(out.absolute())}
    filled = ["".join(places.get(part, part) for part in re.split(r"({in}|{out})", word)) for word in words]
    try:
        done = subprocess.run(filled, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise DatasetError(f"{option}={command}: cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        what = f": {printable(said[-1][:200])}" if said else ""
        raise DatasetError(f"{option}={command}: ended with exit code {done.returncode}{what}")


def read_landmarks(path: Path, roots: Sequence[str] = ()) -> Landmarks:
    """Reads and checks a file. Raises DatasetError, one line that names the file, the picture and what is legal.

    roots: folders that absolute names may lie below, see `names.tidy`.
    """
    if not path.is_file():
        raise DatasetError(
            f"{printable(str(path))}: not found; docs/photographs.md has its layout, --landmarks names another file, "
            "--landmarks-command runs a detector"
        )
    source = printable(str(path))
    try:
        content = parse_json(source, FolderStore(path.parent).read(path.name, MAX_JSON_BYTES))
    except ValueError as error:
        raise DatasetError(str(error)) from error
    pictures = content.get("pictures") if isinstance(content, dict) else None
    if not isinstance(pictures, dict) or not pictures:
        shape = '{"order": "dlib68", "pictures": {"a.jpg": {"faces": [[[x, y], ...]]}}}'
        raise DatasetError(f'{source}: has no object "pictures"; legal is {shape}')
    order, exif = content.get("order"), content.get("exif")
    if not isinstance(order, str) or order not in ORDERS:
        raise DatasetError(f'{source}: "order": {_shown(order)}: {", ".join(ORDERS)} are legal')
    if exif not in (None, "applied", "ignored"):
        raise DatasetError(f'{source}: "exif": {_shown(exif)}: "applied" and "ignored" are legal')
    found = Landmarks(source, exif)
    for name, entry in pictures.items():
        _take(found, name, tidy(name, roots), entry, *ORDERS[order])
    largest = max((float(np.abs(f).max()) for f in found.faces.values() if len(f)), default=math.inf)
    if largest < _NORMALISED:
        raise DatasetError(
            f"{source}: no coordinate is above {largest:.3g}; pixels are legal, not shares of the picture"
        )
    return found


def _take(found: Landmarks, name: str, plain: str, entry: Any, count: int, chosen: list[int]) -> None:
    where = f"{found.source}: {printable(name)}"
    if plain in found.faces:
        raise DatasetError(f"{where}: is there twice")
    faces = entry.get("faces") if isinstance(entry, dict) else None
    if not isinstance(faces, list):
        raise DatasetError(f'{where}: has no list "faces"; legal is {{"faces": [[[x, y], ...], ...]}}, [] for none')
    found.faces[plain] = np.stack(
        [_face(where, i, face, count) for i, face in enumerate(faces)] or [np.zeros((count, 2))]
    )
    found.faces[plain] = found.faces[plain][: len(faces), chosen]
    size = entry.get("size")
    if size is not None:
        if not (isinstance(size, list) and len(size) == 2 and all(_is_number(v) and v > 0 for v in size)):
            raise DatasetError(f'{where}: "size": {_shown(size)}: [width, height] in pixels is legal')
        found.sizes[plain] = float(size[0]), float(size[1])


def _face(where: str, index: int, face: Any, count: int) -> np.ndarray:
    if not isinstance(face, list) or len(face) != count:
        got = f"{len(face)} points" if isinstance(face, list) else _shown(face)
        raise DatasetError(f"{where}: faces[{index}]: must be {count} points, got {got}")
    for i, point in enumerate(face):
        if not (isinstance(point, list) and len(point) in (2, 3) and all(map(_is_number, point))):
            raise DatasetError(f"{where}: faces[{index}][{i}]: must be [x, y] in pixels, got {_shown(point)}")
    return np.array([point[:2] for point in face], dtype=np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e6


def _shown(value: Any) -> str:
    text = repr(value)
    return printable(text if len(text) < 60 else text[:57] + "...")
