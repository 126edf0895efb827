"""Shows where the time and the memory of a training step go, for any preset, without a data set.

    python -m benchmarks.training_step --preset=tiny
    python -m benchmarks.training_step --preset=cgs256 --batch=4 --batch-gpu=4 --steps=2
    python -m benchmarks.training_step --preset=tiny --against=../other-checkout

Runs real steps on random images under orbiting cameras. A phase that is not due in every step, such as R1, is timed
apart and charged at its share of a step. On one machine compare ratios taken in one run; the 2048^3 float32 product is
the yardstick. With --against, two processes take turns at ordinary steps: one over this checkout, one over the other.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import torch
from torch import Tensor

from benchmarks import machine, turns
from benchmarks.machine import now
from gaussian import Geometry, resolve_backend
from torch_utils import distributed, memory, precision
from torch_utils.training_stats import Collector
from training import checkpoint, presets
from training.config import TrainingConfig
from training.dataset import Batch
from training.families import family
from training.families.base import Phase
from training.samples import MicroBatch, SampleStream
from training.step import GanStep

P = ParamSpec("P")
R = TypeVar("R")
ITEMS = 64  # of the data set that there is none of
ORDINARY_STEP = 1  # number of a step in which only the phases of every step are due
FFHQ = Geometry((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 2.7, ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0)))


class Clock:
    """Adds up wall time by name; waits for the device before it reads the time."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """Returns `function` with its time counted under `name`."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            start = now(self.device)
            result = function(*args, **kwargs)
            self.seconds[name] += now(self.device) - start
            return result

        return call

    def watch(self, owner: object, method: str, name: str) -> None:
        """Counts the time of a method of one object under `name`."""
        setattr(owner, method, self.timed(name, getattr(owner, method)))


class TimedStep(GanStep):
    """Counts the time of every phase under its name."""

    clock: Clock | None = None  # nothing is counted without one

    def accumulate(self, phase: Phase, nimg: int, micro_batches: Sequence[MicroBatch]) -> None:
        """Does what GanStep does."""
        run = super().accumulate
        if self.clock is not None:
            run = self.clock.timed(f"phase {phase.name}", run)
        run(phase, nimg, micro_batches)


def yardstick(device: torch.device) -> float:
    """Returns the seconds of a 2048 x 2048 x 2048 float32 product, the best of 8."""
    a = torch.randn(2048, 2048, device=device)
    best = float("inf")
    for _ in range(8):
        start = now(device)
        _ = a @ a
        best = min(best, now(device) - start)
    return best


def make_step(config: TrainingConfig, labels: Tensor, device: torch.device) -> TimedStep:
    """Builds networks and objective as the training loop does (training/training_loop.py)."""
    of = family(config.family)
    G, D = of.generator(config.generator).to(device), of.discriminator(config.discriminator).to(device)
    G.rasterizer, G.info = config.rasterizer, checkpoint.run_info(config, FFHQ, labels)
    G.low_dtype = D.low_dtype = precision.set_up(config.precision, device)
    objective = of.objective(config, G, D)
    averages = {name: copy.deepcopy(G).eval() for name in objective.averages()}
    for network in (G, D, *averages.values()):
        network.requires_grad_(False)
    step = TimedStep(config, G, objective, averages, Collector())
    step.loss_scale = precision.loss_scale(D.low_dtype)
    return step


def random_batch(config: TrainingConfig, labels: Tensor) -> Batch:
    """Returns random images without a background, under the cameras of `labels`."""
    shape = (config.batch, 3, config.resolution, config.resolution)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    return Batch(images, torch.full_like(images[:, :1], 255), labels[torch.arange(config.batch) % len(labels)])


def take_turns(config: TrainingConfig, device: torch.device) -> None:
    """Serves as a worker of `turns`: an ordinary step each time, after the initial blur."""
    labels = FFHQ.orbit(torch.linspace(-0.8, 0.8, ITEMS)).labels
    gan, batch = make_step(config, labels, device), random_batch(config, labels)
    stream = SampleStream(config, labels, gan.G.z_dim, device)
    first = int(500 * config.total_kimg) // config.batch * config.batch
    gan.run(0, first, stream.micro_batches(first, batch))
    steps = itertools.count(1)

    def turn() -> None:
        nimg = first + next(steps) * config.batch
        gan.run(ORDINARY_STEP, nimg, stream.micro_batches(nimg, batch))

    turns.serve(turn)


