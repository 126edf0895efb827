"""Locates the code, and makes the folders that users name."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the folder of the packages and of the scripts


def make_folder(path: str | os.PathLike[str], flag: str = "--outdir") -> Path:
    """Makes the folder that `flag` names, and those above it. Raises ValueError that says what is in its way."""
    path = Path(path)
    require_place(path, flag)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{flag}={path}: no folder can be made there: {error.strerror}") from None
    return path


def require_place(path: Path, flag: str = "--outdir") -> None:
    """Raises ValueError if something that is no folder stands where `flag` names one; makes nothing."""
    there = next((p for p in (path, *path.parents) if os.path.lexists(p)), path)
    if os.path.lexists(there) and not there.is_dir():
        raise ValueError(f"{flag}={path}: no folder can be made there: {there} is no folder")
