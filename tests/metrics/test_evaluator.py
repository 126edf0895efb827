"""Tests that an Evaluator measures what a configuration asks for, keeps the results, and never ends a run."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from metrics import Evaluator, MetricUnavailable, compute_metric
from metrics.generators import Generator
from tests.metrics.toys import Settings, ToyGenerator
from torch_utils import distributed
from training.dataset import ImageDataset

CPU = torch.device("cpu")
SNAPSHOT = "network-snapshot-000007.pkl"


@pytest.fixture(scope="module")
def dataset(data_folder: Path) -> ImageDataset:
    return ImageDataset(data_folder)


def test_results_are_returned_printed_and_kept(
    dataset: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    G: Generator = ToyGenerator()
    swd, fid = Evaluator(Settings(), dataset, CPU, tmp_path)(G, tmp_path / SNAPSHOT)
    assert (swd.name, fid.name) == ("swd16", "fid20_full") and swd.value > 1 and fid.value > 1
    assert fid.value == compute_metric("fid20_full", G, dataset, detector="tiny").value
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and printed[0].startswith(f"swd16 {swd.value:.4g} in ")
    assert printed[1].endswith("(tiny detector: a smoke test, not comparable with any other value)")
    for result in (swd, fid):
        (line,) = (tmp_path / f"metric-{result.name}.jsonl").read_text().splitlines()
        record = json.loads(line)
        assert record["snapshot_pkl"] == SNAPSHOT and record["results"][result.name] == result.value


def test_what_cannot_run_is_left_out(dataset: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(metrics=("pr20k3_full", "swd16"))
    (swd,) = Evaluator(settings, dataset, CPU, tmp_path)(ToyGenerator(), tmp_path / SNAPSHOT)
    assert swd.name == "swd16"
    assert capsys.readouterr().out.startswith("pr20k3_full left out: it needs the weights of the VGG-16 network")
    assert not (tmp_path / "metric-pr20k3_full.jsonl").exists()


def test_a_file_that_cannot_be_written_costs_a_line(
    dataset: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metric-swd16.jsonl"
    path.mkdir()
    results = Evaluator(Settings(), dataset, CPU, tmp_path)(ToyGenerator(), tmp_path / SNAPSHOT)
    assert [result.name for result in results] == ["swd16", "fid20_full"]
    warning = f"Warning: metric-swd16.jsonl not written (Is a directory: {path}); training goes on"
    assert capsys.readouterr().out.splitlines()[0] == warning


def test_other_ranks_keep_quiet(
    dataset: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr("metrics.evaluator.compute_metric", only_swd)
    results = Evaluator(Settings(), dataset, CPU, tmp_path)(ToyGenerator(), None)
    assert [result.name for result in results] == ["swd16"]
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def only_swd(name: str, G: Generator, dataset: ImageDataset, **_: object) -> object:
    """Stands in for compute_metric, which another rank cannot run alone."""
    if name != "swd16":
        raise MetricUnavailable("not today")
    return dataclasses.make_dataclass("Result", ["name", "value", "seconds", "note"])(name, 1.0, 1.0, None)


@dataclass(frozen=True)
class Facts:
    """Holds what a generator knows of its run."""

    config: dict[str, str]
    background: str


@pytest.mark.parametrize(
    ("trained", "shown", "asked", "taken"),
    [
        ("random", "white", None, "white"),
        ("random", "white", "black", "black"),
        ("0,0,0", "0,0,0", None, "0,0,0"),
        ("0,0,0", "0,0,0", "black", "black"),
    ],
)
def test_the_background_is_that_of_the_run(
    dataset: ImageDataset, trained: str, shown: str, asked: str | None, taken: str
) -> None:
    G = ToyGenerator()
    G.info = Facts({"background": trained}, shown)
    assert compute_metric("swd8", G, dataset, background=asked).protocol["background"] == taken


def test_another_background_than_the_trained_one_is_refused(dataset: ImageDataset) -> None:
    G = ToyGenerator()
    G.info = Facts({"background": "black"}, "black")
    with pytest.raises(MetricUnavailable, match=r"^the network was trained over black, the metric asks for white$"):
        compute_metric("swd8", G, dataset, background="white")
