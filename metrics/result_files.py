"""Writes results into a folder: a JSON line each, and a picture of the metrics that have one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dnnlib
from metrics import plots
from metrics.results import MetricResult
from torch_utils import distributed


def result_line(
    result: MetricResult, snapshot: str | Path | None = None, ema_kimg: float | None = None
) -> dict[str, Any]:
    """Returns the JSON-able record of a result; `snapshot` is named, not read.

    ema_kimg: half-life of the average of the weights that was measured, if it is not the usual one.
    """
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
    line |= {} if ema_kimg is None else {"ema_kimg": ema_kimg}
    return line if result.note is None else {**line, "note": result.note}


def write_result(
    result: MetricResult, run_dir: str | Path, snapshot: str | Path | None, ema_kimg: float | None = None
) -> dict[str, Any]:
    """Appends one JSON line to `run_dir`/metric-<name>.jsonl and returns what it holds. Call it on one rank.

    Other averages of the weights than the usual one, told by `ema_kimg`, have a file of their own,
    averages-<name>.jsonl: what reads a run's metrics takes each snapshot for one network.
    `fid_yaw<N>` and `swd_yaw<N>` are drawn, to metric-<name>-<snapshot>.png. Raises OSError if the disk refuses.
    """
    line = result_line(result, snapshot, ema_kimg)
    kind = "metric" if ema_kimg is None else "averages"
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{kind}-{result.name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    if "yaw_edges_deg" in result.protocol:
        stem = "" if snapshot is None else f"-{Path(snapshot).stem}"
        stem += "" if ema_kimg is None else f"-{ema_kimg:g}kimg"
        plots.save_by_yaw(result, folder / f"{kind}-{result.name}{stem}.png")
    return line
