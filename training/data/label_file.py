"""Reads dataset.json, {"labels": [["00000.png", [25 numbers]], ...]}; `label_check` checks the numbers.

Beside them may be {"classes": [["00000.png", 3], ...], "num_classes": 10}, which `classes` checks. Names and values may
also come as an object, {"00000.png": [25 numbers], ...}. Imports no torch, so that worker processes start quickly.
"""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from training.data.image_store import printable
from training.data.names import stem_of


class LabelError(ValueError):
    """Reports labels that are missing, malformed or in another convention."""


class Labels(dict[str, Any]):
    """Holds the labels of a file by `stem_of` their names, and in `spelt` each name as the file has it."""

    def __init__(self) -> None:
        super().__init__()
        self.spelt: dict[str, str] = {}
        self.classes: Labels | None = None  # classes likewise, where the file has them beside the labels
        self.class_problem: str | None = None  # why what the file has there cannot be used
        self.num_classes: Any = None  # what the file says of their number


class _Twice(ValueError):
    """Names a key that an object has twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(printable(json.dumps(twice[:60], ensure_ascii=False)))
    return found


def parse_json(source: str, data: bytes) -> Any:
    """Returns the value of a JSON file with the bytes `data`. Raises ValueError, one line that begins with `source`."""
    try:
        return json.loads(data, object_pairs_hook=_object)
    except _Twice as error:
        raise ValueError(f"{source}: has the key {error} twice in one object; which is meant is not clear") from None
    except RecursionError:
        raise ValueError(f"{source}: is nested too deeply to be what it should be") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    except UnicodeDecodeError:
        raise ValueError(f"{source}: is not JSON: is no UTF-8 text") from None
    except ValueError:  # Python's limit on the digits of a number
        raise ValueError(f"{source}: is not JSON that can be used: a number has thousands of digits") from None


def parse_labels(source: str, data: bytes, roots: Sequence[str] = ()) -> Labels:
    """Returns the labels of a dataset.json by image name without extension; their contents are not checked.

    roots: folders that absolute names may lie below, see `names.tidy`.
    Raises LabelError if the file is not JSON, has no list "labels" of [name, numbers], or names an image twice.
    """
    try:
        content = parse_json(source, data)
    except ValueError as error:
        raise LabelError(str(error)) from error
    if not isinstance(content, dict):
        content = {}
    labels = entries_of(source, content.get("labels"), "labels", "[25 numbers]", roots)
    if content.get("classes") is not None:
        try:
            labels.classes = entries_of(source, content["classes"], "classes", "3", roots)
        except LabelError as error:  # others may keep something else there, such as the classes' names
            labels.class_problem = str(error)
    labels.num_classes = content.get("num_classes")
    return labels


def entries_of(source: str, entries: Any, key: str, value: str, roots: Sequence[str] = ()) -> Labels:
    """Returns what a file has under `key`, by name; `value` is such a thing, for messages."""
    if isinstance(entries, dict):
        entries = [list(entry) for entry in entries.items()]
    if not isinstance(entries, list):
        raise LabelError(f'{source}: has no list "{key}"; legal is {{"{key}": [["00000.png", {value}], ...]}}')
    labels = Labels()
    for position, entry in enumerate(entries):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise LabelError(f'{source}: {key}[{position}] is not ["name.png", {value}]')
        stem = stem_of(entry[0], roots)
        if stem in labels:
            first = labels.spelt[stem]
            also = "" if first == entry[0] else f", also as {printable(first)}"
            if first != entry[0] and unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", entry[0]):
                also = f", in two Unicode forms: {first!a} and {entry[0]!a}"
            raise LabelError(f"{source}: {printable(entry[0])}: has two {key}{also}")
        labels[stem], labels.spelt[stem] = entry[1], entry[0]
    return labels
