"""Parses command-line values that stand for several numbers."""

import math
import re
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LARGEST_INT = 2**32 - 1  # of a list: NumPy's seeds end here
MOST_INTS = 100_000  # numbers of a list


def parse_flag(flag: str, text: str, parse: Callable[[str], T]) -> T:
    """Returns parse(text). The ValueError of a wrong text begins with the flag that it was given to."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{flag}={text if len(text) <= 80 else text[:77] + '...'}: {error}") from None


def parse_ints(text: str) -> list[int]:
    """Parses integers from a list with ranges, both ends included: "0-3,7" -> [0, 1, 2, 3, 7].

    Raises ValueError on anything else, on an empty list, on a range that runs backwards, on a number above LARGEST_INT
    and on more than MOST_INTS numbers.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:\s*-\s*([0-9]+))?\s*", part)
        if match is None:
            raise ValueError(f"{_short(text)} is not a list of whole numbers and ranges such as 0-3,7")
        first, last = (_int(digits) for digits in (match[1], match[2] or match[1]))
        if last < first:
            raise ValueError(f"the range {part.strip()!r} runs backwards; write {last}-{first}")
        if len(numbers) + last - first >= MOST_INTS:
            raise ValueError(
                f"{_short(part.strip())} makes more than {MOST_INTS:,} numbers; give them in several calls"
            )
        numbers.extend(range(first, last + 1))
    return numbers


def _int(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    if len(digits) > len(str(LARGEST_INT)) or int(digits) > LARGEST_INT:  # Python reads 4300 digits at most
        raise ValueError(f"{_short(digits)} is too large; numbers up to {LARGEST_INT} are legal")
    return int(digits)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


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
