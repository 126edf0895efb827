"""What a metric gives, and how it is written down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dnnlib
from torch_utils import distributed


@dataclass(frozen=True)
class MetricSpec:
    """A parsed metric name."""

    kind: str  # a key of registry.KINDS
    count: int  # generated images; latents for view_drift; generated images per bin for fid_yaw
    name: str


@dataclass(frozen=True)
class Outcome:
    """What the code of one kind of metric returns, equal on all ranks."""

    value: float
    values: dict[str, float]
    protocol: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    real_statistics: str = "computed"


@dataclass(frozen=True)
class MetricResult:
    name: str
    value: float  # the one number that snapshots are ranked by
    values: dict[str, float]  # all numbers
    protocol: dict[str, Any]  # everything the value depends on besides the weights
    seconds: float
    note: str | None = None  # why the value must not be compared with others
    real_statistics: str = "computed"  # or "cache hit: FILE", "cache miss: FILE", "cache miss, and not kept: REASON"
    larger_is_better: bool = False

    def beats(self, other: float | None) -> bool:
        """Whether this value is better than `other`; anything is better than None."""
        return other is None or (self.value > other if self.larger_is_better else self.value < other)


def result_line(result: MetricResult, snapshot: str | Path | None) -> dict[str, Any]:
    """The JSON-able record of a result; `snapshot` is named, not read."""
    line: dict[str, Any] = {
        "results": {result.name: result.value, **result.values},
        "metric": result.name,
        "total_time": round(result.seconds, 3),
        "total_time_str": dnnlib.format_time(result.seconds),
        "num_gpus": distributed.world_size() if torch.cuda.is_available() else 0,
        "num_processes": distributed.world_size(),
        "snapshot_pkl": None if snapshot is None else Path(snapshot).name,
        "timestamp": datetime.now(UTC).timestamp(),
        "protocol": result.protocol,
        "real_statistics": result.real_statistics,
    }
    return line if result.note is None else {**line, "note": result.note}


def write_result(result: MetricResult, run_dir: str | Path, snapshot: str | Path | None) -> dict[str, Any]:
    """Appends one JSON line to `run_dir`/metric-<name>.jsonl and returns what it holds. Call it on one rank.

    `fid_yaw<N>` is drawn as well, to metric-<name>-<snapshot>.png.
    """
    line = result_line(result, snapshot)
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"metric-{result.name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if "yaw_edges_deg" in result.protocol:
        from metrics import plots  # here, because matplotlib is slow to import and nothing else needs it

        stem = "" if snapshot is None else f"-{Path(snapshot).stem}"
        plots.save_fid_by_yaw(result, folder / f"metric-{result.name}{stem}.png")
    return line
