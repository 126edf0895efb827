"""Tests averages of the generator at several lengths: how they move, resumes, and what they are measured by."""

import copy
import dataclasses
import json
import os
import signal

import pytest
import torch
from click.testing import CliRunner

import calc_metrics
import convert_checkpoint
import train
from tests.families.runs import keep_small
from tests.training.gan import make_step
from torch_utils.training_stats import Collector
from training import averages, checkpoint
from training.checkpoint import CheckpointError, load_averages, load_checkpoint, load_generator, save_checkpoint
from training.data.synthetic.synthesize import synthesize_heads
from training.safety.requests import EXIT_STOPPED
from training.step import GanStep

EMA = "--ema=0.02,0.005"
NAMES = ("G_ema_0.005kimg", "G_ema_0.02kimg")


def test_a_weight_of_the_past_fades_by_half_over_a_half_life():
    """Constant 1 up to 100,000 images and 0 from then on; long after the ramp."""
    kept, value, nimg = averages.decay(2.0, lambda nimg: 8), 1.0, 100_000
    while nimg < 102_000:
        value *= kept(nimg)
        nimg += 8
    assert abs(value - 0.5) < 1e-9


def test_the_start_fades_whatever_the_length():
    """The half-life is at most a quarter of the images seen: (1/8)^(4 ln 2) is left of the weights at 1/8 of a run."""
    kept, value, nimg = averages.decay(1e9, lambda nimg: 8), 1.0, 5_000
    assert kept(0) == 0
    while nimg < 40_000:
        value *= kept(nimg)
        nimg += 8
    assert abs(value / (1 / 8) ** (4 * 0.6931) - 1) < 0.02


def test_names_and_lengths():
    assert averages.parse_lengths("2, 10,0.5") == (2.0, 10.0, 0.5)
    names = [averages.average_name(kimg) for kimg in (10.0, 0.5)]
    assert names == ["G_ema_10kimg", "G_ema_0.5kimg"]
    assert averages.kept_lengths(["G", "G_ema", "G_slow", *names]) == [0.5, 10.0]
    with pytest.raises(ValueError, match="no list of half-lives"):
        averages.parse_lengths("2;3")
    for wrong, message in (((0.0,), "greater than 0"), ((float("nan"),), "finite"), ((2.0, 2.0), "twice, 2kimg")):
        with pytest.raises(ValueError, match=message):
            averages.check_lengths("--ema", wrong)


def test_a_step_moves_each_average_by_its_own_length():
    step, micro = make_step(8, torch.float32)
    config = dataclasses.replace(step.config, ema_kimg=(0.05, 4.0))
    networks = {name: copy.deepcopy(step.G) for name in ("G_ema", "G_ema_0.05kimg", "G_ema_4kimg")}
    step = GanStep(config, step.G, step.objective, networks, Collector())
    before = {name: next(network.parameters()).clone() for name, network in networks.items()}
    step.run(0, 1_000_000, micro)
    now = next(step.G.parameters())
    for name, kimg in (("G_ema_0.05kimg", 0.05), ("G_ema_4kimg", 4.0)):
        share = 1 - 0.5 ** (8 / (1000 * kimg))
        torch.testing.assert_close(next(networks[name].parameters()), before[name].lerp(now, share))


# ---------------------------------------------------------------- runs

