"""Metric names and the one function that computes them, for training and offline alike."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dnnlib
from metrics import swd
from metrics.cache import StatisticsCache
from metrics.detectors import Detector, load_detector
from metrics.errors import MetricUnavailable
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.samples import BACKGROUNDS, Sampling, fake_images, real_images
from training.dataset import ImageDataset


@dataclass(frozen=True)
class MetricSpec:
    """A parsed metric name."""

    kind: str  # a key of KINDS
    count: int  # generated images
    name: str


@dataclass(frozen=True)
class MetricResult:
    name: str
    value: float  # the one number that snapshots are ranked by; smaller is better
    values: dict[str, float]  # all numbers
    protocol: dict[str, Any]  # everything the value depends on besides the weights
    seconds: float
    note: str | None = None  # why the value must not be compared with others
    real_statistics: str = "computed"  # or "cache hit: FILE", "cache miss: FILE", "cache miss, and not kept: REASON"


@dataclass(frozen=True)
class _Outcome:
    value: float
    values: dict[str, float]
    protocol: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    real_statistics: str = "computed"


@dataclass(frozen=True)
class _Kind:
    form: str  # how the name is written, <N> for the count
    compute: Callable[[MetricSpec, Sampling, Detector | None], _Outcome]
    needs_detector: bool

    def match(self, name: str) -> str | None:
        found = re.fullmatch(re.escape(self.form).replace("<N>", "([1-9][0-9]*k?)"), name)
        return found[1] if found else None


def _swd(spec: MetricSpec, sampling: Sampling, _: Detector | None) -> _Outcome:
    count = min(spec.count, len(sampling.dataset))
    real, fake = (swd.PatchDescriptors(sampling.G.resolution, count, sampling.seed, sampling.device) for _ in range(2))
    for images in real_images(sampling, count):
        real.add(images)
    for images in fake_images(sampling, count):
        fake.add(images)
    values = swd.distance(real, fake)
    return _Outcome(values["mean"], values, {"num_real": count, "num_fake": count})


def _fid(spec: MetricSpec, sampling: Sampling, detector: Detector | None) -> _Outcome:
    assert detector is not None
    frontal = spec.kind == "fid3d"
    (mean_real, cov_real), found = _real_statistics(sampling, detector)
    stats = FeatureStats(detector.num_features, sampling.device)
    for images in fake_images(sampling, spec.count, frontal_conditioning=frontal):
        stats.add(detector(images))
    value = frechet_distance(*stats.mean_cov(), mean_real, cov_real)
    protocol = {
        "num_real": len(sampling.dataset),
        "num_fake": spec.count,
        "detector": detector.name,
        "detector_key": detector.key,
        "conditioning": "the data's frontal camera" if frontal else "the rendering camera",
    }
    return _Outcome(value, {spec.name: value}, protocol, detector.note, found)


def _real_statistics(sampling: Sampling, detector: Detector) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """Mean and covariance of the features of all reals, and where they came from."""
    cache = None
    if sampling.cache_dir is not None:
        key = {
            "data": sampling.dataset.content_key(),
            "resolution": sampling.dataset.resolution,
            "detector": detector.key,
            "background": sampling.background,
            "mirror": False,
        }
        cache = StatisticsCache(sampling.cache_dir, detector.name, key)
        if (arrays := cache.load()) is not None:
            return (arrays["mean"], arrays["cov"]), f"cache hit: {cache.path}"
    stats = FeatureStats(detector.num_features, sampling.device)
    for images in real_images(sampling):
        stats.add(detector(images))
    mean, cov = (t.numpy() for t in stats.mean_cov())
    if cache is None:
        return (mean, cov), "computed"
    try:
        cache.save(mean=mean, cov=cov)
    except OSError as error:  # a full or read-only disk costs time, not the value
        return (mean, cov), f"cache miss, and not kept: {error}"
    return (mean, cov), f"cache miss: {cache.path}"


KINDS = {
    "fid": _Kind("fid<N>_full", _fid, needs_detector=True),
    "fid3d": _Kind("fid3d_<N>_full", _fid, needs_detector=True),
    "swd": _Kind("swd<N>", _swd, needs_detector=False),
}


def parse_metric(name: str) -> MetricSpec:
    """`fid50k_full` -> MetricSpec("fid", 50000, ...). ValueError lists the legal forms."""
    for kind, entry in KINDS.items():
        if (digits := entry.match(name)) is not None:
            count = int(digits.rstrip("k")) * (1000 if digits.endswith("k") else 1)
            if count < 2:
                raise ValueError(f"metric {name!r} needs a count of at least 2")
            return MetricSpec(kind, count, name)
    forms = ", ".join(entry.form for entry in KINDS.values())
    raise ValueError(f"metric {name!r} does not exist; legal are {forms} with <N> like 200 or 50k")


def needs_detector(name: str) -> bool:
    """Whether the metric reads features of the Inception network. ValueError as `parse_metric`."""
    return KINDS[parse_metric(name).kind].needs_detector


def compute_metric(
    name: str,  # see parse_metric
    G: Any,  # mapping, synthesis, render, z_dim, resolution
    dataset: ImageDataset,  # unmirrored
    *,
    seed: int = 0,
    detector: str | Detector | None = None,  # path, URL or "untrained"; None: $SPLATGAN_DETECTOR
    device: torch.device | str | None = None,  # where G is; None: found from its parameters
    batch_size: int = 32,
    cache_dir: str | Path | None = None,  # for statistics of reals; None: the user's cache folder
    cache: bool = True,
    background: str = "white",  # or "black"; of reals and fakes
    weights: str = "ema",  # recorded: which weights G holds, "ema" or "raw"
    progress: Callable[[str, int, int], None] | None = None,  # called with ("reals" or "fakes", done, total)
) -> MetricResult:
    """The value of metric `name` for generator G against `dataset`. docs/metrics.md has the protocols.

    Raises MetricUnavailable with a one-line reason if it cannot run, ValueError for an illegal argument.
    """
    spec = parse_metric(name)
    if background not in BACKGROUNDS:
        raise ValueError(f"background {background!r} does not exist; legal are {', '.join(BACKGROUNDS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    _check_inputs(G, dataset)
    start = time.perf_counter()
    where = torch.device(device) if device is not None else _device_of(G)
    entry = KINDS[spec.kind]
    network = load_detector(detector, where) if entry.needs_detector else None
    folder = (Path(cache_dir) if cache_dir is not None else dnnlib.cache_dir("metrics")) if cache else None
    sampling = Sampling(G, dataset, seed, where, batch_size, background, folder, progress)
    outcome = entry.compute(spec, sampling, network)
    protocol = {
        "background": background if dataset.has_masks else f"{background}; reals as stored (no masks)",
        "truncation_psi": 1.0,
        "mirror": False,
        "seed": seed,
        "cameras": "of random data items",
        "conditioning": "the rendering camera",
        "weights": weights,
        "detector": None,
        "data": dataset.name,
        "data_key": dataset.content_key(),
        "resolution": dataset.resolution,
        **outcome.protocol,
    }
    seconds = time.perf_counter() - start
    return MetricResult(name, outcome.value, outcome.values, protocol, seconds, outcome.note, outcome.real_statistics)


def _check_inputs(G: Any, dataset: ImageDataset) -> None:
    if G.resolution != dataset.resolution:
        raise MetricUnavailable(f"the generator makes {G.resolution} px, the data set has {dataset.resolution} px")
    if len(dataset) < 2:
        raise MetricUnavailable(f"the data set {dataset.name} has {len(dataset)} image; a metric needs at least 2")


def _device_of(G: Any) -> torch.device:
    tensors: list[Tensor] = list(G.parameters()) if hasattr(G, "parameters") else []
    return tensors[0].device if tensors else torch.device("cpu")


def result_line(result: MetricResult, snapshot: str | Path | None, num_gpus: int | None = None) -> dict[str, Any]:
    """The JSON-able record of a result; `snapshot` is named, not read."""
    if num_gpus is None:
        num_gpus = 1 if torch.cuda.is_available() else 0
    line: dict[str, Any] = {
        "results": {result.name: result.value, **result.values},
        "metric": result.name,
        "total_time": round(result.seconds, 3),
        "total_time_str": dnnlib.format_time(result.seconds),
        "num_gpus": num_gpus,
        "snapshot_pkl": None if snapshot is None else Path(snapshot).name,
        "timestamp": datetime.now(UTC).timestamp(),
        "protocol": result.protocol,
        "real_statistics": result.real_statistics,
    }
    return line if result.note is None else {**line, "note": result.note}


def write_result(result: MetricResult, run_dir: str | Path, snapshot: str | Path | None) -> dict[str, Any]:
    """Appends one JSON line to `run_dir`/metric-<name>.jsonl and returns what it holds."""
    line = result_line(result, snapshot)
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"metric-{result.name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return line
