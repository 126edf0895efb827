"""Metrics: the Fréchet distances FID and FID3D, and the sliced Wasserstein distance SWD."""

from metrics.detectors import Detector, load_detector
from metrics.errors import MetricUnavailable
from metrics.registry import MetricResult, MetricSpec, compute_metric, needs_detector, parse_metric, write_result

__all__ = [
    "Detector",
    "MetricResult",
    "MetricSpec",
    "MetricUnavailable",
    "compute_metric",
    "load_detector",
    "needs_detector",
    "parse_metric",
    "write_result",
]
