"""Hashes many files, caching each SHA-256 by size, time of change and inode, so that a known set takes seconds."""

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_THREADS = 4
# A file that changed this recently may change again within one tick of the file system's clock: it is not cached.
_SETTLED_SECONDS = 2.0


def file_hashes(paths: Sequence[Path], memory: Path) -> dict[Path, str]:
    """Returns the SHA-256 of each file in hexadecimal; `memory` is the folder of the cache, one file per folder."""
    hashes: dict[Path, str] = {}
    for folder in sorted({path.parent for path in paths}):
        hashes |= _folder_hashes(folder, [path for path in paths if path.parent == folder], memory)
    return hashes


def _folder_hashes(folder: Path, paths: Sequence[Path], memory: Path) -> dict[Path, str]:
    record = memory / (hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32] + ".json")
    known = _recall(record)
    marks = {}  # path -> [size, mtime_ns, inode]
    for path in paths:
        stat = path.stat()
        marks[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    stale = [path for path in paths if known.get(path.name, [None])[:3] != marks[path]]
    with ThreadPoolExecutor(_THREADS) as pool:
        fresh = dict(zip(stale, pool.map(_sha256, stale), strict=True))
    hashes = {path: fresh.get(path) or known[path.name][3] for path in paths}
    settled = time.time_ns() - int(_SETTLED_SECONDS * 1e9)
    kept = {path.name: [*marks[path], hashes[path]] for path in paths if marks[path][1] < settled}
    if stale and kept:
        _remember(record, {**known, **kept})
    return hashes


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recall(record: Path) -> dict[str, list[Any]]:
    if not record.is_file():
        return {}
    try:
        with open(record) as file:
            known = json.load(file)
    except (OSError, ValueError) as error:
        warnings.warn(f"{record}: cannot be read, hashing again: {error}", stacklevel=2)
        return {}
    return known if isinstance(known, dict) else {}


def _remember(record: Path, known: dict[str, list[Any]]) -> None:
    """Writes the cache file whole or not at all; if it cannot be written, the next run hashes again."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=record.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(known, file)
        os.replace(temporary, record)
    except OSError as error:
        warnings.warn(f"{record}: cannot be written, file hashes are not remembered: {error}", stacklevel=2)
