"""Metrics: FID, FID3D, KID, precision and recall, Inception score, SWD, SWD3D, view drift, FID and SWD by yaw."""

from metrics.detectors import Detector, load_detector
from metrics.errors import MetricUnavailable
from metrics.evaluator import Evaluator
from metrics.registry import (
    check_detectors,
    compute_metric,
    larger_is_better,
    load_on_all_ranks,
    needs_detector,
    parse_metric,
)
from metrics.result_files import write_result
from metrics.results import MetricResult, MetricSpec

__all__ = [
    "Detector",
    "Evaluator",
    "MetricResult",
    "MetricSpec",
    "MetricUnavailable",
    "check_detectors",
    "compute_metric",
    "larger_is_better",
    "load_detector",
    "load_on_all_ranks",
    "needs_detector",
    "parse_metric",
    "write_result",
]
