"""Finds what a run will cost by running it: a few steps, the pictures and a batch of each metric, in processes apart.

Processes of their own have the peak memory that a run would have, and may die of it: then a smaller --batch-gpu is
tried. Which module they run is the caller's choice, as training knows no metric: it ends in `work`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dnnlib
from torch_utils import distributed, memory
from training import checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset, iterate
from training.families.base import Generator, Phase
from training.runs import monitor
from training.runs.launch import at_most, batch_sizes
from training.runs.startup import batch_line
from training.samples import Stage
from training.training_loop import Options, Trainer

MEMORY_SHARE = 0.95  # of the free memory that the processes may take together
_NO_MEMORY = re.compile(r"alloc|memory|could not create|start new thread|without exception set", re.IGNORECASE)
# The line that ends a traceback, of our processes and not of torchrun.
_ERROR = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt): .*)$", re.MULTILINE)


class OutOfMemory(RuntimeError):
    """Says that a run does not fit, and what would."""


class MeasureFailed(RuntimeError):
    """Reports the last line of a measuring process that ended with an error."""


@dataclass(frozen=True)
class LazyPhases:
    """Holds what the phases cost that run in every `every`-th step alone, such as R1."""

    name: str  # of the phase, or of all with this interval
    every: int  # steps
    sec: float  # that they add to a step in which they run


@dataclass(frozen=True)
class MetricTimes:
    """Holds what the metrics of a configuration cost, each for all its generated images in one process."""

    sec: dict[str, float]  # by name, of each metric that can run
    notes: list[str]  # on metrics that cannot


@dataclass(frozen=True)
class Measurement:
    """Holds what rank 0 has measured; the other ranks do the same work."""

    training_peak_gib: float  # of the steps; of the GPU where there is one
    peak_gib: float  # of everything
    cpu_peak_gib: float  # of everything, on the CPU side
    step_sec: float  # a step without lazy phases
    lazy: list[LazyPhases]  # by ascending interval
    metrics: MetricTimes

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measurement:
        """Inverts dataclasses.asdict."""
        lazy = [LazyPhases(**phases) for phases in values["lazy"]]
        return cls(**{**values, "lazy": lazy, "metrics": MetricTimes(**values["metrics"])})


# Runs a batch of each metric of a configuration on a generator, against a data set, on a device.
MeasureMetrics = Callable[[TrainingConfig, Generator, ImageDataset, torch.device], MetricTimes]


def measure_run(config: TrainingConfig, device: str, ranks: int, workers: int, worker: str) -> Measurement:
    """Measures a run. Raises OutOfMemory naming the largest --batch-gpu that fits, or MeasureFailed.

    worker: a module of ours that calls `work` when it is run as `python -m WORKER JOB RESULT`.
    """
    found = _attempt(config, device, ranks, workers, worker)
    if found is not None:
        return found
    asked = f"out of memory with --batch-gpu={config.batch_gpu}"
    free = f"{dnnlib.format_bytes(memory.available_bytes())} of CPU memory free"
    most = max([config.batch_gpu, *(stage.batch_gpu for stage in config.stages)])
    for batch_gpu in batch_sizes(config, ranks, most - 1):
        found = _attempt(at_most(config, batch_gpu), device, ranks, workers, worker)
        if found is not None:
            raise OutOfMemory(
                f"{asked} ({free}); --batch-gpu={batch_gpu} fits, with a peak of {found.peak_gib:.2f} GiB"
            )
    views = ", fewer views of a scene" if len(config.objective.views) > 1 else ""
    raise OutOfMemory(
        f"{asked} ({free}), and no smaller one that --batch and --mbstd-group allow fits; take a smaller --preset"
        f"{views} or a smaller --mbstd-group"
    )


def report(found: Measurement, config: TrainingConfig, ranks: int) -> str:
    """Says for the console what was found. A run of several stages is taken to cost what its last stage costs."""
    step_sec = found.step_sec + sum(phases.sec / phases.every for phases in found.lazy)
    per_kimg = step_sec / _last_stage(config).batch * 1000
    training = per_kimg * config.total_kimg
    ticks = config.total_kimg / config.tick_kimg
    steps = [step for step, _ in _places(config, _timed_steps([phases.every for phases in found.lazy]))]
    shares = [f", {sum(s % phases.every == 0 for s in steps)} of them with {phases.name}" for phases in found.lazy]
    extras = [f", and {phases.sec:.3g} s for {phases.name} in every {phases.every}th" for phases in found.lazy]
    batch = batch_line(config, _last_stage(config), ranks)
    lines = [
        f"Measured    {len(steps)} steps{''.join(shares)}, of {config.preset}: {batch}",
        f"Memory      {found.peak_gib:.2f} GiB at the peak ({found.training_peak_gib:.2f} GiB while training)"
        + (f"; {found.cpu_peak_gib:.2f} GiB on the CPU side" if found.cpu_peak_gib != found.peak_gib else "")
        + (" in each process" if ranks > 1 else ""),
        f"Speed       {per_kimg:.2f} sec/kimg: {found.step_sec:.3g} s a step{''.join(extras)}",
        f"Length      {training / 86400:.3g} days of training to --kimg={config.total_kimg:g} "
        f"({dnnlib.format_time(training)})",
    ]
    for name, seconds in found.metrics.sec.items():
        once = seconds / ranks
        times = int(ticks // config.snapshot_ticks) + 1
        lines.append(
            f"Metrics     {name}: {dnnlib.format_time(once)} for its generated images, {times} times: "
            f"{times * once / 86400:.3g} days"
        )
    return "\n".join([*lines, *(f"Metrics     {note}" for note in found.metrics.notes)])


def _attempt(config: TrainingConfig, device: str, ranks: int, workers: int, worker: str) -> Measurement | None:
    """Runs the measuring processes. Returns None if the memory does not suffice."""
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder, "job.json"), Path(folder, "result.json")
        limit = int(memory.available_bytes() * MEMORY_SHARE / ranks)
        job.write_text(json.dumps({"config": config.to_dict(), "device": device, "workers": workers, "limit": limit}))
        done = distributed.run_workers(ranks, worker, [str(job), str(result)])
        outcome = _read_outcome(result)
    if "error" in outcome:
        raise ValueError(outcome["error"])
    if done.returncode == 0:
        return Measurement.from_dict(outcome)
    # A process that was killed, or that ended where an allocation failed in native code, leaves no outcome.
    errors = _ERROR.findall(done.stderr) or done.stderr.strip().splitlines()
    last = errors[-1] if errors and ranks == 1 else errors[0] if errors else f"exit status {done.returncode}"
    killed = done.returncode < 0 or "Signal 9" in done.stderr or "Signal 6" in done.stderr
    if "out_of_memory" in outcome or killed or _NO_MEMORY.search(last):
        return None
    raise MeasureFailed(f"--measure: the measuring process failed: {last}")


def _read_outcome(result: Path) -> dict[str, Any]:
    """Reads what a measuring process wrote: nothing, or half of it, if it died where an allocation failed."""
    try:
        return json.loads(result.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


# ---------------------------------------------------------------- in the measuring process


def work(job_file: str, result_file: str, measure_metrics: MeasureMetrics) -> None:
    """Does the job of one measuring process and writes what it found; the process ends with it."""
    job, result = json.loads(Path(job_file).read_text()), Path(result_file)
    device = distributed.initialise(job["device"])
    config = TrainingConfig.from_dict(job["config"])
    memory.keep_freed_memory()
    try:
        if device.type == "cpu":
            memory.limit_growth(job["limit"])
        outcome = dataclasses.asdict(_run(config, device, job["workers"], result.parent, measure_metrics))
    except (MemoryError, RuntimeError, OSError, SystemError) as error:  # a failed allocation shows as any of these
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        memory.lift_limit()
        outcome = {"out_of_memory": True}
        result.write_text(json.dumps(outcome))  # of any rank; the launcher ends the others
        raise SystemExit(1) from None
    except ValueError as error:
        outcome = {"error": str(error)}
    if distributed.rank() == 0:
        result.write_text(json.dumps(outcome))
    distributed.finalise()


def seconds_now(device: torch.device) -> float:
    """Reads a clock once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _run(
    config: TrainingConfig, device: torch.device, workers: int, folder: Path, measure_metrics: MeasureMetrics
) -> Measurement:
    dataset = ImageDataset(config.data, config.index_list, config.objective.pose_law)
    trainer = Trainer(config, Options(run_dir=folder, device=device, workers=workers), dataset)
    lazy = _lazy_names(trainer.gan.phases)
    seconds, training_peak = _run_steps(trainer, workers, _timed_steps(list(lazy)))
    metrics = measure_metrics(config, trainer.G_ema, dataset, device)
    everything = memory.peaks(device)
    return Measurement(
        training_peak_gib=training_peak,
        peak_gib=max(training_peak, everything[_peak_name(device)]),
        cpu_peak_gib=everything["cpu_peak_gib"],
        step_sec=seconds[1],
        lazy=_lazy_times(lazy, seconds),
        metrics=metrics,
    )


