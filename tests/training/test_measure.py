"""Tests --measure: the peak of a real run, the largest micro-batch that fits, and what it prints."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import train
from torch_utils import memory
from training import measure, presets
from training.config import TrainingConfig
from training.data.synthetic.synthesize import synthesize_heads
from training.families.base import Phase
from training.measure import LazyPhases, Measurement, MetricTimes, OutOfMemory, measure_run, report
from training.runs import launch
from training.samples import MicroBatch, Stage

WORKER = "metrics.measuring"


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_heads(tmp_path_factory.mktemp("heads") / "set", 32, 32, seed=0, workers=1).images


def test_the_peak_is_that_of_a_real_tick(heads: Path, tmp_path: Path) -> None:
    """Compares it with the status line of a run of two ticks, with pictures, a checkpoint and a metric."""
    common = [f"--data={heads}", "--device=cpu", "--metrics=swd32"]
    result = CliRunner().invoke(train.main, [*common, "--dry-run", "--measure"])
    assert result.exit_code == 0, result.output
    assert re.search(r"Measured +3 steps, 2 of them with R1, of micro: 16 samples a step", result.output)
    measured = float(re.search(r"Memory +([\d.]+) GiB at the peak", result.output)[1])
    assert re.search(r"Speed +[\d.]+ sec/kimg: \S+ s a step, and \S+ s for R1 in every 16th\n", result.output)
    assert "days of training to --kimg=20" in result.output
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


def test_too_little_memory_is_found_without_a_kill(heads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the measuring process take 64 MiB more than it starts with; nothing fits into that."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 64 << 20)
    config = dataclasses.replace(presets.resolve("micro", data=str(heads)), batch=4, batch_gpu=4, metrics=())
    with pytest.raises(OutOfMemory) as caught:
        measure_run(config, "cpu", 1, 1, WORKER)
    message = str(caught.value)
    assert re.match(r"out of memory with --batch-gpu=4 \(64.00 MiB .* free\), and no smaller", message)
    assert message.endswith("take a smaller --preset, fewer views of a scene or a smaller --mbstd-group")


@pytest.mark.parametrize("left", [None, "", '{"out_of_mem'])
def test_a_process_that_dies_while_it_reports_has_run_out_of_memory(
    left: str | None, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_workers(ranks: int, module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        if left is not None:
            Path(arguments[1]).write_text(left)
        return subprocess.CompletedProcess(arguments, -6, "", "terminate called after throwing 'std::bad_alloc'")

    monkeypatch.setattr(measure.distributed, "run_workers", run_workers)
    config = dataclasses.replace(presets.resolve("micro", data=str(heads)), batch=4, batch_gpu=4, metrics=())
    with pytest.raises(OutOfMemory):
        measure_run(config, "cpu", 1, 1, WORKER)


def found(peak: float, lazy: list[LazyPhases] | None = None) -> Measurement:
    lazy = [LazyPhases("R1", 16, 8.0)] if lazy is None else lazy
    return Measurement(peak, peak, peak, step_sec=2.0, lazy=lazy, metrics=MetricTimes({"swd1k": 100.0}, []))


def test_a_measurement_survives_its_file() -> None:
    assert Measurement.from_dict(json.loads(json.dumps(dataclasses.asdict(found(1.25))))) == found(1.25)


def test_the_largest_that_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 16, 8 and 4 are legal: the groups of the minibatch standard deviation have 4 samples."""
    tried = []

    def attempt(config: TrainingConfig, device: str, ranks: int, workers: int, worker: str) -> Measurement | None:
        tried.append(config.batch_gpu)
        return found(1.25) if config.batch_gpu <= 8 else None

    monkeypatch.setattr(measure, "_attempt", attempt)
    config = presets.resolve("micro", data="")
    with pytest.raises(OutOfMemory, match=r"--batch-gpu=16 .*; --batch-gpu=8 fits, with a peak of 1.25 GiB"):
        measure_run(config, "cpu", 1, 1, WORKER)
    assert tried == [16, 8]
    assert list(launch.batch_sizes(config, 1, 16)) == [16, 8, 4]
    assert list(launch.batch_sizes(config, 4, 16)) == [4]


