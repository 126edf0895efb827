"""Computes features of the reals once per data set and keeps them on disk: statistics, or the rows themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from metrics.cache import StatisticsCache
from metrics.detectors import Detector
from metrics.feature_stats import FeatureRows, FeatureStats
from metrics.samples import Sampling, each, real_images
from torch_utils import distributed

Arrays = dict[str, np.ndarray]


def real_statistics(sampling: Sampling, detector: Detector, items: np.ndarray | None = None) -> tuple[Arrays, str]:
    """Returns {"mean": [F], "cov": [F, F]} of the data items `items` (None: all), and where they came from."""

    def compute() -> Arrays:
        stats = FeatureStats(detector.num_features, sampling.device)
        each(real_images(sampling, items), lambda _, images: stats.add(detector(images)))
        mean, cov = stats.mean_cov()
        return {"mean": mean.numpy(), "cov": cov.numpy()}

    which = {} if items is None else {"items": items.tolist()}
    return _cached(sampling, detector, {"what": "mean, cov", **which}, compute)


def real_rows(sampling: Sampling, detector: Detector) -> tuple[Arrays, str]:
    """Returns {"rows": float32 [N, F]} of all data items in their order, and where they came from."""

    def compute() -> Arrays:
        rows = FeatureRows(len(sampling.dataset), detector.num_features)
        each(real_images(sampling), lambda indices, images: rows.add(indices, detector(images)))
        found = rows.gather()
        return {} if found is None else {"rows": found.numpy()}

    return _cached(sampling, detector, {"what": "rows"}, compute)


def _cached(
    sampling: Sampling, detector: Detector, what: dict[str, Any], compute: Callable[[], Arrays]
) -> tuple[Arrays, str]:
    """Takes from the cache what `compute` gives, if it is there. Rank 0 reads and writes; a hit is on rank 0 alone."""
    if sampling.cache_dir is None:
        return compute(), "computed"
    key = {
        "data": sampling.data_key,
        "resolution": sampling.dataset.resolution,
        "detector": detector.key,
        "background": sampling.colour().tolist(),
        "mirror": False,
        **what,
    }
    cache = StatisticsCache(sampling.cache_dir, detector.name, key)
    found = cache.load() if distributed.rank() == 0 else None
    if distributed.on_main(lambda: found is not None):
        return found or {}, f"cache hit: {cache.path}"
    arrays = compute()
    return arrays, distributed.on_main(lambda: _keep(cache, arrays))


def _keep(cache: StatisticsCache, arrays: Arrays) -> str:
    try:
        cache.save(**arrays)
    except OSError as error:  # a full or read-only disk costs time, not the value
        return f"cache miss, and not kept: {error}"
    return f"cache miss: {cache.path}"
