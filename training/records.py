"""Defines `Record`, the base of every frozen dataclass that a configuration is made of: strict and JSON-able."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import MISSING, asdict, fields
from typing import Any, Self


class Record:
    """Is written as plain values, read back strictly, and changed by typed names. Subclasses are frozen dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Returns values that JSON can hold; tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverts `to_dict`. Raises ValueError for unknown and for missing names, and for what is no dict."""
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__}: {values!r} is no record")
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        required = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{cls.__name__} does not know {', '.join(unknown)}; legal are {', '.join(sorted(known))}")
        if missing := sorted(required - set(values)):
            raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @classmethod
    def field_types(cls) -> dict[str, Any]:
        """Returns the type of everything that `changed` takes, by name."""
        hints = typing.get_type_hints(cls)
        return {f.name: hints[f.name] for f in fields(cls)}  # type: ignore[arg-type]

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values. Subclasses let one name set all that follows from it.

        Raises ValueError for a name that is no field.
        """
        known = [f.name for f in fields(self)]  # type: ignore[arg-type]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"{type(self).__name__} does not know {', '.join(unknown)}; legal are {', '.join(known)}")
        return dataclasses.replace(self, **values)  # type: ignore[type-var]

    def warm_start(self) -> dict[str, Any]:
        """Returns values for `changed` that leave out what only a start from noise needs, for --init-from."""
        return {}


def parse_value(text: str, kind: Any) -> Any:
    """Reads the text of a command line as a value of type `kind`: bool, int, float, str, a tuple of these, or None.

    Raises ValueError that says what is legal.
    """
    if isinstance(kind, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if text == "none" and len(options) < len(typing.get_args(kind)):
            return None
        return parse_value(text, options[0])
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if text == "none":
            return ()
        return tuple(parse_value(part, inner) for part in text.split(",") if part)
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(f"{text!r} is not true or false")
        return _BOOLEANS[text.lower()]
    try:
        value = kind(text)
        if value != value:
            raise ValueError  # NaN, which every comparison of a check lets pass
        return value
    except ValueError:
        legal = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ValueError(f"{text!r} is not {legal}") from None


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
