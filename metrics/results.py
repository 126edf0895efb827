"""Holds what a metric is asked for and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MetricSpec:
    """Holds a parsed metric name."""

    kind: str  # a key of registry.KINDS
    count: int  # generated images; latents for view_drift; generated images per bin for fid_yaw and swd_yaw
    name: str  # as it was given


@dataclass(frozen=True)
class Outcome:
    """Holds what the code of one kind of metric returns, equal on all ranks."""

    value: float  # the one number that snapshots are ranked by
    values: dict[str, float]  # all numbers by name
    protocol: dict[str, Any] = field(default_factory=dict)  # what the value depends on, as far as this kind decides it
    note: str | None = None  # why the value must not be compared with others
    real_statistics: str = "computed"  # see MetricResult


@dataclass(frozen=True)
class MetricResult:
    """Holds a measured value and everything that it depends on."""

    name: str  # of the metric
    value: float  # the one number that snapshots are ranked by
    values: dict[str, float]  # all numbers by name
    protocol: dict[str, Any]  # everything the value depends on besides the weights
    seconds: float  # that the metric took
    note: str | None = None  # why the value must not be compared with others
    real_statistics: str = "computed"  # or "cache hit: FILE", "cache miss: FILE", "cache miss, and not kept: REASON"
    larger_is_better: bool = False  # how snapshots are ranked

    def beats(self, other: float | None) -> bool:
        """Says whether this value is better than `other`; anything is better than None."""
        return other is None or (self.value > other if self.larger_is_better else self.value < other)