COMMON = ["--kimg=0.064", "--tick=0.032", "--batch=8", "--batch-gpu=8", "--network-snap=1", "--img-snap=9",
          "--device=cpu", "--precision=fp32", "--no-validate", "--metrics=none", "--workers=0",
          "--gaussian-num-pts=64", "--cmax=16", "--map-depth=2"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        keep_small(patch)
        yield


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    synthesize_heads(root / "set", 16, 32, seed=0)
    return root / "set" / "32"


def run(heads, outdir, *arguments, code=0):
    result = CliRunner().invoke(train.main, [f"--data={heads}", f"--outdir={outdir}", *COMMON, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def last(run_dir):
    return sorted(run_dir.glob("network-snapshot-000000_*.pkl"))[-1]


@pytest.fixture(scope="module")
def whole(heads, tmp_path_factory):
    outdir = tmp_path_factory.mktemp("whole")
    run(heads, outdir, EMA)
    return last(outdir / "00000-micro")


def test_a_stopped_run_goes_on_with_every_average_bit_equal(heads, whole, tmp_path, monkeypatch):
    original = GanStep.run

    def spy(self, number, *rest):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", spy)
        run(heads, tmp_path, EMA, code=EXIT_STOPPED)
    run(heads, tmp_path, EMA, "--resume=latest")
    one, other = load_checkpoint(last(tmp_path / "00000-micro")), load_checkpoint(whole)
    assert one["progress"]["nimg"] == other["progress"]["nimg"] == 64
    for name in ("G", "D", "G_ema", *NAMES, "opt"):
        assert checkpoint.checksum({name: one[name]}) == checkpoint.checksum({name: other[name]}), name
    digests = {checkpoint.checksum({"G": other[name]}) for name in ("G", "G_ema", *NAMES)}
    assert len(digests) == 4


def test_an_average_changes_nothing_else(heads, whole, tmp_path):
    run(heads, tmp_path)
    plain, more = load_checkpoint(last(tmp_path / "00000-micro")), load_checkpoint(whole)
    assert set(more) - set(plain) == set(NAMES)
    for name in ("G", "D", "G_ema", "opt"):
        assert checkpoint.checksum({name: plain[name]}) == checkpoint.checksum({name: more[name]}), name


def test_averages_are_loaded_by_their_length(whole):
    state = load_checkpoint(whole)
    for kimg, G in zip((0.02, 0.005), load_averages(whole, [0.02, 0.005]), strict=True):
        wanted = state[averages.average_name(kimg)]
        assert all(torch.equal(value, wanted[name]) for name, value in G.state_dict().items())
        assert not G.training and G.info == load_generator(whole).info
    with pytest.raises(CheckpointError, match=r"no average of 3 kimg besides G_ema; those it has: 0\.005, 0\.02"):
        next(load_averages(whole, [0.02, 3.0]))


def test_metrics_measure_the_averages_asked_for(heads, whole, tmp_path):
    options = [f"--network={whole}", f"--data={heads}", f"--outdir={tmp_path}", "--metrics=swd12", "--device=cpu"]
    result = CliRunner().invoke(calc_metrics.main, [*options, "--ema=0.02,0.005"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["ema_kimg"] for line in lines] == [0.02, 0.005]
    assert [json.loads(line) for line in (tmp_path / "averages-swd12.jsonl").read_text().splitlines()] == lines
    assert not (tmp_path / "metric-swd12.jsonl").exists()
    state = load_checkpoint(whole)  # each is what the same weights give as G_ema
    for line, name in zip(lines, reversed(NAMES), strict=True):
        path = tmp_path / f"{name}.pkl"
        save_checkpoint(path, {k: v for k, v in (state | {"G_ema": state[name]}).items() if k != "checksum"})
        alone = CliRunner().invoke(calc_metrics.main, [f"--network={path}", *options[1:]])
        assert json.loads(alone.stdout)["results"] == line["results"]
    refused = CliRunner().invoke(calc_metrics.main, [*options, "--ema=7"])
    assert refused.exit_code == 1 and "it has no average of 7 kimg" in refused.output


def test_a_chosen_average_becomes_the_one_that_is_shown(whole, tmp_path):
    target = tmp_path / "chosen.pkl"
    result = CliRunner().invoke(convert_checkpoint.main, [str(whole), str(target), "--ema=0.02", "--ema-only"])
    assert result.exit_code == 0, result.output
    wanted = next(load_averages(whole, [0.02])).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in load_generator(target).state_dict().items())
    assert not set(NAMES) & set(load_checkpoint(target))
    again = CliRunner().invoke(convert_checkpoint.main, [str(whole), str(tmp_path / "none.pkl"), "--ema=3"])
    assert again.exit_code == 1 and "no average of 3 kimg" in again.output and not (tmp_path / "none.pkl").exists()
