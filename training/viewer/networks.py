"""Finds the networks that a viewer offers: files, and the snapshots of run folders, which may still grow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from training.checkpoint import SNAPSHOT_PATTERN


def find_networks(places: Sequence[str]) -> dict[str, Path]:
    """Returns the networks at `places`, files or run folders, by the names to show; snapshots of a folder in order.

    Raises ValueError for a place that is not there, and for a folder without a snapshot.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            snapshots = sorted(path.glob(SNAPSHOT_PATTERN))
            if not snapshots:
                raise ValueError(f"--network={place}: a folder without a network-snapshot-NNNNNN.pkl")
            found += snapshots
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"--network={place}: no such file or folder")
    return {_name(path, found): path for path in dict.fromkeys(found)}


def _name(path: Path, among: Sequence[Path]) -> str:
    """Returns the shortest end of a path that no other one shares: the file's name, or with its folder, and so on."""
    for length in range(1, len(path.parts) + 1):
        end = path.parts[-length:]
        if not any(other.parts[-length:] == end for other in among if other != path):
            return "/".join(end)
    return str(path)
