"""--measure: the peak of a real run, the largest micro-batch that fits, and what it prints."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

import train
from torch_utils import memory
from training import measure, presets
from training.data.synthetic.synthesize import synthesize_heads
from training.measure import Measurement, OutOfMemory, measure_run, report
from training.runs import launch


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("heads") / "set", 32, 32, seed=0, workers=1).images


def test_the_peak_is_that_of_a_real_tick(heads, tmp_path):
    """As the status line of a run of two ticks has it, with pictures, a checkpoint and a metric."""
    common = [f"--data={heads}", "--device=cpu", "--metrics=swd32"]
    result = CliRunner().invoke(train.main, [*common, "--dry-run", "--measure"])
    assert result.exit_code == 0, result.output
    measured = float(re.search(r"Memory +([\d.]+) GiB at the peak", result.output)[1])
    assert re.search(r"Speed +[\d.]+ sec/kimg", result.output) and "days of training to --kimg=20" in result.output
    assert re.search(r"Metrics +swd32: .*, 3 times", result.output)

    options = [*common, f"--outdir={tmp_path}", "--kimg=0.032", "--tick=0.016", "--network-snap=1", "--img-snap=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, train.__file__, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(next(tmp_path.glob("*/stats.jsonl")).read_text().splitlines()[-1])
    real = last["timing"]["cpu_peak_gib"]
    assert abs(measured - real) <= 0.1 * real, (measured, real)


def test_too_little_memory_is_found_without_a_kill(heads, monkeypatch):
    """The measuring process may take 64 MiB more than it starts with; nothing fits into that."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 64 << 20)
    config = dataclasses.replace(presets.resolve("micro", data=str(heads)), batch=4, batch_gpu=4, metrics=())
    with pytest.raises(OutOfMemory, match=r"out of memory with --batch-gpu=4 \(64.00 MiB .* free\), and no smaller"):
        measure_run(config, "cpu", 1, workers=1)


def found(peak: float) -> Measurement:
    return Measurement(peak, peak, peak, plain_sec=2.0, r1_sec=8.0, metric_sec={"swd1k": 3.2}, notes=[])


def test_the_largest_that_fits_is_named(monkeypatch):
    """Legal below 16 are 8 and 4: the groups of the minibatch standard deviation have 4 samples."""
    tried = []

    def attempt(config, device, ranks, workers):
        tried.append(config.batch_gpu)
        return found(1.25) if config.batch_gpu <= 8 else None

    monkeypatch.setattr(measure, "_attempt", attempt)
    config = presets.resolve("micro", data="")
    with pytest.raises(OutOfMemory, match=r"--batch-gpu=16 .*; --batch-gpu=8 fits, with a peak of 1.25 GiB"):
        measure_run(config, "cpu", 1, workers=1)
    assert tried == [16, 8]
    assert list(launch.batch_sizes(config, 1, 16)) == [16, 8, 4]
    assert list(launch.batch_sizes(config, 4, 16)) == [4]


def test_the_report_reckons_with_r1_and_metrics():
    """2 s a step of 16 images and 8 s in every 16th: 2.5 s a step, 156.25 s a kimg."""
    config = dataclasses.replace(presets.resolve("micro", data=""), total_kimg=100.0)
    text = report(found(1.25), config, 1)
    assert "156.25 sec/kimg" in text and "0.181 days of training to --kimg=100 (4h 20m 25s)" in text
    assert "1.25 GiB at the peak" in text
    assert "swd1k: 1m 40s for its generated images, 11 times" in text
