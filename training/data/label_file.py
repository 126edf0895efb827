"""Reads dataset.json, {"labels": [["00000.png", [25 numbers]], ...]}; `label_check` checks the numbers.

Imports no torch, so that worker processes start quickly.
"""

import json
from typing import Any

from training.data.image_store import printable


class LabelError(ValueError):
    """Reports labels that are missing, malformed or in another convention."""


def parse_json(source: str, data: bytes) -> Any:
    """Returns the value of a JSON file with the bytes `data`. Raises ValueError, one line that begins with `source`."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{source}: is nested too deeply to be what it should be") from None
    except ValueError as error:
        raise ValueError(f"{source}: is not JSON: {error}") from error


def parse_labels(source: str, data: bytes) -> dict[str, Any]:
    """Returns the labels of a dataset.json by image name without extension; their contents are not checked.

    Raises LabelError if the file is not JSON, has no list "labels" of [name, numbers], or names an image twice.
    """
    try:
        content = parse_json(source, data)
    except ValueError as error:
        raise LabelError(str(error)) from error
    entries = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise LabelError(f'{source}: has no list "labels"; legal is {{"labels": [["00000.png", [25 numbers]], ...]}}')
    labels: dict[str, Any] = {}
    for position, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise LabelError(f'{source}: labels[{position}] is not ["name.png", [25 numbers]]')
        stem = stem_of(entry[0].replace("\\", "/"))
        if stem in labels:
            raise LabelError(f"{source}: {printable(entry[0])}: has two labels")
        labels[stem] = entry[1]
    return labels


def stem_of(name: str) -> str:
    """Returns a name without its extension but with its folders."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rsplit(".", 1)[0] or base)