def measure(config: TrainingConfig, device: torch.device, steps: int) -> dict[str, Any]:
    """Returns the mean seconds of a step and of its parts, and the peak memory."""
    labels = FFHQ.orbit(torch.linspace(-0.8, 0.8, ITEMS)).labels
    gan, batch = make_step(config, labels, device), random_batch(config, labels)
    stream = SampleStream(config, labels, gan.G.z_dim, device)
    gan.run(0, 0, stream.micro_batches(0, batch))  # warm-up: every phase once
    gan.clock = clock = Clock(device)
    clock.watch(gan.G, "synthesis", "G.synthesis forward")
    clock.watch(gan.G, "render", "G.render forward")
    clock.watch(gan, "reduce", "clip and Adam")
    for optimizer in gan.optimizers.values():
        clock.watch(optimizer, "step", "clip and Adam")
    clock.watch(gan, "update_averages", "moving average")
    micro_batches = clock.timed("fetch, flip, composite", stream.micro_batches)
    start = now(device)
    for nimg in range(config.batch, (steps + 1) * config.batch, config.batch):
        gan.run(ORDINARY_STEP, nimg, micro_batches(nimg, batch))
    seconds = (now(device) - start) / steps
    parts = {name: value / steps for name, value in clock.seconds.items()}
    for phase in gan.phases:
        if phase.every > 1:
            start = now(device)
            gan.accumulate(phase, 0, stream.micro_batches(0, batch))
            parts[f"phase {phase.name}, a step's share"] = share = (now(device) - start) / phase.every
            seconds += share
    peaks = memory.peaks(device)
    return {
        "seconds_per_step": seconds,
        "parts": parts,
        "cpu_peak_gib": peaks["cpu_peak_gib"],
        "gpu_peak_gib": peaks.get("gpu_peak_gib"),
    }


@click.command()
@click.option("--preset", default="tiny", show_default=True)
@click.option("--batch", type=int, help="default: the preset's")
@click.option("--batch-gpu", type=int, help="default: the preset's")
@click.option("--judged-at-once", type=int, help="images that D judges at once while G learns; default: the preset's")
@click.option("--steps", default=15, show_default=True, type=click.IntRange(min=1), help="timed steps")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--json", "json_path", type=click.Path(), help="also write the figures there")
@click.option("--against", type=click.Path(), help="compare with this checkout instead, in as many turns as --steps")
def main(
    preset: str,
    batch: int | None,
    batch_gpu: int | None,
    judged_at_once: int | None,
    steps: int,
    device: str,
    json_path: str | None,
    against: str | None,
) -> None:
    """Print time and memory of a training step."""
    if against and not turns.is_worker():
        try:
            result = turns.compare(__file__, sys.argv[1:], Path(against), steps)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        turns.report(result, f"{preset}, a step")
        _write(json_path, result)
        return
    try:
        chosen = distributed.initialise(device)
        config = presets.resolve(preset, data="")
        config = replace(config, batch=batch or config.batch, batch_gpu=batch_gpu or batch or config.batch_gpu)
        config = replace(config, stages=())  # the networks at their full size, with the batch that was asked for
        if judged_at_once is not None:
            config = replace(config, objective=config.objective.changed(judged_at_once=judged_at_once))
        config.check()
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    memory.keep_freed_memory()  # as the training loop does
    if turns.is_worker():
        take_turns(config, chosen)
        return
    unit = yardstick(chosen)
    figures = measure(config, chosen, steps)
    figures |= {"preset": preset, "batch": config.batch, "machine": machine.in_one_line()}
    figures |= {"threads": torch.get_num_threads(), "yardstick_ms": unit * 1e3}
    figures |= {"rasterizer": resolve_backend("auto", chosen)}
    total = figures["seconds_per_step"]
    print(f"{preset}, batch {config.batch}, {chosen}, {figures['rasterizer']}; {figures['machine']}")
    print(f"2048^3 product {unit * 1e3:.1f} ms; step {total * 1e3:.1f} ms; {total / config.batch * 1000:.2f} s/kimg")
    for name, value in sorted(figures["parts"].items(), key=lambda item: -item[1]):
        print(f"    {value * 1e3:9.1f} ms  {value / total:6.1%}  {name}")
    peak = f"{figures['cpu_peak_gib']:.2f} GiB of process memory"
    print(f"peak {peak}" + (f", {figures['gpu_peak_gib']:.2f} GiB on the GPU" if figures["gpu_peak_gib"] else ""))
    _write(json_path, figures)


def _write(path: str | None, figures: dict[str, Any]) -> None:
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