def test_the_report_reckons_with_r1_and_metrics() -> None:
    """Expects, of 2 s a step of 16 images and 8 s in every 16th, 2.5 s a step and 156.25 s a kimg."""
    config = dataclasses.replace(presets.resolve("micro", data=""), total_kimg=100.0)
    text = report(found(1.25), config, 1)
    assert "156.25 sec/kimg: 2 s a step, and 8 s for R1 in every 16th\n" in text
    assert "0.181 days of training to --kimg=100 (4h 20m 25s)" in text
    assert "1.25 GiB at the peak" in text
    assert "swd1k: 1m 40s for its generated images, 11 times" in text


def test_the_peak_of_a_stage_in_the_middle_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three stages, the second has the largest micro-batches: it is run too, with all phases."""
    first = Stage(from_nimg=0, resolution=16, batch=16, batch_gpu=16, g_lr=1e-3, d_lr=1e-3)
    second, third = (
        dataclasses.replace(first, from_nimg=32, batch_gpu=32, batch=32),
        dataclasses.replace(first, from_nimg=96, resolution=32, batch=8, batch_gpu=8),
    )
    never = dataclasses.replace(third, from_nimg=4000)
    config = presets.resolve("micro", data="")
    config = dataclasses.replace(config, stages=(first, second, third, never), total_kimg=0.128)
    ran: list[tuple[int, int]] = []
    trainer = SimpleNamespace(
        config=config, device=torch.device("cpu"), dataset=None, G_ema=None, state=SimpleNamespace(grid=None),
        options=SimpleNamespace(run_dir=tmp_path), save=lambda path: None,
        stream=SimpleNamespace(items=lambda nimg: np.arange(2), micro_batches=lambda nimg, batch: []),
        gan=SimpleNamespace(run=lambda step, nimg, micro: ran.append((step, nimg))),
    )  # fmt: skip
    monkeypatch.setattr(measure, "iterate", lambda dataset, batches, workers: iter(batches))
    for name in ("save_reals", "save_fakes"):
        monkeypatch.setattr(measure.monitor, name, lambda *arguments: None)
    monkeypatch.setattr(measure.memory, "peaks", lambda device: {"cpu_peak_gib": 9.0 if ran[-1][1] == 32 else 1.0})
    seconds, peak = measure._run_steps(trainer, 0, [0, 1, 16])  # type: ignore[arg-type]
    assert ran == [(0, 0), (0, 32), (1, 120), (16, 128)]
    assert peak == 9.0 and set(seconds) == {0, 1, 16}
    text = report(found(1.25), config, 1)
    assert re.search(r"Measured +4 steps, 3 of them with R1", text)


def test_the_report_of_other_phases() -> None:
    """A family may have no lazy phase, or several; the batch is that of the last stage."""
    config = presets.resolve("micro", data="")
    text = report(found(1.25, []), config, 1)
    assert "Measured    3" not in text and "Measured    2 steps, of micro" in text
    assert "125.00 sec/kimg: 2 s a step\n" in text
    text = report(found(1.25, [LazyPhases("paths", 4, 4.0), LazyPhases("R1", 16, 8.0)]), config, 1)
    assert "Measured    4 steps, 3 of them with paths, 2 of them with R1, of micro" in text
    assert "218.75 sec/kimg: 2 s a step, and 4 s for paths in every 4th, and 8 s for R1 in every 16th\n" in text
    small = Stage(from_nimg=0, resolution=16, batch=64, batch_gpu=64, g_lr=1e-3, d_lr=1e-3)
    large = dataclasses.replace(small, from_nimg=10_000, resolution=32, batch=8, batch_gpu=8)
    text = report(found(1.25, []), dataclasses.replace(config, stages=(small, large)), 1)
    assert "250.00 sec/kimg" in text


def phase(name: str, every: int) -> Phase:
    module = torch.nn.Linear(1, 1)

    def losses(micro: MicroBatch, at: object) -> Iterator[None]:
        yield from ()

    return Phase(name, module, torch.optim.SGD(module.parameters()), every, 1.0, losses)


def test_each_interval_is_timed_for_itself() -> None:
    """The step of the longest interval has the phases of those that divide it, too."""
    names = measure._lazy_names([phase("G", 1), phase("R1", 16), phase("paths", 4), phase("D", 1), phase("TV", 4)])
    assert names == {4: "paths and TV", 16: "R1"}
    seconds = {0: 50.0, 1: 2.0, 4: 3.0, 16: 11.0}
    assert list(seconds) == measure._timed_steps(list(names))
    assert measure._lazy_times(names, seconds) == [LazyPhases("paths and TV", 4, 1.0), LazyPhases("R1", 16, 8.0)]
