"""Keeps constant tensors from call to call: one made of a host's numbers would stall a GPU in every call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

LIMIT = 64  # results of one function that are kept; the least recently used one goes


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """Keeps what a function returns, by its arguments, which must be hashable; nobody may write to it.

    While a compiler or an exporter traces, it is made anew and not kept: the tensors of a trace are stand-ins without
    numbers, which later calls would read as zeros. What is kept can be differentiated with, whoever asks first.
    """

    @functools.lru_cache(LIMIT)
    def keep(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    @functools.wraps(make)
    def constant(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return make(*args, **kwargs)
        return keep(*args, **kwargs)  # type: ignore[arg-type]

    return constant
