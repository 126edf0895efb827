"""Decides when a viewer draws: at once and coarsely while something moves, in full when all is still."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

STILL_AFTER = 0.2  # seconds without a change
MEMORY = 0.5  # share of the last picture in the mean time of a picture


class Quality(Enum):
    NONE = 0
    MOVING = 1
    STILL = 2


@dataclass
class Pace:
    """Follows one viewer. Times are seconds of any clock that the caller likes."""

    changed: float = -math.inf  # when the picture last became stale
    shown: Quality = Quality.STILL

    def change(self, now: float) -> None:
        """Says that camera or controls have changed."""
        self.changed, self.shown = now, Quality.NONE

    def due(self, now: float) -> Quality:
        """Returns which picture is due now; NONE if there is none."""
        if self.shown is Quality.STILL:
            return Quality.NONE
        if now - self.changed >= STILL_AFTER:
            return Quality.STILL
        return Quality.MOVING if self.shown is Quality.NONE else Quality.NONE

    def wait(self, now: float) -> float | None:
        """Returns the seconds until a picture is due if nothing changes; None: never."""
        if self.shown is Quality.STILL:
            return None
        return 0.0 if self.due(now) is not Quality.NONE else max(0.0, self.changed + STILL_AFTER - now)

    def drawn(self, quality: Quality, started: float) -> None:
        """Says that a picture of what there was at `started` is shown. What has changed since then is due again."""
        if self.changed <= started:
            self.shown = quality


@dataclass
class Size:
    """Chooses the height of pictures while something moves, so that one takes `target` seconds; never above `most`."""

    most: int  # pixels
    least: int = 48
    target: float = 0.045  # seconds: 22 pictures a second
    height: int = field(init=False)

    def __post_init__(self) -> None:
        self.least = min(self.least, self.most)
        self.height = self.most

    def took(self, seconds: float) -> None:
        """Adapts the height to the time of a picture of this height, halfway, in steps of 16 pixels."""
        wanted = self.height * math.sqrt(self.target / max(seconds, 1e-4))
        blended = (1 - MEMORY) * self.height + MEMORY * wanted
        self.height = max(self.least, min(self.most, 16 * round(blended / 16)))