def _run_steps(trainer: Trainer, workers: int, steps: list[int]) -> tuple[dict[int, float], float]:
    """Runs `steps` by number, and what a run's first tick has besides. Returns their seconds and the peak in GiB.

    Step 0, with all phases, warms up at the start of the run and of each later stage but the last, whose peak may be
    the highest; the others lie at the run's end, where all that fades or grows has done so.
    """
    config, device, folder = trainer.config, trainer.device, trainer.options.run_dir
    places = _places(config, steps)
    loader = iterate(trainer.dataset, [trainer.stream.items(nimg).tolist() for _, nimg in places], workers)
    seconds: dict[int, float] = {}
    found = []
    # In the order of a run: what its first tick has taken from the system and given back lies between the later blocks.
    if distributed.rank() == 0:
        monitor.save_reals(config, trainer.dataset, folder)
    for (step, nimg), batch in zip(places, loader, strict=True):
        start = seconds_now(device)
        trainer.gan.run(step, nimg, trainer.stream.micro_batches(nimg, batch))
        seconds[step] = seconds_now(device) - start
        found.append(memory.peaks(device))
        if nimg == 0:
            if distributed.rank() == 0:
                monitor.save_fakes(folder / "fakes.png", trainer.G_ema, trainer.state.grid, config)
            trainer.save(folder / checkpoint.STATE_NAME if distributed.rank() == 0 else None)
            found.append(memory.peaks(device))
    return seconds, max(peaks[_peak_name(device)] for peaks in found)


