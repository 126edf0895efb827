"""Keeps statistics of real images on disk, under a key that holds everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

KEY_VERSION = 2  # raise it when the way statistics are computed changes


class StatisticsCache:
    """Keeps named float arrays per key, one .npz each. A file is whole or absent; unreadable ones count as absent."""

    def __init__(self, folder: Path, prefix: str, key: dict[str, object]) -> None:
        text = json.dumps({"version": KEY_VERSION, **key}, sort_keys=True)
        self.path = folder / f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"
        self._key = text

    def load(self) -> dict[str, np.ndarray] | None:
        """Returns the arrays, or None if there are none under this key."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        return arrays if str(arrays.pop("key", "")) == self._key else None

    def save(self, **arrays: np.ndarray) -> None:
        """Writes under a temporary name, then renames: processes that race leave one whole file. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.stem + ".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, key=np.array(self._key), **arrays)
            os.replace(partial, self.path)
        finally:
            Path(partial).unlink(missing_ok=True)
