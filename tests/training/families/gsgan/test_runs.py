"""A run of GSGAN over its background's beginning: it stops, goes on bit-equal, and is measured, filmed and reported."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import calc_metrics
import gen_samples
import gen_videos
import report
import train
from gaussian import load_ply
from tests.families.runs import TRAIN, assert_equal, keep_small, run, snapshots, train_run
from tests.training.families.gsgan.small import discriminator_config, generator_config, run_config
from training.checkpoint import load_checkpoint, load_generator
from training.data.synthetic.synthesize import synthesize_heads
from training.families import FAMILIES
from training.families.base import Preset, RunFields
from training.safety.requests import EXIT_STOPPED
from training.step import GanStep

LENGTH = 40  # images; the background begins at 24 of them


@pytest.fixture(scope="module", autouse=True)
def preset() -> Iterator[None]:
    """Makes a member of 32 px known while the tests run, black behind it."""
    fields = RunFields(batch=8, batch_gpu=4, background="black")
    small = Preset(generator_config(), discriminator_config(), run_config().objective, fields)
    known = FAMILIES["gsgan"]
    with pytest.MonkeyPatch.context() as patch:
        keep_small(patch)
        patch.setitem(FAMILIES, "gsgan", dataclasses.replace(known, presets={**known.presets, "gsgan-small": small}))
        yield


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads")
    synthesize_heads(root / "set", 24, 32, seed=0)
    return root / "set" / "32"


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_run(heads, tmp_path_factory.mktemp("whole"), "--preset=gsgan-small", "--kimg=0.04", "--tick=0.008")


def statistics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert all(line.pop("timing") for line in lines)
    return lines


@pytest.mark.parametrize("stopped_in", [1, 3])
def test_a_stopped_run_goes_on_bit_equal(
    stopped_in: int, heads: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the background has begun, and after its first step."""
    arguments = (
        f"--data={heads}",
        f"--outdir={tmp_path}",
        *TRAIN,
        "--preset=gsgan-small",
        "--kimg=0.04",
        "--tick=0.008",
    )
    original = GanStep.run

    def stopped(self: GanStep, step: int, *rest: Any) -> Any:
        if step == stopped_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", stopped)
        assert f"stopped after step {stopped_in + 1}" in run(train.main, *arguments, code=EXIT_STOPPED)
    run(train.main, *arguments, "--resume=latest")
    (run_dir,) = tmp_path.iterdir()
    assert_equal(snapshots(run_dir)[LENGTH], snapshots(whole)[LENGTH])
    assert statistics(run_dir) == statistics(whole)


def test_everything_learns_the_background_from_its_beginning_on(whole: Path) -> None:
    states = {nimg: load_checkpoint(path) for nimg, path in snapshots(whole).items()}
    for network in ("G", "D", "G_ema"):
        first, middle, last = (states[nimg][network] for nimg in (8, 24, LENGTH))
        # A softmax over edges cancels this bias: in native code its gradient is 0, and not a rounding error.
        learnt = {key: value for key, value in first.items() if not key.endswith(".0.conv_w.1.bias")}
        unchanged = {key for key, value in learnt.items() if torch.equal(value, last[key])}
        # The pose branches of the last level's anchors and what no formula reads are not there: all learns.
        assert not unchanged, (network, unchanged)
        early = {key for key, value in learnt.items() if torch.equal(value, middle[key])}
        assert early == {key for key in first if "_bg" in key}, network
    config = states[LENGTH]["config"]
    assert config["background"] == "black" and config["family"] == "gsgan"
    assert {"Loss/G/contrastive", "Loss/D/contrastive", "Loss/G/knn", "Loss/G/center"} <= set(statistics(whole)[-1])


def test_it_is_measured_filmed_drawn_and_reported(whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[LENGTH]
    run(
        calc_metrics.main,
        f"--network={network}",
        f"--outdir={tmp_path}",
        "--metrics=swd16",
        "--device=cpu",
        "--no-cache",
    )
    film = (f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", "--seeds=0-1", "--w-frames=2", "--grid=2x1")
    assert "orbit" in run(gen_videos.main, *film, "--show=image,depth")
    run(gen_videos.main, *film, "--levels=0,1", "--point=2", "--opaque")
    run(gen_samples.main, f"--network={network}", f"--outdir={tmp_path}", "--seeds=3", "--trunc=0.7", "--images")
    G = load_generator(network)
    splats = load_ply(tmp_path / f"{network.stem}-seed0003.ply")
    assert splats.num_splats == G.scene_numbers == 1070
    page = Path(run(report.main, whole, f"--out={tmp_path / 'page.html'}").strip()).read_text()
    assert "Contrast of images with cameras" in page


def test_options_of_the_family(heads: Path, tmp_path: Path) -> None:
    given = (
        "--gpc-reg-prob=0.8",
        "--prob-uniform=0.25",
        "--gen-pose-cond=False",
        "--set=generator.conventions.flip_view_x=true",
    )
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", "--preset=gsgan-small", "--dry-run")
    printed = run(train.main, *arguments, *given)
    config = json.loads(printed[: printed.rindex("}") + 1])
    assert config["objective"]["swap_probability"] == 0.8 and config["objective"]["uniform_poses"] == 0.25
    assert not config["generator"]["pose_conditioned"] and config["generator"]["conventions"]["flip_view_x"]
    refused = run(train.main, *arguments, "--disc-c-noise=1", code=1)
    assert "--disc-c-noise=1.0: has no effect on GSGAN" in refused
    assert "--contrastive is an option of the family gsgan" in run(
        train.main, f"--data={heads}", "--preset=micro", "--contrastive=0.5", "--dry-run", code=2
    )
