"""Metrics: FID, FID3D, KID, precision and recall, Inception score, SWD, SWD3D, view drift, FID and SWD by yaw."""

from metrics.detectors import Detector, load_detector
from metrics.errors import MetricUnavailable, named
from metrics.evaluator import Evaluator
from metrics.progress import ProgressBar
from metrics.registry import (
    check_detectors,
    compute_metric,
    features_key,
    image_counts,
    larger_is_better,
    load_detectors,
    load_on_all_ranks,
    meaning,
    needs_detector,
    parse_metric,
    parse_metrics,
    used_detector,
)
from metrics.result_files import result_line, write_result
from metrics.results import MetricResult, MetricSpec

__all__ = [
    "Detector",
    "Evaluator",
    "MetricResult",
    "MetricSpec",
    "MetricUnavailable",
    "ProgressBar",
    "check_detectors",
    "compute_metric",
    "features_key",
    "image_counts",
    "larger_is_better",
    "load_detector",
    "load_detectors",
    "load_on_all_ranks",
    "meaning",
    "named",
    "needs_detector",
    "parse_metric",
    "parse_metrics",
    "result_line",
    "used_detector",
    "write_result",
]
