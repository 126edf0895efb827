"""A run with adaptive augmentation, of a family that only these tests know: p is kept, shown, and started anew."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import report
import train
from tests.families.runs import TRAIN, assert_equal, run, snapshots, train_run
from training import checkpoint
from training.augment import Augmentation
from training.step import GanStep

# 12 steps of 8 images, in ticks of 8 and 16 images: p moves by a half after the 4th, 8th and 12th.
ADA = ("--preset=ball", "--kimg=0.096", "--img-snap=99",
       "--set=objective.augment=ada", "--set=objective.augment_kimg=0.064")  # fmt: skip
STOPPED_IN_STEP = 5  # between two moves of p, in the middle of a tick


@pytest.fixture(scope="module", autouse=True)
def _sure() -> Iterator[None]:
    """Takes the discriminator to be sure of real images, so that p rises."""
    with pytest.MonkeyPatch.context() as patch:
        note = Augmentation.note
        patch.setattr(Augmentation, "note", lambda self, logits: note(self, torch.ones_like(logits)))
        yield


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(heads, tmp_path_factory.mktemp("ada"), *ADA)


def statistics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert all(line.pop("timing") for line in lines)
    return lines


def last(run_dir: Path) -> Path:
    return list(snapshots(run_dir).values())[-1]


def test_a_stopped_run_goes_on_with_its_p(
    heads: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-equal: p, the signs since its last move, weights, optimisers and every line of statistics."""
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, *ADA)
    original = GanStep.run

    def stopped(self: GanStep, step: int, *rest: Any) -> Any:
        if step == STOPPED_IN_STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", stopped)
        run(train.main, *arguments, code=75)
    (run_dir,) = tmp_path.iterdir()
    state = checkpoint.load_checkpoint(run_dir / checkpoint.STATE_NAME)["objective"]
    assert state["augment.p"] == 0.5 and state["augment.signs"].tolist() == [16, 16]
    run(train.main, *arguments, "--resume=latest")
    assert_equal(last(run_dir), last(whole))
    assert statistics(run_dir) == statistics(whole)


def test_p_is_in_the_statistics_the_status_line_and_the_report(whole: Path) -> None:
    lines = statistics(whole)
    # Ticks end after 1, 3, 5, ... steps; the first four have p = 0, the next four a half, the last four 1.
    assert [line["Augment/p"] for line in lines] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert {line["Augment/sign"] for line in lines} == {1}
    assert "augment 0.750" in (whole / "log.txt").read_text()
    run(report.main, whole)
    assert "Augmentation: probability" in (whole / "report.html").read_text()


def without_objective(source: Path, target: Path) -> Path:
    """Writes a file as versions before augmentation did."""
    state = checkpoint.load_checkpoint(source)
    del state["objective"]
    state["config"]["objective"] = {k: v for k, v in state["config"]["objective"].items() if "augment" not in k}
    state = {key: value for key, value in state.items() if key not in ("format", "revision", "checksum")}
    checkpoint.save_checkpoint(target, state)
    return target


def test_files_from_before_augmentation_go_on_and_start_p_at_0(heads: Path, whole: Path, tmp_path: Path) -> None:
    old = without_objective(snapshots(whole)[56], tmp_path / "old.pkl")
    assert checkpoint.read_config(old).objective.augment == "noaug"  # type: ignore[attr-defined]
    new = train_run(heads, tmp_path / "runs", f"--resume={old}", "--kimg=0.096", *ADA[2:])
    # The step that ends at 64 images moves p by its own 8 alone; the next move is by all of 32.
    assert [line["Augment/p"] for line in statistics(new)] == [0.0625, 0.125, 0.125]
    assert checkpoint.load_checkpoint(last(new))["objective"]["augment.p"] == 0.625
    plain = train_run(heads, tmp_path / "plain", f"--resume={old}", "--kimg=0.064", "--img-snap=99")
    assert not any("Augment" in name for line in statistics(plain) for name in line)


def test_another_mode_after_a_resume_keeps_the_p_of_the_adaptive_one(heads: Path, whole: Path, tmp_path: Path) -> None:
    fixed = ("--set=objective.augment=fixed", "--set=objective.augment_p=0.125", "--img-snap=99")
    run_dir = train_run(heads, tmp_path, f"--resume={snapshots(whole)[40]}", "--kimg=0.072", *fixed)
    assert {line["Augment/p"] for line in statistics(run_dir)} == {0.125}
    assert checkpoint.load_checkpoint(last(run_dir))["objective"]["augment.p"] == 0.5
    assert "Changed     objective.augment: ada -> fixed" in (run_dir / "log.txt").read_text()


def test_the_state_of_another_objective_is_refused() -> None:
    own = Augmentation("ada", "bgc", 0.2, 0.6, 500, torch.device("cpu")).state()
    for wrong, message in (
        ({"augment.p": torch.ones(())}, "augment.signs is in the file or in this objective, not in both"),
        ({**own, "swap": torch.ones(())}, "swap is in the file or in this objective"),
        ({**own, "augment.p": torch.ones(2)}, r"augment.p is \[2\], not \[\]"),
    ):
        with pytest.raises(checkpoint.CheckpointError, match=message):
            checkpoint.load_objective_state(own, wrong)
    checkpoint.load_objective_state(own, {})
    assert own["augment.p"] == 0
