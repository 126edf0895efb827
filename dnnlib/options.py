"""Parses command-line values that stand for several numbers."""

import math
import re
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def parse_flag(flag: str, text: str, parse: Callable[[str], T]) -> T:
    """Returns parse(text). The ValueError of a wrong text begins with the flag that it was given to."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{flag}={text}: {error}") from None


def parse_ints(text: str) -> list[int]:
    """Parses integers from a list with ranges, both ends included: "0-3,7" -> [0, 1, 2, 3, 7].

    Raises ValueError on anything else, on an empty list and on a range that runs backwards.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise ValueError(f"{text!r} is not a list of whole numbers and ranges such as 0-3,7")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise ValueError(f"the range {part.strip()!r} runs backwards; write {last}-{first}")
        numbers.extend(range(first, last + 1))
    return numbers


def parse_grid(text: str) -> tuple[int, int]:
    """Parses columns and rows of a picture grid: "3x2" -> (3, 2). Raises ValueError on anything else."""
    match = re.fullmatch(r"\s*([1-9]\d*)\s*[xX]\s*([1-9]\d*)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a grid; write columns x rows, such as 2x2")
    return int(match[1]), int(match[2])


def parse_color(text: str) -> tuple[float, float, float]:
    """Parses "white", "black" or "R,G,B" with numbers in 0..1 as red, green and blue. Raises ValueError."""
    named = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
    if text in named:
        return named[text]
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = math.nan
    if not all(0 <= part <= 1 for part in (red, green, blue)):
        raise ValueError(f"{text!r} is not a colour; legal are white, black and R,G,B with numbers from 0 to 1")
    return red, green, blue
