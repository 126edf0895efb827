"""Finds morphable models by the name that a command line or a configuration gives them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from training.morphable.head import EXPRESSION, IDENTITY, TEXTURE, procedural_head
from training.morphable.model import BANDS, PROCEDURAL, MorphableModel, read_model

FOLDER = "SPLATGAN_MORPHABLE_DIR"  # variable with a folder of models that have moved since training


def morphable_model(name: str, key: str = "", flag: str = "--morphable") -> MorphableModel:
    """Returns the procedural head, or the model of a file. Raises ValueError, with the flag, for a file that is none.

    A file that is not where its name says is looked for by its last part in the folder that SPLATGAN_MORPHABLE_DIR
    names: networks remember names.
    key: the content that the model must have, where that is known; another one is refused.
    """
    model = procedural_head() if name == PROCEDURAL else _read(name, flag)
    if key and model.key != key:
        raise ValueError(f"{flag}={name}: holds the model {model.key}, and {key} is needed, which was trained with")
    return model


def block_sizes(name: str, flag: str = "--morphable") -> dict[str, int]:
    """Returns the numbers of a model's blocks, of the procedural head without building it."""
    if name != PROCEDURAL:
        return morphable_model(name, flag=flag).sizes
    return {
        "identity": len(IDENTITY),
        "expression": len(EXPRESSION),
        "texture": len(TEXTURE),
        "illumination": 3 * BANDS,
    }


def _read(name: str, flag: str) -> MorphableModel:
    path, folder = Path(name), os.environ.get(FOLDER, "")
    if os.path.exists(path):  # Path's own method raises for a name that is too long
        return _read_once(path, flag)
    moved = Path(folder) / path.name
    if folder and os.path.isfile(moved):
        return _read_once(moved, flag)
    looked = f"{name} and {moved}: no such files" if folder else f"{name}: no such file"
    raise ValueError(f"{flag}={looked}; if the model has moved, name its folder in {FOLDER}")


@functools.lru_cache(maxsize=4)
def _read_once(path: Path, flag: str) -> MorphableModel:
    return read_model(path, flag)
