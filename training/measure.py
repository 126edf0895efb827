"""What a run will cost, found by running it: three steps, the pictures and a batch of each metric, in processes apart.

Processes of their own give the peak memory that a run would have, and may die of it: then a smaller --batch-gpu is
tried. `python -m training.measure JOB RESULT` is one such process.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dnnlib
import metrics
from metrics.samples import Sampling, fake_images
from torch_utils import distributed, memory
from training import checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset, iterate
from training.runs import monitor
from training.runs.launch import batch_sizes
from training.runs.startup import batch_line
from training.training_loop import Options, Trainer

METRIC_BATCH = 32  # images, as compute_metric takes them
MEMORY_SHARE = 0.95  # of the free memory that the processes may take together
_NO_MEMORY = re.compile(r"alloc|memory|could not create|start new thread|without exception set", re.IGNORECASE)
# The line that ends a traceback, of our processes and not of torchrun.
_ERROR = re.compile(r"^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt): .*)$", re.MULTILINE)


class OutOfMemory(RuntimeError):
    """The run does not fit; the message says what would."""


class MeasureFailed(RuntimeError):
    """A measuring process ended with an error; the message has its last line."""


@dataclass(frozen=True)
class Measurement:
    """Of rank 0; the other ranks do the same work."""

    training_peak_gib: float  # of the steps; of the GPU where there is one
    peak_gib: float  # of everything
    cpu_peak_gib: float
    plain_sec: float  # one step
    r1_sec: float  # what R1 adds to a step that has it
    metric_sec: dict[str, float]  # a batch of each metric that can run
    notes: list[str]  # on metrics that cannot


def measure_run(config: TrainingConfig, device: str, ranks: int, workers: int) -> Measurement:
    """Measures a run. Raises OutOfMemory naming the largest --batch-gpu that fits, or MeasureFailed."""
    found = _attempt(config, device, ranks, workers)
    if found is not None:
        return found
    asked = f"out of memory with --batch-gpu={config.batch_gpu}"
    free = f"{dnnlib.format_bytes(memory.available_bytes())} of CPU memory free"
    for batch_gpu in batch_sizes(config, ranks, config.batch_gpu - 1):
        found = _attempt(dataclasses.replace(config, batch_gpu=batch_gpu), device, ranks, workers)
        if found is not None:
            raise OutOfMemory(
                f"{asked} ({free}); --batch-gpu={batch_gpu} fits, with a peak of {found.peak_gib:.2f} GiB"
            )
    raise OutOfMemory(
        f"{asked} ({free}), and no smaller one that --batch and --mbstd-group allow fits; take a smaller --preset, "
        "--num-multiview or --mbstd-group"
    )


def report(found: Measurement, config: TrainingConfig, ranks: int) -> str:
    """For the console."""
    per_kimg = (found.plain_sec + found.r1_sec / config.r1_interval) / config.batch * 1000
    training = per_kimg * config.total_kimg
    ticks = config.total_kimg / config.tick_kimg
    lines = [
        f"Measured    3 steps, 2 of them with R1, of {config.preset}: {batch_line(config, ranks)}",
        f"Memory      {found.peak_gib:.2f} GiB at the peak ({found.training_peak_gib:.2f} GiB while training)"
        + (f"; {found.cpu_peak_gib:.2f} GiB on the CPU side" if found.cpu_peak_gib != found.peak_gib else "")
        + (" in each process" if ranks > 1 else ""),
        f"Speed       {per_kimg:.2f} sec/kimg: {found.plain_sec:.3g} s a step, and {found.r1_sec:.3g} s for R1 in "
        f"every {config.r1_interval}th",
        f"Length      {training / 86400:.3g} days of training to --kimg={config.total_kimg:g} "
        f"({dnnlib.format_time(training)})",
    ]
    for name, seconds in found.metric_sec.items():
        once = seconds * metrics.parse_metric(name).count / METRIC_BATCH / ranks
        times = int(ticks // config.snapshot_ticks) + 1
        lines.append(
            f"Metrics     {name}: {dnnlib.format_time(once)} for its generated images, {times} times: "
            f"{times * once / 86400:.3g} days"
        )
    return "\n".join([*lines, *(f"Metrics     {note}" for note in found.notes)])


def _attempt(config: TrainingConfig, device: str, ranks: int, workers: int) -> Measurement | None:
    """None if the memory does not suffice."""
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder, "job.json"), Path(folder, "result.json")
        limit = int(memory.available_bytes() * MEMORY_SHARE / ranks)
        job.write_text(json.dumps({"config": config.to_dict(), "device": device, "workers": workers, "limit": limit}))
        done = distributed.run_workers(ranks, "training.measure", [str(job), str(result)])
        outcome = json.loads(result.read_text()) if result.exists() else {}
    if "error" in outcome:
        raise ValueError(outcome["error"])
    if done.returncode == 0:
        return Measurement(**outcome)
    # A process that was killed, or that ended where an allocation failed in native code, leaves no outcome.
    errors = _ERROR.findall(done.stderr) or done.stderr.strip().splitlines()
    last = errors[-1] if errors and ranks == 1 else errors[0] if errors else f"exit status {done.returncode}"
    killed = done.returncode < 0 or "Signal 9" in done.stderr or "Signal 6" in done.stderr
    if "out_of_memory" in outcome or killed or _NO_MEMORY.search(last):
        return None
    raise MeasureFailed(f"--measure: the measuring process failed: {last}")


# ---------------------------------------------------------------- in the measuring process


def _work(job: dict[str, Any], result: Path) -> None:
    device = distributed.initialise(job["device"])
    config = TrainingConfig.from_dict(job["config"])
    memory.keep_freed_memory()
    try:
        if device.type == "cpu":
            memory.limit_growth(job["limit"])
        outcome = dataclasses.asdict(_run(config, device, job["workers"], result.parent))
    except (MemoryError, RuntimeError, OSError, SystemError) as error:  # a failed allocation shows as any of these
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        outcome = {"out_of_memory": True}
        result.write_text(json.dumps(outcome))  # of any rank; the launcher ends the others
        raise SystemExit(1) from None
    except ValueError as error:
        outcome = {"error": str(error)}
    if distributed.rank() == 0:
        result.write_text(json.dumps(outcome))
    distributed.finalise()


def _run(config: TrainingConfig, device: torch.device, workers: int, folder: Path) -> Measurement:
    dataset = ImageDataset(config.data, config.index_list)
    trainer = Trainer(config, Options(run_dir=folder, device=device, workers=workers), dataset)
    # Step 0 warms up, under the initial blur; then one without R1 and one with it, as most of the run will be.
    later = int(config.blur_fade_kimg * 1000) // config.batch * config.batch + config.batch
    steps = ((0, 0), (1, later), (config.r1_interval, later + config.batch))
    loader = iterate(dataset, [trainer.stream.items(nimg) for _, nimg in steps], workers)
    seconds, found = [], []
    # In the order of a run: what its first tick has taken from the system and given back lies between the later blocks.
    if distributed.rank() == 0:
        monitor.save_reals(config, dataset, folder)
    for step, nimg in steps:
        batch = next(loader)
        start = _now(device)
        trainer.gan.run(step, nimg, trainer.stream.micro_batches(nimg, batch))
        seconds.append(_now(device) - start)
        found.append(memory.peaks(device))
        if step == 0:
            if distributed.rank() == 0:
                monitor.save_fakes(folder / "fakes.png", trainer.G_ema, trainer.grid, config)
            trainer.save(folder / checkpoint.STATE_NAME if distributed.rank() == 0 else None)
            found.append(memory.peaks(device))
    key = "gpu_peak_gib" if device.type == "cuda" else "cpu_peak_gib"
    training = max(peaks[key] for peaks in found)
    metric_sec, notes = _metric_batches(config, trainer, dataset)
    everything = memory.peaks(device)
    return Measurement(
        training_peak_gib=training,
        peak_gib=max(training, everything[key]),
        cpu_peak_gib=everything["cpu_peak_gib"],
        plain_sec=seconds[1],
        r1_sec=max(seconds[2] - seconds[1], 0.0),
        metric_sec=metric_sec,
        notes=notes,
    )


def _metric_batches(
    config: TrainingConfig, trainer: Trainer, dataset: ImageDataset
) -> tuple[dict[str, float], list[str]]:
    """Seconds for one batch of each metric: images, and the features that it reads. Each is then computed on few."""
    few = dataset.head(METRIC_BATCH)
    sampling = Sampling(
        trainer.G_ema, few, 0, trainer.device, METRIC_BATCH, config.shown_background, cache_dir=None, progress=None
    )
    sources = {"inception": config.detector, "vgg": config.detector_vgg}
    seconds, notes = {}, []
    for name in config.metrics:
        detector = None
        if kind := metrics.needs_detector(name):
            try:
                detector = metrics.load_on_all_ranks(sources[kind], kind, trainer.device)
            except metrics.MetricUnavailable as reason:
                notes.append(f"{name} left out: {reason}")
                continue
        start = _now(trainer.device)
        for _, images in fake_images(sampling, METRIC_BATCH):
            if detector is not None:
                detector(images)
        seconds[name] = _now(trainer.device) - start
        try:
            metrics.rehearse(name, sampling, detector, METRIC_BATCH)
        except metrics.MetricUnavailable as reason:
            notes.append(f"{name} left out: {reason}")
    return seconds, notes


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    _work(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
