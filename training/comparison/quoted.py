"""Reads figures quoted from papers, which stand beside measured ones and are marked.

A file is a JSON object:

    {"about": "what the figures have in common, in a sentence",
     "entries": [{"system": "GGHead", "data": "FFHQC 512", "source": "where it is printed",
                  "values": {"FID": 5.37, "FID3D": 7.78}}]}

`about` may be left out. A value's name is a column: that of a metric (`fid50k_full`) puts the figure into the same
column as measured ones, which is right only where the protocol is the same; any other name gets a column of its own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "quoted"
_TEXTS = ("system", "data", "source")


def shipped() -> list[str]:
    """Names the files that come with the code."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read_quoted(name: str) -> dict[str, Any]:
    """Reads a file, or one that is shipped by its name. Raises ValueError with the reason it cannot be used."""
    path = SHIPPED / f"{name}.json" if name in shipped() else Path(name)
    where = f"--quoted={name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        legal = f"; shipped are {', '.join(shipped())}"
        raise ValueError(f"{where}: cannot be read: {error.strerror}{legal}") from None
    except ValueError:
        raise ValueError(f"{where}: is not JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list) or not content["entries"]:
        raise ValueError(f"{where}: has no list of entries; docs/comparison.md has the layout")
    if not isinstance(content.get("about", ""), str):
        raise ValueError(f"{where}: about is no text")
    for number, entry in enumerate(content["entries"], 1):
        if problem := _problem(entry):
            raise ValueError(f"{where}: entry {number}: {problem}")
    return content


def _problem(entry: Any) -> str | None:
    """Says what is wrong with an entry, if anything is."""
    if not isinstance(entry, dict):
        return "is no object"
    if lacking := [key for key in _TEXTS if not isinstance(entry.get(key), str) or not entry[key]]:
        return f"lacks {lacking[0]}"
    values = entry.get("values")
    if not isinstance(values, dict) or not values:
        return "has no values"
    wrong = [key for key, value in values.items() if type(value) not in (int, float) or not math.isfinite(value)]
    return f"the value of {wrong[0]} is no number" if wrong else None
