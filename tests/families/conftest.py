"""What the tests of families share: the families, a data set, runs of train.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

import train
from tests.families import ball, specks, told
from torch_utils import distributed
from training import checkpoint
from training.data.synthetic.synthesize import synthesize_heads
from training.families import FAMILIES, register

TRAIN = ("--tick=0.016", "--network-snap=1", "--img-snap=1", "--metrics=none", "--device=cpu",
         "--no-validate", "--workers=0")  # fmt: skip


@pytest.fixture(scope="package", autouse=True)
def families() -> Iterator[None]:
    """The families of these tests, known while the tests run."""
    before = dict(FAMILIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "usable_cores", lambda: 1)
        for family in (ball.FAMILY, specks.FAMILY, told.FAMILY):
            register(family)
        yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.fixture(scope="package")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 32 px."""
    root = tmp_path_factory.mktemp("heads")
    synthesize_heads(root / "set", 24, 32, seed=0)
    return root / "set" / "32"


def run(command: click.Command, *arguments: object, code: int = 0) -> str:
    """Runs a script and returns what it prints."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def train_run(heads: Path, outdir: Path, *arguments: object) -> Path:
    """Trains, and returns the folder of the newest run."""
    run(train.main, f"--data={heads}", f"--outdir={outdir}", *TRAIN, *arguments)
    return max(outdir.iterdir())


def snapshots(run_dir: Path) -> dict[int, Path]:
    """Returns the checkpoints of a run by the images seen."""
    paths = run_dir.glob(checkpoint.SNAPSHOT_PATTERN)
    return dict(sorted((checkpoint.read_progress(path)["nimg"], path) for path in paths))


def assert_equal(one: Path, other: Path) -> None:
    """Compares everything that has a state, bit by bit, in two checkpoints."""
    first, second = checkpoint.load_checkpoint(one), checkpoint.load_checkpoint(other)
    assert first.keys() == second.keys()
    for key in set(first) - {"config", "progress", "checksum"}:
        same: Any = checkpoint.checksum({key: first[key]}) == checkpoint.checksum({key: second[key]})
        assert same, key
    assert first["progress"]["nimg"] == second["progress"]["nimg"]
    assert any(value.any() for value in first["G"].values() if isinstance(value, torch.Tensor))
