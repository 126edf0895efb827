"""From a command line to a configuration: what stages of a run take from it."""

import dataclasses
from types import SimpleNamespace

import pytest

from training.presets import resolve
from training.runs import launch
from training.samples import Stage

DATA = SimpleNamespace(resolution=32, index_list="all", has_masks=True)


def staged(batch_gpu=8):
    stages = (Stage(0, 32, 16, batch_gpu, 0.004, 0.003), Stage(4000, 32, 8, batch_gpu, 0.002, 0.001))
    return dataclasses.replace(resolve("micro", data=""), stages=stages)


def test_an_option_reaches_every_stage():
    config = launch.resolve_config(DATA, "", base=staged(), fields={"g_lr": 0.01, "batch": 8, "seed": 3})
    assert [stage.g_lr for stage in config.stages] == [0.01, 0.01] and [s.batch for s in config.stages] == [8, 8]
    assert [stage.d_lr for stage in config.stages] == [0.003, 0.001]  # was not given
    assert config.stage_at(0).from_nimg == 0 and config.stage_at(4000).d_lr == 0.001 and config.seed == 3


def test_micro_batches_shrink_in_every_stage():
    config = launch.resolve_config(DATA, "", ranks=2, base=staged())
    assert config.batch_gpu == 4 and [stage.batch_gpu for stage in config.stages] == [4, 4]
    assert list(launch.batch_sizes(staged(), 1, 16)) == [16, 8, 4]  # groups of 4 samples share a statistic


def test_a_stage_that_cannot_be_is_named():
    with pytest.raises(ValueError, match=r"the stage from 4000 images on: batch=6 is not a multiple of --gpus x"):
        stages = (staged().stages[0], Stage(4000, 32, 6, 4, 0.002, 0.001))
        dataclasses.replace(staged(), stages=stages).check()
    with pytest.raises(ValueError, match="24 px is no whole fraction of 32 px"):
        dataclasses.replace(staged(), stages=(Stage(0, 24, 16, 8, 0.1, 0.1),)).check()
    with pytest.raises(ValueError, match="stages must begin one after the other"):
        dataclasses.replace(staged(), stages=staged().stages[::-1]).check()
    with pytest.raises(ValueError, match="--batch=1 leaves multi-view"):
        stages = (staged().stages[0], Stage(4000, 32, 1, 1, 0.002, 0.001))
        dataclasses.replace(staged(), stages=stages).check()
