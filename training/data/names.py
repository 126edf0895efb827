"""Compares names of files as programs of all kinds write them: one rule for every reader. Imports no torch."""

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.data.image_store import DatasetError, printable

# Endings that a name loses when it is compared; "view.01" keeps its own.
PICTURE_ENDINGS = frozenset(
    {
        ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
        ".tga", ".ppm", ".pgm", ".pnm", ".exr", ".hdr", ".heic", ".heif", ".avif", ".jp2",
        ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
    }
)  # fmt: skip
_MARKS = "\ufeff\u200b"  # byte order mark, and the zero-width space that copying from a page leaves


def tidy(name: str, roots: Sequence[str] = ()) -> str:
    """Returns a name with "/" between folders, relative where it can be, without "." and "..", composed (NFC).

    roots: folders that absolute names, and names that begin with "..", may lie below; the result is then relative to
    the first of them that holds it. Other such names stay as they are.
    """
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    plain = "/".join(part.lstrip(_MARKS) for part in parts)
    plain = posixpath.normpath(plain) if plain else plain
    if not plain.startswith(("/", "../")):
        return plain
    for root in roots:
        own = unicodedata.normalize("NFC", root).rstrip("/")
        whole = posixpath.normpath(posixpath.join(own, plain))
        if whole.startswith(own + "/"):
            return whole[len(own) + 1 :]
    return plain.replace("//", "/", 1)  # which normpath keeps at the start


def roots_of(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the ways in which absolute names may begin that lie below `folder`: by its path, and without links."""
    return list(dict.fromkeys([os.path.abspath(folder), os.path.realpath(folder)]))


def stem_of(name: str, roots: Sequence[str] = ()) -> str:
    """Returns a tidied name without the ending of a picture's format, but with its folders."""
    plain = tidy(name, roots)
    base, ending = posixpath.splitext(plain)
    return base if ending.lower() in PICTURE_ENDINGS else plain


class Folder:
    """Finds files below a folder by names that other programs wrote."""

    def __init__(self, path: Path):
        self.path = path
        self._by_tidy: dict[str, list[Path]] | None = None

    def find(self, name: str, endings: Iterable[str] = ("",)) -> Path | None:
        """Returns the file that `name` means, or None; a file that is called exactly so wins.

        endings: tried in their order behind the name.
        """
        if "\0" in name:
            return None
        for ending in endings:
            for spelt in dict.fromkeys((name, tidy(name, roots_of(self.path)))):
                path = self.path / f"{spelt}{ending}"
                if spelt and _is_file(path):
                    return path
        wanted = tidy(name, roots_of(self.path))
        found = next((f for e in endings if (f := self._listed().get(unicodedata.normalize("NFC", wanted + e)))), [])
        return found[0] if len(found) == 1 else None

    def files(self) -> list[Path]:
        """Returns all files below the folder that are not hidden, sorted."""
        return sorted(path for paths in self._listed().values() for path in paths)

    def require_distinct(self) -> None:
        """Raises DatasetError for two files whose names differ in their Unicode form alone."""
        for paths in self._listed().values():
            if len(paths) > 1:
                one, other = (f"{path.name!a}" for path in paths[:2])
                raise DatasetError(
                    f"{printable(str(paths[1]))}: has the name of another file, which programs compare as one; "
                    f"they are spelt {one} and {other}: rename one"
                )

    def _listed(self) -> dict[str, list[Path]]:
        if self._by_tidy is None:
            self._by_tidy = defaultdict(list)
            seen: set[str] = set()  # links may lead back
            for folder, folders, files in os.walk(self.path, onerror=_refuse, followlinks=True):
                place = os.path.realpath(folder)
                if place in seen:
                    folders[:] = []
                    continue
                seen.add(place)
                folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
                for file in files:
                    if not file.startswith("."):
                        path = Path(folder, file)
                        self._by_tidy[tidy(path.relative_to(self.path).as_posix())].append(path)
        return self._by_tidy


def _refuse(error: OSError) -> None:
    """Ends a walk at a folder that cannot be read; one that is not there is an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise DatasetError(f"{printable(str(error.filename))}: cannot be listed: {error.strerror}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the system
        return False


def some(names: Sequence[str], most: int = 1) -> str:
    """Returns "such as a" or, for a single one, "a"; for lines that count and give an example."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"such as {shown}"
