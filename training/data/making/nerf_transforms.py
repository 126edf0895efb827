"""Reads transforms.json of nerfstudio, instant-ngp and Blender's NeRF scenes.

Frames hold camera-to-world matrices with OpenGL axes (x right, y up, z backward). `lens` reads their intrinsics.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.data.image_store import MAX_JSON_BYTES, DatasetError, FolderStore
from training.data.label_file import parse_json
from training.data.making.lens import Lens, read_lens
from training.data.making.reshape import TRANSPOSING
from training.data.names import Folder
from training.data.pixels import EXTENSIONS, open_image, orientation

FILE = "transforms.json"
_KEYED = ("white_transparent", "black_transparent", "mask_color")  # switches of instant-ngp


class Frame(NamedTuple):
    """Holds an image file with its camera."""

    picture: Path
    mask: Path | None
    lens: Lens
    cam2world: np.ndarray  # float64 [4, 4], OpenCV axes


def read_transforms(source: Path) -> tuple[list[Frame], list[str]]:
    """Reads the frames in the order of their file names; `source` is the file or its folder. Raises DatasetError.

    Returns them with lines about what was decided against the file.
    """
    file = _file_of(source)
    data = FolderStore(file.parent).read(file.name, MAX_JSON_BYTES)
    try:
        content = parse_json(str(file), data)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        frame = '{"file_path": "a.png", "transform_matrix": 4x4}'
        raise DatasetError(f'{file}: has no list "frames"; legal is {{"frames": [{frame}, ...]}}')
    folder = Folder(file.parent)
    found = [_frame(folder, f"{file}: frames[{i}]", content, frame) for i, frame in enumerate(frames)]
    places: dict[Path, int] = {}
    for i, each in enumerate(found):
        if each.picture in places:
            raise DatasetError(f"{file}: frames[{i}] and frames[{places[each.picture]}] both have {each.picture}")
        places[each.picture] = i
    remarks: dict[str, list[int]] = {}
    for i, each in enumerate(found):
        for remark in each.lens.remarks:
            remarks.setdefault(remark, []).append(i)
    notes = [f"{file}: {_named(rows)} {remark}" for remark, rows in remarks.items()]
    notes += [
        f"{file}: {name} is set: instant-ngp takes pixels of a colour for transparent; here all pixels stay, and "
        "masks come from mask_path or alpha channels"
        for name in _KEYED
        if content.get(name) is not None and content[name] is not False  # 0 is a colour
    ]
    return sorted(found, key=lambda frame: frame.picture.as_posix()), notes


def _named(rows: list[int]) -> str:
    """Names the frames that a remark is about."""
    first = f"frames[{rows[0]}]"
    return first if len(rows) == 1 else f"each of {len(rows)} frames, such as {first},"


def _file_of(source: Path) -> Path:
    file = source / FILE if source.is_dir() else source
    if not file.exists():
        others = sorted(p.name for p in file.parent.glob("transforms*.json")) if file.parent.is_dir() else []
        instead = f"; there are {', '.join(others)}: give one of them as SOURCE" if others else ""
        raise DatasetError(f"{file}: not found; --from=transforms reads it{instead}")
    return file


def _frame(folder: Folder, where: str, content: dict[str, Any], frame: dict[str, Any]) -> Frame:
    picture = _picture(folder, where, "file_path", frame.get("file_path"))
    mask = frame.get("mask_path")
    if mask is not None:
        mask = _picture(folder, where, "mask_path", mask)
    image = open_image(FolderStore(picture.parent).read(picture.name), str(picture), decode=False)
    turned = image.size[::-1] if orientation(image) in TRANSPOSING else image.size
    lens = read_lens(where, frame, content, image.size, turned)
    return Frame(picture, mask, lens, _pose(where, frame.get("transform_matrix")))


def _picture(folder: Folder, where: str, key: str, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{where}: {key} must name a picture, got {name!r}")
    found = folder.find(name, ("", *EXTENSIONS))  # Blender's scenes leave the extension out
    if found is None:
        raise DatasetError(f"{where}: {folder.path / name}: no such picture")
    return found


def _pose(where: str, matrix: Any) -> np.ndarray:
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        pose = np.zeros(0)
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise DatasetError(f"{where}: transform_matrix must be 4x4 finite numbers, camera to world")
    return pose * np.array([1.0, -1.0, -1.0, 1.0])  # OpenGL to OpenCV axes
