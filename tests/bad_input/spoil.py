"""Makes bad inputs out of good ones: each function returns what `Case.make` wants."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.case import Place

Make = Callable[[Place], None]


def copied_set(change: Callable[[Path], None]) -> Make:
    """The good set as TMP/set, its images in TMP/set/32; `change` gets TMP/set."""

    def make(place: Place) -> None:
        shutil.copytree(place.data.parent, place.tmp / "set")
        change(place.tmp / "set")

    return make


def labels(change: Callable[[list], object]) -> Make:
    """A copied set whose list of [name, 25 numbers] was passed through `change`, in place or returned."""

    def rewrite(root: Path) -> None:
        content = json.loads((root / "dataset.json").read_text())
        changed = change(content["labels"])
        content["labels"] = content["labels"] if changed is None else changed
        (root / "dataset.json").write_text(json.dumps(content))

    return copied_set(rewrite)


def number(position: int, value: object, item: int = 3) -> Make:
    """A copied set in which one number of one label is `value`."""

    def change(entries: list) -> None:
        entries[item][1][position] = value

    return labels(change)


def file(name: str, content: bytes | str = b"precious") -> Make:
    """TMP/<name> holding `content`."""

    def make(place: Place) -> None:
        path = place.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def network(change: Callable[[bytes], bytes]) -> Make:
    """The good checkpoint as TMP/net.pkl, its bytes passed through `change`."""

    def make(place: Place) -> None:
        (place.tmp / "net.pkl").write_bytes(change(place.network.read_bytes()))

    return make
