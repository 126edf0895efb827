"""Tests what a measuring process finds about metrics."""

from pathlib import Path

import pytest
import torch

from metrics import measuring
from tests.metrics.toys import Settings, ToyGenerator
from training.dataset import ImageDataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(data_folder: Path) -> ImageDataset:
    return ImageDataset(data_folder)


def test_a_batch_is_timed_and_stands_for_all(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves 1 s a look, 32 images take 1 s, and 1000 take 31.25 s."""
    clock = iter(range(100))
    monkeypatch.setattr(measuring, "seconds_now", lambda device: next(clock))
    settings = Settings(metrics=("swd1k", "pr1kk3_full", "fid64_full"))
    times = measuring.measure_metrics(settings, ToyGenerator(), dataset, CPU)
    assert times.sec == {"swd1k": 31.25, "fid64_full": 2.0}
    (note,) = times.notes
    assert note.startswith("pr1kk3_full left out: it needs the weights of the VGG-16 network")


def test_a_metric_that_fails_is_noted(dataset: ImageDataset) -> None:
    broken = ToyGenerator(brightness=float("nan"))
    times = measuring.measure_metrics(Settings(metrics=("swd1k",)), broken, dataset, CPU)
    assert times.sec == {}
    assert times.notes == ["swd1k left out: the generator's images hold NaN or infinite values"]
