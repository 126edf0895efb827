"""Tests what a measuring process finds about metrics."""

from pathlib import Path

import pytest
import torch

from metrics import compute_metric, image_counts, load_detector, measuring
from tests.metrics.toys import Settings, ToyGenerator
from training.dataset import ImageDataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(data_folder: Path) -> ImageDataset:
    return ImageDataset(data_folder)


def test_a_batch_is_timed_and_stands_for_all(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves 1 s a look, 32 images take 1 s; swd takes as many as there are reals, fid its number."""
    clock = iter(range(100))
    monkeypatch.setattr(measuring, "seconds_now", lambda device: next(clock))
    settings = Settings(metrics=("swd1k", "pr1kk3_full", "fid64_full", "view_drift8"))
    times = measuring.measure_metrics(settings, ToyGenerator(), dataset, CPU)
    assert times.sec == {"swd1k": len(dataset) / 32, "fid64_full": 2.0, "view_drift8": 2.0}
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
    said = measuring.estimate("view_drift100", ToyGenerator(), dataset, CPU, None, ranks=1)
    assert said == "800 generated images will take about 13m 20s"


@pytest.mark.parametrize(
    "name",
    [
        "fid20_full", "fid3d_20_full", "fid_yaw7", "kid20_full", "pr_inception20k3_full", "is20", "view_drift3",
        "swd20", "swd1k", "swd3d_20", "swd_yaw7", "swd_yaw1k",
    ],
)  # fmt: skip
def test_the_images_of_a_metric_are_counted(name: str, dataset: ImageDataset) -> None:
    """Against the images that are made and read while it is computed, and what its result records."""
    made = {"fakes": 0, "reals": 0}
    numbers = {"fakes": 0, "reals": 0}

    def progress(what: str, done: int, total: int) -> None:
        made[what] += done - numbers[what] if done > numbers[what] else done
        numbers[what] = 0 if done == total else done

    result = compute_metric(name, ToyGenerator(), dataset, detector="tiny", cache=False, progress=progress)
    counted = image_counts(name, len(dataset))
    assert counted == (result.protocol["num_fake"], result.protocol["num_real"])
    shown = 8 if name.startswith("view_drift") else 1  # its progress counts latents
    assert (shown * made["fakes"], made["reals"]) == counted
