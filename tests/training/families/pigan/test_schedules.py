"""The presets have the released curricula, in images."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.training.families.pigan.golden import GOLDEN
from training import presets
from training.config import TrainingConfig
from training.families.pigan.generator import Generator
from training.families.pigan.objective import fade_at, steps_at, topk_share

NAMES = {"CelebA": "pigan-celeba", "CATS": "pigan-cats", "CARLA": "pigan-carla"}


def config(name: str) -> TrainingConfig:
    return presets.resolve(name, data="")


def images_after(run: TrainingConfig, steps: int) -> int:
    """The images seen before a step, by running through the stages."""
    nimg, left = 0, steps
    while left:
        stage = run.stage_at(nimg)
        later = [s.from_nimg for s in run.stages if s.from_nimg > nimg]
        count = min(left, (later[0] - nimg) // stage.batch) if later else left
        nimg, left = nimg + count * stage.batch, left - count
    return nimg


@pytest.mark.parametrize("curriculum", NAMES)
def test_released_curricula(curriculum: str) -> None:
    run: Any = config(NAMES[curriculum])
    G, settings = Generator(run.generator), run.objective
    for step, golden in GOLDEN["curricula"][curriculum].items():
        nimg = images_after(run, int(step))
        stage = run.stage_at(nimg)
        assert steps_at(run, nimg) == pytest.approx(int(step))
        assert (stage.batch, stage.resolution, stage.batch // stage.batch_gpu) == (
            golden["batch"], golden["px"], golden["split"])  # fmt: skip
        assert (stage.g_lr, stage.d_lr) == (golden["lr_g"], golden["lr_d"])
        assert run.generator.samples == run.generator.fine_samples == golden["steps"]
        assert fade_at(run, nimg, settings.fade_steps) == pytest.approx(golden["alpha"], abs=1e-9)
        assert G.noise_std(nimg) == pytest.approx(golden["noise_std"], abs=1e-9)
        share = topk_share(steps_at(run, nimg), settings.topk_interval, settings.topk_least)
        assert math.ceil(share * stage.batch_gpu) == golden["topk"]
    assert images_after(run, 200_000) == run.total_kimg * 1000


def test_at_rest_nothing_fades() -> None:
    G = Generator(config("pigan-tiny").generator)
    assert G.noise_std(None) == 0 and G.noise_std(0) > 0 and G.noise_std(10**9) == 0
    assert fade_at(config("pigan-celeba"), 5, 0) == 1
