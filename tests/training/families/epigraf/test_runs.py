"""A run of EpiGRAF over a law of patches that changes: it goes on bit-equal, and is measured, filmed and reported."""

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
from tests.families.runs import TRAIN, assert_equal, keep_small, run, snapshots, train_run
from tests.training.families.epigraf.small import discriminator_config, generator_config, run_config
from training.checkpoint import load_checkpoint, load_generator
from training.data.synthetic.synthesize import synthesize_heads
from training.families import FAMILIES
from training.families.base import Preset, RunFields
from training.families.epigraf.presets import unit
from training.safety.requests import EXIT_STOPPED
from training.step import GanStep

LENGTH = 40  # images
ARGUMENTS = ("--preset=epigraf-small", "--kimg=0.04", "--tick=0.008")


@pytest.fixture(scope="module", autouse=True)
def preset() -> Iterator[None]:
    """Makes a member of 16 px known while the tests run, that shows the background."""
    fields = RunFields(batch=8, batch_gpu=4, background="random")
    G = generator_config(
        unit=unit(13.37), cube_scale=0.22, opaque=False, noise_fade_kimg=0.03, camera_conditioning=True,
        camera_dropout=0.2, published_keys=False,
    )  # fmt: skip
    D = discriminator_config(camera="raw", camera_dropout=0.2, published_keys=False)
    objective = run_config().objective.changed(anneal_kimg=0.03, swap_fade_kimg=0.03, augment="ada", augment_kimg=0.1)
    known, small = FAMILIES["epigraf"], Preset(G, D, objective, fields)
    with pytest.MonkeyPatch.context() as patch:
        keep_small(patch)
        patch.setitem(
            FAMILIES, "epigraf", dataclasses.replace(known, presets={**known.presets, "epigraf-small": small})
        )
        yield


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads")
    synthesize_heads(root / "set", 24, 16, seed=0)
    return root / "set" / "16"


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_run(heads, tmp_path_factory.mktemp("whole"), *ARGUMENTS)


def statistics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert all(line.pop("timing") for line in lines)
    return lines


def test_a_stopped_run_goes_on_bit_equal(
    heads: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while windows, noise and swaps are on their way."""
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, *ARGUMENTS)
    original = GanStep.run

    def stopped(self: GanStep, step: int, *rest: Any) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", stopped)
        assert "stopped after step 2" in run(train.main, *arguments, code=EXIT_STOPPED)
    run(train.main, *arguments, "--resume=latest")
    (run_dir,) = tmp_path.iterdir()
    assert_equal(snapshots(run_dir)[LENGTH], snapshots(whole)[LENGTH])
    assert statistics(run_dir) == statistics(whole)


def test_everything_learns_and_says_so(whole: Path) -> None:
    first, last = (load_checkpoint(snapshots(whole)[nimg]) for nimg in (8, LENGTH))
    for network in ("G", "D", "G_ema"):
        unchanged = {key for key, value in first[network].items() if torch.equal(value, last[network][key])}
        constant = {key for key in unchanged if key.endswith(("noise_const", "fourier_coefs", "mean_camera_pose"))}
        assert unchanged == constant, (network, unchanged)
    names = set(statistics(whole)[-1])
    assert {"Field/opacity", "Field/opaque", "Loss/G/adversarial", "Patch/scale", "Gradient/D/norm"} <= names


def test_it_is_measured_filmed_drawn_and_reported(whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[LENGTH]
    measured = ("--metrics=swd16", "--device=cpu", "--no-cache")
    run(calc_metrics.main, f"--network={network}", f"--outdir={tmp_path}", *measured)
    film = (f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", "--seeds=0-1", "--w-frames=2", "--grid=2x1")
    assert "orbit" in run(gen_videos.main, *film, "--show=image,alpha,depth,normals")
    refused = run(gen_videos.main, *film, "--opaque", code=1)
    assert "the scenes of this network have no splats to show" in refused
    run(gen_samples.main, f"--network={network}", f"--outdir={tmp_path}", "--seeds=3", "--trunc=0.7", "--images")
    G = load_generator(network)
    scene = G.synthesis(G.mapping(torch.zeros(1, G.z_dim)))
    black, white = (
        G.render(scene, G.geometry.orbit(torch.zeros(1, 1)), background=torch.tensor(value)) for value in (0.0, 1.0)
    )
    torch.testing.assert_close(white.rgb - black.rgb, (1 - black.alpha).expand_as(black.rgb), rtol=0, atol=1e-5)
    assert 0.01 < black.alpha.mean() < 0.99
    page = Path(run(report.main, whole, f"--out={tmp_path / 'page.html'}").strip()).read_text()
    assert "Opacity of the field" in page and "Width of the windows" in page


def test_options_of_the_family(heads: Path, tmp_path: Path) -> None:
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", "--preset=epigraf-small", "--dry-run")
    given = (
        "--num-ray-steps=6",
        "--patch-law=uniform",
        "--disc-camera=fourier",
        "--bg-model=sphere",
        "--anneal-kimg=5",
    )
    printed = run(train.main, *arguments, *given)
    config = json.loads(printed[: printed.rindex("}") + 1])
    assert config["generator"]["samples"] == 6 and config["generator"]["backdrop"] == "sphere"
    assert config["objective"]["patch_law"] == "uniform" and config["discriminator"]["camera"] == "fourier"
    outside = run(train.main, *arguments, "--cube-scale=0.15", "--ray-start=0.9", "--ray-end=1.1", code=1)
    assert "--cube-scale=0.15: the frustum of the data's cameras lies outside of the cube" in outside
    inside = run(train.main, *arguments, "--cube-scale=0.1", code=1)
    assert "the frustum lies outside of the cube, which reaches from 0.9 to 1.1" in inside
