"""Measures the snapshots of a run. The training loop is handed an `Evaluator`, as it knows no metric itself."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

import dnnlib
from metrics.errors import MetricUnavailable
from metrics.generators import Generator
from metrics.registry import compute_metric
from metrics.result_files import write_result
from metrics.results import MetricResult
from torch_utils import distributed
from training.dataset import ImageDataset


class MetricSettings(Protocol):
    """What an evaluator reads of a run's configuration; `training.config.TrainingConfig` has it."""

    @property
    def metrics(self) -> tuple[str, ...]: ...  # names, see metrics.parse_metric
    @property
    def detector(self) -> str | None: ...  # weights of the 2015 Inception network
    @property
    def detector_vgg(self) -> str | None: ...  # weights of the VGG-16 network
    @property
    def shown_background(self) -> str: ...  # "white", "black" or "R,G,B" behind real and generated images


class Evaluator:
    """Measures generators by every metric of a configuration and keeps the results in the run's folder."""

    def __init__(self, config: MetricSettings, dataset: ImageDataset, device: torch.device, run_dir: Path) -> None:
        self.config, self.dataset, self.device, self.run_dir = config, dataset, device, run_dir

    def __call__(self, G: Generator, snapshot: Path | None) -> list[MetricResult]:
        """Returns the results of all metrics that can run; rank 0 prints them, and says which cannot, and why.

        snapshot: the file whose name goes into the results; only rank 0 needs it.
        All ranks call it and get equal values, since they share the images.
        """
        results = []
        for name in self.config.metrics:
            try:
                result = compute_metric(
                    name,
                    G,
                    self.dataset,
                    detector=self.config.detector,
                    detector_vgg=self.config.detector_vgg,
                    device=self.device,
                    background=self.config.shown_background,
                )
            except MetricUnavailable as reason:
                _print_on_main(f"{name} left out: {reason}")
                continue
            results.append(result)
            if distributed.rank() == 0:
                self._write(result, snapshot)
            note = f" ({result.note})" if result.note else ""
            _print_on_main(f"{name} {result.value:.4g} in {dnnlib.format_time(result.seconds)}{note}")
        return results

    def _write(self, result: MetricResult, snapshot: Path | None) -> None:
        """Writes a result; a file system that refuses costs a line, as the run must go on."""
        try:
            write_result(result, self.run_dir, snapshot)
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or error
            print(f"Warning: metric-{result.name}.jsonl not written ({reason}); training goes on", flush=True)


def _print_on_main(line: str) -> None:
    if distributed.rank() == 0:
        print(line, flush=True)
