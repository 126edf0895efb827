"""Defines what a metric raises when it cannot run."""

import contextlib
from collections.abc import Iterator


class MetricUnavailable(Exception):
    """A metric cannot give a number here; the message is the one-line reason. Training leaves it out and goes on."""


def one_line(error: Exception) -> str:
    """Returns what the error says, short enough for a terminal."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Within it, the reason why a metric cannot be computed begins with its name."""
    try:
        yield
    except MetricUnavailable as reason:
        raise MetricUnavailable(f"{name}: {reason}") from None
