"""Keeps moving averages of the generator at lengths of the user's choice, so that the best is chosen after training.

After the averages of several lengths that Karras et al. 2024 (EDM2, "post-hoc EMA") keep; each is kept here as it is,
and none is put together from others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

RAMPUP = 0.25  # a half-life is at most this share of the images seen, so that the weights of the start fade
_PREFIX, _SUFFIX = "G_ema_", "kimg"


def average_name(kimg: float) -> str:
    """Returns the name in checkpoints of the average with a half-life of so many thousand images."""
    return f"{_PREFIX}{kimg:g}{_SUFFIX}"


def kept_lengths(names: Iterable[str]) -> list[float]:
    """Returns the half-lives in kimg, ascending, of the averages among the names of a checkpoint's records."""
    return sorted(float(n.removeprefix(_PREFIX).removesuffix(_SUFFIX)) for n in names if n.startswith(_PREFIX))


def parse_lengths(text: str) -> tuple[float, ...]:
    """Parses half-lives in kimg from a list such as "2,10,50". Raises ValueError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text[:100]!r} is no list of half-lives in kimg such as 2,10,50") from None


def decay(kimg: float, batch_at: Callable[[int], int]) -> Callable[[int], float]:
    """Returns the share that such an average keeps in the step after `nimg` images. batch_at: the step's images."""

    def kept(nimg: int) -> float:
        halflife = min(1000 * kimg, RAMPUP * nimg)
        return 0.5 ** (batch_at(nimg) / max(halflife, 1e-8))

    return kept


def check_lengths(flag: str, lengths: Sequence[float]) -> None:
    """Raises ValueError, naming the option, for half-lives that are not finite and positive, or that are alike."""
    for kimg in lengths:
        if not 0 < kimg < math.inf:
            raise ValueError(f"{flag}={kimg:g}: half-lives in kimg must be finite and greater than 0")
    names = [average_name(kimg) for kimg in lengths]
    if alike := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{flag}: a half-life stands there twice, {alike[0].removeprefix(_PREFIX)}")
