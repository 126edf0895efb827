"""Tests what a measuring process finds about metrics."""

from pathlib import Path

import pytest
import torch

from metrics import load_detector, measuring
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


def test_an_estimate_stands_for_all_images(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves 8 s a look, the 8 images that are tried take 1 s each, on two ranks half of that."""
    clock = iter(range(0, 800, 8))
    monkeypatch.setattr(measuring, "seconds_now", lambda device: next(clock))
    detector = load_detector("tiny")
    said = measuring.estimate("fid1k_full", ToyGenerator(), dataset, CPU, detector, ranks=2)
    count = len(dataset)
    assert said == (
        f"1,000 generated images will take about 8m 20s, and {count} real ones {count // 2}s, or none where their "
        "features are kept"
    )
    assert measuring.estimate("swd1k", ToyGenerator(), dataset, CPU, None, ranks=1).endswith(f"real ones {count}s")
