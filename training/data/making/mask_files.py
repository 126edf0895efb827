"""Finds the masks that lie beside pictures of other programs, and brings them into the form of their pictures."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from training.data import mask_check
from training.data.image_store import DatasetError, printable
from training.data.making.reshape import Size, Turn
from training.data.names import PICTURE_ENDINGS, Folder, some
from training.data.pixels import EXTENSIONS, eight_bits, mask_of, open_image, orientation, wrong_shape


def find_mask(folder: Folder, name: str) -> Path | None:
    """Returns the mask of the picture `name`: <name>.png, as COLMAP calls it, else <name without its ending>.*."""
    if not folder.path.is_dir():
        return None
    stem = name.rpartition(".")[0] if "." in name.rpartition("/")[2] else name
    return folder.find(f"{name}.png") or folder.find(stem, EXTENSIONS)


def find_masks(folder: Folder, names: Sequence[str]) -> list[Path | None]:
    """Returns the mask of each picture, or None. Raises DatasetError for a mask that is found for two of them."""
    found = [find_mask(folder, name) for name in names]
    taken: dict[Path, str] = {}
    for name, path in zip(names, found, strict=True):
        if path is not None and path in taken:
            raise DatasetError(
                f"{printable(str(path))}: may be the mask of {printable(taken[path])} or of {printable(name)}; "
                f"{printable(name)}.png is legal"
            )
        if path is not None:
            taken[path] = name
    return found


def unused_masks(folder: Folder, used: Sequence[Path | None]) -> list[str]:
    """Returns a line if there are more masks below `folder` than are used."""
    files = [path for path in folder.files() if path.suffix.lower() in PICTURE_ENDINGS]
    others = sorted(set(files) - {path for path in used if path is not None})
    if not others:
        return []
    example = some([path.relative_to(folder.path).as_posix() for path in others])
    used_count = len(files) - len(others)
    return [f"{folder.path}: {used_count} used of {len(files)} masks; the others are of no picture used: {example}"]


class UnclearTurn(DatasetError):
    """Reports a mask of which nothing tells whether it is for a picture as stored or for the upright one."""


def read_mask_as_stored(data: bytes, source: str, stored: Size, turn: Turn | None) -> Image.Image:
    """Reads a mask, grey, with its pixels like those of its picture as it is stored.

    stored: width and height of the picture; turn: what its orientation tag asks for. Programs that heed such a tag
    write masks upright. Raises DatasetError for a mask of another shape, UnclearTurn where nothing tells which it is.
    """
    mask = open_image(data, source)
    grey = mask_of(eight_bits(mask), source)
    as_stored = mask_check.fits(mask.size, stored)
    as_upright = turn is not None and mask_check.fits(mask.size, turn.size(stored))
    if not as_stored and not as_upright:
        raise DatasetError(wrong_shape(source, mask.size, stored))
    if turn is None:
        return grey
    if as_stored and as_upright and orientation(mask) != turn.orientation:
        raise UnclearTurn(
            f"{source}: has {mask.width}x{mask.height} pixels, and the picture the orientation tag "
            f"{turn.orientation}: it may be for the pixels as stored or upright; take the tag out of the picture"
        )
    return grey if as_stored else turn.undo(grey)
