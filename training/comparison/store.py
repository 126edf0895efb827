"""Keeps what a comparison has computed, by content: a second call takes it from here, and an interrupted one too."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.safety.rank_check import code_revision

# What makes images and measures them. A change there makes values anew; one of the page or of a report does not.
_SOURCES = (
    "torch_utils", "gaussian", "metrics", "training/families", "training/networks", "training/fields", "training/data",
    "training/dataset.py", "training/images.py", "training/checkpoint.py", "training/comparison/pictures.py",
    "training/runs/monitor.py",
)  # fmt: skip

Record = dict[str, Any]  # JSON-able


@functools.cache
def code_key() -> str:
    """Hashes the sources that values depend on."""
    return code_revision(_SOURCES)


class Store:
    """Keeps JSON records under keys that hold everything they depend on, one file each.

    A file is whole or absent; unreadable ones count as absent. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problem: str | None = None  # why the last record could not be kept

    def load(self, key: Mapping[str, Any]) -> Record | None:
        """Returns the record under this key, or None if there is none."""
        path, text = self._place(key)
        if path is None:
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(kept, dict) and kept.get("key") == text and isinstance(kept.get("record"), dict)
        return kept["record"] if whole else None

    def save(self, key: Mapping[str, Any], record: Record) -> None:
        """Keeps a record. A disk that refuses costs only the time to compute it again; `problem` says so."""
        path, text = self._place(key)
        if path is None:
            return
        try:
            write_whole(path, json.dumps({"key": text, "record": record}))
        except OSError as error:
            self.problem = f"{path.parent}: {error.strerror}"

    def _place(self, key: Mapping[str, Any]) -> tuple[Path | None, str]:
        text = json.dumps({"code": code_key(), **key}, sort_keys=True)
        if self.folder is None:
            return None, text
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json", text


def write_whole(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it, so that it is whole or absent. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(partial, 0o644)  # mkstemp gives 0600
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
