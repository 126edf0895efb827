"""Starting from other weights: what is loaded, skipped, mismatched and unused, and the share that is asked for."""

import dataclasses

import pytest
import torch
from torch import nn

from training.checkpoint import CheckpointError, read_config
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator
from training.presets import resolve
from training.runs.transfer import init_from, read_weights, take_weights


def test_everything_is_accounted_for():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {
        "0.weight": torch.ones(3, 4),
        "0.bias": torch.ones(5),
        "1.weight": torch.ones(2, 3),
        "other": torch.ones(1),
    }
    found = take_weights("G", module, state)
    assert found.loaded == ["0.weight", "1.weight"] and found.skipped == ["1.bias"] and found.unused == ["other"]
    assert found.mismatched == ["0.bias [5] -> [3]"]
    assert found.share == 18 / 23
    after = module.state_dict()
    for name in ("0.weight", "1.weight"):
        assert torch.equal(after[name], state[name])
    for name in ("0.bias", "1.bias"):
        assert torch.equal(after[name], before[name])
    text = "\n".join(found.lines())
    assert "loaded 2 tensors, 78.3% of the values" in text and "mismatched 1: 0.bias [5] -> [3]" in text


@pytest.fixture
def networks():
    config = resolve("tiny", data="")
    return {
        "G": Generator(config.generator),
        "D": Discriminator(config.discriminator),
        "G_ema": Generator(config.generator),
    }


def test_another_preset_gives_what_fits_or_is_refused(checkpoint_path, networks):
    """A 32 px checkpoint for the 64 px member: D shares its lower blocks, G hardly anything."""
    config = resolve("tiny", data="")
    with pytest.raises(ValueError, match=r"only \d+\.\d% of G's values are in the file, less than --init-share=0.5"):
        read_weights(str(checkpoint_path), config, 0.5)
    weights = read_weights(str(checkpoint_path), config, 0.0)
    found = {t.network: t for t in init_from(weights, networks, 0.0)}
    assert found["D"].loaded and found["D"].skipped and found["D"].mismatched
    assert any(name.startswith("b64.") for name in found["D"].skipped)


def test_values_that_change_what_weights_mean_are_said(checkpoint_path):
    """A start is not among the tensors: those of another one fit by name and shape, and draw another scene."""
    theirs = read_config(checkpoint_path)
    other = "published" if theirs.generator.start == "surface" else "surface"
    ours = dataclasses.replace(theirs, generator=dataclasses.replace(theirs.generator, start=other))
    first, schedules = read_weights(str(checkpoint_path), theirs, 1.0).lines([])
    assert first == f"Weights from {checkpoint_path}"
    assert schedules.startswith("  Warm start: objective.ema_rampup=0.05, ")  # as they are
    line = read_weights(str(checkpoint_path), ours, 1.0).lines([])[1]
    assert line.endswith(f"may act otherwise: generator.start: {theirs.generator.start} -> {other}")
    another = read_weights(str(checkpoint_path), resolve("pigan-tiny", data=""), 0.0)
    assert another.otherwise == ["family: cgs -> pigan"]


def test_an_unusable_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_weights(str(tmp_path / "none.pkl"), resolve("tiny", data=""), 0.5)
