"""Measures a training step beside busy processes, for ways in which idle threads may wait.

    python -m benchmarks.busy --preset=tiny --steps=20        # quiet, and with a busy process on every core
    python -m benchmarks.busy --steps=0                       # two small loops alone, seconds

Every case is a process of its own, since OpenMP reads its environment once. A thread that waits for others can spin,
which is fast where every thread has a core, or sleep, which is fast where others want the cores. `dnnlib/waiting.py`
says what the scripts ask for.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from dnnlib import ROOT, waiting
from torch_utils.distributed import usable_cores

LOOPS, LOOP, SIDE = 60, 200_000, 384  # of a row of numbers, and a product of two squares: under a millisecond each
SPIN_BY_DEFAULT = "300000"  # rounds, as GNU OpenMP has it where it is told nothing
CASES = {  # name -> environment of the process
    "spin": {"GOMP_SPINCOUNT": SPIN_BY_DEFAULT},
    "as the scripts": dict(waiting.ENVIRONMENT),
    "spin 2000": {"GOMP_SPINCOUNT": "2000"},
    "sleep": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def timed(function: Callable[[int], object], count: int) -> tuple[float, float]:
    """Calls a function with 0 to `count`; returns wall and processor seconds of the median call but for the first."""
    seconds = []
    for i in range(count + 1):
        wall, processor = time.perf_counter(), time.process_time()
        function(i)
        seconds.append((time.perf_counter() - wall, time.process_time() - processor))
    return sorted(seconds[1:])[count // 2]


def child(preset: str, batch: int, steps: int) -> dict[str, float]:
    """Returns wall and processor seconds of two small loops over all threads, and of a step, in this process."""
    import torch

    from torch_utils import memory

    memory.keep_freed_memory()  # as the training loop does
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", usable_cores())))
    row, square = torch.ones(LOOP), torch.randn(SIDE, SIDE)
    pair = timed(lambda _: (row.mul_(1.0), square @ square), LOOPS)
    found = {"threads": torch.get_num_threads(), "loops_s": pair[0], "loops_processor_s": pair[1]}
    if steps:
        found |= dict(zip(("step_s", "step_processor_s"), _step(preset, batch, steps), strict=True))
    return found


def _step(preset: str, batch: int, steps: int) -> tuple[float, float]:
    import torch

    from benchmarks.training_step import FFHQ, ITEMS, make_step, random_batch
    from training import presets
    from training.samples import SampleStream

    config = replace(presets.resolve(preset, data=""), batch=batch, batch_gpu=batch, stages=())
    labels = FFHQ.orbit(torch.linspace(-0.8, 0.8, ITEMS)).labels
    torch.manual_seed(0)
    step = make_step(config, labels, torch.device("cpu"))
    stream = SampleStream(config, labels, step.G.z_dim, torch.device("cpu"))
    images = random_batch(config, labels)
    return timed(lambda i: step.run(i, i * batch, stream.micro_batches(i * batch, images)), steps)  # R1: step 0 alone


def measure(case: str, arguments: list[str]) -> dict[str, Any]:
    """Runs `child` in a process with the environment of a case."""
    kept = {k: v for k, v in os.environ.items() if k not in (*waiting.ASKED, "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.busy", "--child", *arguments]
    done = subprocess.run(command, env=kept | CASES[case], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{case}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _spin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    while True:
        pass


class Hogs:
    """Keeps processes busy, so many on every core of this process, as long as the block runs."""

    def __init__(self, each: int) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cores()))
        context = multiprocessing.get_context("spawn")
        self.processes = [context.Process(target=_spin, args=(core,), daemon=True) for core in cores * each]

    def __enter__(self) -> None:
        for process in self.processes:
            process.start()

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()


@click.command(context_settings={"show_default": True})
@click.option("--preset", default="tiny")
@click.option("--batch", default=8, help="samples of a step")
@click.option("--steps", default=20, help="that are timed, in each process; 0: small loops alone")
@click.option("--cases", default=",".join(CASES), help="comma-separated")
@click.option("--hogs", default="0,1", help="busy processes on every core, comma-separated")
@click.option("--json", "out", type=click.Path(), help="file for the figures")
@click.option("--child", "is_child", is_flag=True, hidden=True)
def main(preset: str, batch: int, steps: int, cases: str, hogs: str, out: str | None, is_child: bool) -> None:
    """Print the time of a step for each way to wait, beside so many busy processes."""
    if is_child:
        click.echo(json.dumps(child(preset, batch, steps)))
        return
    arguments = [f"--preset={preset}", f"--batch={batch}", f"--steps={steps}"]
    rows = []
    names = ("loops_s", "loops_processor_s", *(("step_s", "step_processor_s") if steps else ()))
    titles = (f"{name.removesuffix('_s').replace('_', ', ')}, ms" for name in names)
    click.echo(
        "| busy processes on a core | waiting | " + " | ".join(titles) + " |\n" + "|---" * (2 + len(names)) + "|"
    )
    for each in (int(number) for number in hogs.split(",")):
        with Hogs(each):
            for case in cases.split(","):
                found = measure(case, arguments)
                rows.append({"hogs": each, "case": case, **found})
                click.echo(f"| {each} | {case} | " + " | ".join(f"{found[n] * 1e3:.1f}" for n in names) + " |")
    if out:
        from benchmarks import machine

        with open(out, "w") as file:
            json.dump({"machine": machine.facts(), "preset": preset, "batch": batch, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
