"""Measures what a run costs, metrics included: `python -m metrics.measuring JOB RESULT` is a process of --measure.

The job and the result are files of `training.measure`, which starts these processes and does all but the metrics.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import Tensor

import dnnlib
from metrics.detectors import Detector
from metrics.errors import MetricUnavailable
from metrics.evaluator import MetricSettings
from metrics.generators import Generator
from metrics.registry import compute_on_few, image_counts, load_on_all_ranks, needs_detector
from metrics.samples import Sampling, each, fake_images, real_images
from training.dataset import ImageDataset
from training.measure import MetricTimes, seconds_now, work

BATCH = 32  # images, as compute_metric takes them
ESTIMATED_FROM = 8  # images


def measure_metrics(config: MetricSettings, G: Generator, dataset: ImageDataset, device: torch.device) -> MetricTimes:
    """Times a batch of each metric's generated images and their features, and infers the time for all of them.

    Each metric is then computed on few images, for the memory that it takes.
    """
    few = dataset.head(BATCH)
    sampling = Sampling(G, few, 0, device, BATCH, config.shown_background, cache_dir=None, progress=None)
    seconds, notes = {}, []
    for name in config.metrics:
        try:
            detector = _detector(name, config, device)
            start = seconds_now(device)
            each(fake_images(sampling, BATCH), partial(_look_at, detector))
            seconds[name] = (seconds_now(device) - start) * image_counts(name, len(dataset))[0] / BATCH
            compute_on_few(name, sampling, detector, BATCH)
        except MetricUnavailable as reason:
            notes.append(f"{name} left out: {reason}")
    return MetricTimes(seconds, notes)


def estimate(
    name: str,  # of a metric
    G: Generator,
    dataset: ImageDataset,
    device: torch.device,
    detector: Detector | None,  # what the metric takes features with
    ranks: int,  # processes that share the work
) -> str:
    """Says how long a metric will take, from a few of its images made beforehand; every rank may ask by itself.

    Reals are said to take what they take where their features are not kept yet. Raises MetricUnavailable.
    """
    background = "white" if G.info is None else G.info.background
    few = dataset.head(ESTIMATED_FROM)
    sampling = Sampling(G, few, 0, device, ESTIMATED_FROM, background, cache_dir=None, progress=None)
    look = partial(_look_at, detector)
    for indices, images in fake_images(sampling, 2):  # builds and warms what the first call builds and warms
        look(indices, images)
    times = []
    for batches in (fake_images(sampling, len(few)), real_images(sampling)):
        start = seconds_now(device)
        for indices, images in batches:
            look(indices, images)
        times.append((seconds_now(device) - start) / len(few) / ranks)
    fakes, reals = image_counts(name, len(dataset))
    fake_time, real_time = (dnnlib.format_time(t * n) for t, n in zip(times, (fakes, reals), strict=True))
    kept = ", or none where their features are kept" if detector is not None else ""
    also = f", and {reals:,} real ones {real_time}{kept}" if reals else ""
    return f"{fakes:,} generated images will take about {fake_time}{also}"


def _look_at(detector: Detector | None, indices: range, images: Tensor) -> None:
    if detector is not None:
        detector(images)


def _detector(name: str, config: MetricSettings, device: torch.device) -> Detector | None:
    """Loads the network that a metric cannot do without."""
    kind = needs_detector(name)
    if kind is None:
        return None
    return load_on_all_ranks(config.detector if kind == "inception" else config.detector_vgg, kind, device)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], measure_metrics)