def _places(config: TrainingConfig, steps: list[int]) -> list[tuple[int, int]]:
    """Returns the number of each step to run, and the images seen before it; `steps` begins with 0."""
    size, last = _last_stage(config).batch, _last_image(config)
    end = last // size * size
    middle = [stage.from_nimg for stage in config.stages if 0 < stage.from_nimg <= last][:-1]
    return [(0, 0), *((0, nimg) for nimg in middle), *((step, end + k * size) for k, step in enumerate(steps[1:]))]


def _peak_name(device: torch.device) -> str:
    return "gpu_peak_gib" if device.type == "cuda" else "cpu_peak_gib"


def _last_stage(config: TrainingConfig) -> Stage:
    return config.stage_at(_last_image(config))


def _last_image(config: TrainingConfig) -> int:
    """Returns the number of the last image that a run sees, counted from 0."""
    return max(int(config.total_kimg * 1000) - 1, 0)


def _lazy_names(phases: list[Phase]) -> dict[int, str]:
    """Returns the names of the phases that do not run in every step, by ascending interval."""
    intervals = sorted({phase.every for phase in phases} - {1})
    return {every: " and ".join(p.name for p in phases if p.every == every) for every in intervals}


def _timed_steps(intervals: list[int]) -> list[int]:
    """Returns the numbers of the steps to time: one to warm up, one without lazy phases, and one for each interval."""
    return [0, 1, *intervals]


def _lazy_times(names: dict[int, str], seconds: dict[int, float]) -> list[LazyPhases]:
    """Finds what each interval's phases add to the plain step; shorter intervals that divide it run in its step too."""
    found: list[LazyPhases] = []
    for every, name in names.items():
        others = sum(phases.sec for phases in found if every % phases.every == 0)
        found.append(LazyPhases(name, every, max(seconds[every] - seconds[1] - others, 0.0)))
    return found
