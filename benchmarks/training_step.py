"""Where the time and the memory of a training step go, for any preset, without a data set.

    python benchmarks/training_step.py --preset=tiny
    python benchmarks/training_step.py --preset=cgs256 --batch=4 --batch-gpu=4 --steps=2

Runs real steps on random images under orbiting cameras. R1 is timed apart and charged at 1/16 of a step. On one machine
compare ratios taken in one run; the 2048^3 float32 product is the yardstick.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import click
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.learning import machine
from gaussian import Geometry, resolve_backend
from torch_utils import distributed, memory, precision
from torch_utils.training_stats import Collector
from training import presets
from training.dataset import Batch
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator
from training.step import GanStep, SampleStream

FFHQ = Geometry((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 2.7, ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0)))


class Clock:
    """Wall time by name; waits for the device before it reads the time."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, defaultdict(float)

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = self.now()
            result = function(*args, **kwargs)
            self.seconds[name] += self.now() - start
            return result

        return call

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def yardstick(device: torch.device) -> float:
    """Seconds of a 2048 x 2048 x 2048 float32 product, the best of 8."""
    a = torch.randn(2048, 2048, device=device)
    clock, best = Clock(device), float("inf")
    for _ in range(8):
        start = clock.now()
        _ = a @ a
        best = min(best, clock.now() - start)
    return best


def measure(config, device: torch.device, steps: int) -> dict:
    """Mean seconds of the parts of a step, and the peak memory."""
    G, D, G_ema = Generator(config.generator), Discriminator(config.discriminator), Generator(config.generator)
    for network in (G, D, G_ema):
        network.to(device).requires_grad_(False)
    low = precision.resolve(config.precision, device)
    D.low_dtype = low
    G.low_dtype = low if low == torch.bfloat16 else None
    labels = FFHQ.orbit(torch.linspace(-0.8, 0.8, 64)).labels
    size = config.generator.resolution
    batch = Batch(
        torch.randint(0, 256, (config.batch, 3, size, size), dtype=torch.uint8),
        torch.full((config.batch, 1, size, size), 255, dtype=torch.uint8),
        labels[torch.arange(config.batch) % 64],
    )
    gan = GanStep(config, G, D, G_ema, Collector())
    stream = SampleStream(config, labels, G.z_dim, device)
    gan.run(0, 0, stream.micro_batches(0, batch))  # warm-up: every phase once
    clock = Clock(device)
    for name in ("synthesis", "render"):
        setattr(G, name, clock.timed(f"G.{name} forward", getattr(G, name)))
    for phase in gan.phases:
        phase.accumulate = clock.timed(f"phase {phase.name}", phase.accumulate)
    gan.apply = clock.timed("clip and Adam", gan.apply)
    gan.update_ema = clock.timed("moving average", gan.update_ema)
    micro = clock.timed("fetch, flip, composite", stream.micro_batches)
    start = clock.now()
    for step in range(1, steps + 1):
        gan.run(step, step * config.batch, micro(step * config.batch, batch))
    seconds = (clock.now() - start) / steps
    parts = {name: value / steps for name, value in clock.seconds.items()}
    before = clock.now()
    for part in stream.micro_batches(0, batch):
        D.requires_grad_(True)
        gan.accumulate_R1(part, 0.0)
    parts["phase R1, a step's share"] = (clock.now() - before) / config.r1_interval
    gpu = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "seconds_per_step": seconds + parts["phase R1, a step's share"],
        "parts": parts,
        "cpu_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "gpu_peak_gib": gpu,
    }


@click.command()
@click.option("--preset", default="tiny", show_default=True)
@click.option("--batch", type=int, help="default: the preset's")
@click.option("--batch-gpu", type=int, help="default: the preset's")
@click.option("--steps", default=15, show_default=True, help="timed steps, fewer than the R1 interval of 16")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--json", "json_path", type=click.Path(), help="also write the figures there")
def main(preset: str, batch: int | None, batch_gpu: int | None, steps: int, device: str, json_path: str | None) -> None:
    """Time and memory of a training step."""
    chosen = distributed.initialise(device)
    memory.keep_freed_memory()  # as the training loop does
    config = presets.resolve(preset, data="")
    config = replace(config, batch=batch or config.batch, batch_gpu=batch_gpu or batch or config.batch_gpu)
    config.check()
    if not 0 < steps < config.r1_interval:
        raise click.ClickException(f"--steps={steps}: legal are 1 to {config.r1_interval - 1}")
    unit = yardstick(chosen)
    figures = measure(config, chosen, steps)
    figures |= {"preset": preset, "batch": config.batch, "machine": machine(), "threads": torch.get_num_threads()}
    figures |= {"yardstick_ms": unit * 1e3, "rasterizer": resolve_backend("auto", chosen)}
    total = figures["seconds_per_step"]
    print(f"{preset}, batch {config.batch}, {chosen}, {figures['rasterizer']}; {figures['machine']}")
    print(f"2048^3 product {unit * 1e3:.1f} ms; step {total * 1e3:.1f} ms; {total / config.batch * 1000:.2f} s/kimg")
    for name, value in sorted(figures["parts"].items(), key=lambda item: -item[1]):
        print(f"    {value * 1e3:9.1f} ms  {value / total:6.1%}  {name}")
    peak = f"{figures['cpu_peak_gib']:.2f} GiB of process memory"
    print(f"peak {peak}" + (f", {figures['gpu_peak_gib']:.2f} GiB on the GPU" if figures["gpu_peak_gib"] else ""))
    if json_path:
        with open(json_path, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
