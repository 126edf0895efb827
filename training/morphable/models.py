"""Finds morphable models by the name that a command line or a configuration gives them."""

from __future__ import annotations

import functools

from training.morphable.head import EXPRESSION, IDENTITY, TEXTURE, procedural_head
from training.morphable.model import BANDS, PROCEDURAL, MorphableModel, read_model


def morphable_model(name: str, key: str = "", flag: str = "--morphable") -> MorphableModel:
    """Returns the procedural head, or the model of a file. Raises ValueError, with the flag, for a file that is none.

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


@functools.lru_cache(maxsize=4)
def _read(path: str, flag: str) -> MorphableModel:
    return read_model(path, flag)
