"""Types for the numbers of a command line: finite ones, within a range, and seeds."""

from __future__ import annotations

import math
from typing import Any

import click

_Context = click.Context | None
_Parameter = click.Parameter | None


class FloatRange(click.FloatRange):
    """Takes what click's range takes, but for infinity and for NaN, which every comparison lets pass."""

    def convert(self, value: Any, param: _Parameter, ctx: _Context) -> float:
        """Returns the number; called by click. Ends the program with a usage error for any other value."""
        return _finite(self, super().convert(value, param, ctx), param, ctx)


class _Finite(click.types.FloatParamType):
    """Takes every number but infinity and NaN."""

    def convert(self, value: Any, param: _Parameter, ctx: _Context) -> float:
        """Returns the number; called by click. Ends the program with a usage error for any other value."""
        return _finite(self, super().convert(value, param, ctx), param, ctx)


def _finite(kind: click.ParamType, value: float, param: _Parameter, ctx: _Context) -> float:
    if not math.isfinite(value):
        kind.fail(f"{value} is not a finite number.", param, ctx)
    return value


FINITE = _Finite()
SEED = click.IntRange(0, 2**32 - 1)  # of NumPy's generators
