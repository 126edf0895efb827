"""Simulates a training step on 1 to 64 GPUs: launches, kernels, waits and messages (docs/scaling.md).

    python -m benchmarks.scaling                      # the model's tables
    python -m benchmarks.scaling --measure=1,2,4      # measures small gloo ranks on this machine's cores

A rank is a host thread that launches kernels in order and a queue that runs them; a segment of a step is a number of
equal kernels. The host waits for the queue once per render (gsplat allocates by a number that it reads back). Ranks
meet when gradients are summed. Kernel times and the cost of a launch go by what one H200 and its host took
(benchmarks/results/gpu-h200.jsonl); numbers of kernels and of parameters are counted (benchmarks/counts.py).
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
import torch

from training import presets

GROUP = 4  # least samples per rank: the minibatch standard deviation of a micro-batch needs a group
GRADIENTS = {"G": 61.6e6, "D": 31.0e6}  # numbers that have a gradient, cgs512


@dataclass(frozen=True)
class Segment:
    """Is a part of a phase: kernels that a rank launches for a micro-batch, and their time on the GPU."""

    name: str
    phase: str
    kernels: int  # of a micro-batch of any size
    kernel_ms: float  # of 32 samples of cgs512 with V = 4 in bfloat16 on one H200
    waits: bool = False  # the host waits for the queue inside


# All but R1 are measured as a sum, 314 ms with the fixed ones, and the renders by themselves; the rest is shared out in
# the proportions of the operations. R1 was estimated; 79 ms every 16th step were measured later.
SEGMENTS = (
    Segment("G forward", "G", 800, 7.0),
    Segment("render", "G", 40, 10.5, waits=True),
    Segment("D forward", "G", 115, 62.0),
    Segment("D backward", "G", 90, 62.0),
    Segment("render backward", "G", 40, 44.0),
    Segment("G backward", "G", 1_850, 14.0),
    Segment("G forward, no gradient", "D", 800, 7.0),
    Segment("render, no gradient", "D", 40, 10.5, waits=True),
    Segment("D forward and backward", "D", 280, 93.0),
    Segment("R1, a step's share", "D", 34, 6.0),
)


@dataclass(frozen=True)
class Cluster:
    """Describes the machines."""

    ranks: int
    node: int = 8  # GPUs of a machine
    link: float = 370e9  # bytes/s of a ring within a machine
    network: float = 320e9  # bytes/s of a machine to the others: 8 cards of 400 Gb/s at 80 %
    latency: float = 30e-6  # s of a message
    launch: float = 38e-6  # s that the host takes for a kernel: 642 ms for 4 micro-batches of 8 samples
    jitter: float = 0.02  # relative spread of a segment's time between ranks
    fixed_ms: float = 4.0  # of a step: Adam, averages, clipping, whatever its batch
    fixed_kernels: int = 140
    overlap: bool = False  # G's message travels while D judges the reals


@dataclass(frozen=True)
class Step:
    """Holds what a simulated step takes, in ms."""

    total: float
    launching: float  # that the slowest host spends on launches
    kernels: float  # that the slowest queue spends on kernels
    messages: float


def message_seconds(cluster: Cluster, numbers: float) -> float:
    """Returns the time of a sum of float32 `numbers` over all ranks: rings within machines, and one across them."""
    if cluster.ranks == 1:
        return 0.0
    inside, nodes = min(cluster.ranks, cluster.node), max(cluster.ranks // cluster.node, 1)
    moved = 4 * numbers
    return (
        2 * (inside - 1) / inside * moved / cluster.link
        + 2 * (nodes - 1) / nodes * moved / cluster.network
        + cluster.latency * np.log2(cluster.ranks)
    )


def simulate(cluster: Cluster, batch: int, batch_gpu: int, steps: int = 20, seed: int = 0) -> Step:
    """Runs steps of `batch` samples, at most `batch_gpu` of a rank's share at a time.

    Raises ValueError if a rank gets less than a group of samples, or no whole number.
    """
    share, rest = divmod(batch, cluster.ranks)
    if rest or share < GROUP:
        raise ValueError(f"batch {batch} on {cluster.ranks} ranks: each needs a whole share of {GROUP} or more")
    at_once = min(batch_gpu, share)
    rounds = -(-share // at_once)
    rng = np.random.default_rng(seed)
    host = np.zeros(cluster.ranks)  # when each rank's host is free
    queue = np.zeros(cluster.ranks)  # when its queue is
    launching, busy, messages = np.zeros(cluster.ranks), np.zeros(cluster.ranks), 0.0

    def run(kernels: int, seconds: np.ndarray, waits: bool = False) -> None:
        nonlocal host, queue, launching, busy
        issued = host + kernels * cluster.launch
        # Kernels are equal: either the queue always has one, or each waits for its launch.
        queue = np.maximum(np.maximum(queue, host) + seconds, issued + seconds / kernels)
        launching, busy = launching + kernels * cluster.launch, busy + seconds
        host = np.maximum(issued, queue) if waits else issued

    def meet(numbers: float, hidden: float = 0.0) -> None:
        nonlocal queue, messages
        spent = message_seconds(cluster, numbers)
        messages += spent
        queue = np.full(cluster.ranks, queue.max() + max(spent - hidden, 0.0))

    for _ in range(steps):
        for phase in ("G", "D"):
            for _ in range(rounds):
                for segment in SEGMENTS:
                    if segment.phase == phase:
                        mean = segment.kernel_ms * 1e-3 * at_once / 32
                        run(
                            segment.kernels,
                            mean * (1 + cluster.jitter * rng.standard_normal(cluster.ranks)),
                            segment.waits,
                        )
            # The reals are half of D's part, and do not need the new G.
            hidden = 0.5 * 93e-3 * share / 32 if cluster.overlap and phase == "G" else 0.0
            meet(GRADIENTS[phase], hidden)
            run(cluster.fixed_kernels // 2, np.full(cluster.ranks, cluster.fixed_ms / 2e3))
    scale = 1e3 / steps
    return Step(float(queue.max()) * scale, launching.max() * scale, busy.max() * scale, messages * scale)


def table(title: str, cluster: Cluster, cases: Sequence[tuple[int, int, int]]) -> list[str]:
    """Returns the lines of a table in Markdown: ranks, batch, micro-batch and what a step takes."""
    lines = [
        f"{title}",
        "",
        "| ranks | batch | at a time | step, ms | kernels | launches | messages | images/s | share of perfect |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = simulate(replace(cluster, ranks=1), 32, 32)
    for ranks, batch, at_once in cases:
        step = simulate(replace(cluster, ranks=ranks), batch, at_once)
        rate = batch / step.total * 1e3
        ideal = 32 / base.total * 1e3 * ranks
        lines.append(
            f"| {ranks} | {batch} | {at_once} | {step.total:.0f} | {step.kernels:.0f} | {step.launching:.0f} "
            f"| {step.messages:.1f} | {rate:.0f} | {rate / ideal:.0%} |"
        )
    return [*lines, ""]


STRONG = ((1, 32, 8), (1, 32, 32), (2, 32, 16), (4, 32, 8), (8, 32, 4))
WEAK = ((8, 64, 8), (8, 256, 32), (16, 256, 16), (32, 256, 8), (64, 256, 4), (64, 512, 8), (64, 2048, 32))


def tables() -> list[str]:
    """Returns all tables of docs/scaling.md."""
    cluster = Cluster(ranks=1)
    slow = replace(cluster, network=12.5e9)
    return [
        *table("Batch 32 on one machine:", cluster, STRONG),
        *table("Larger batches, machines of 8 with 400 Gb/s for each GPU:", cluster, WEAK),
        *table("The same with one card of 100 Gb/s for each machine:", slow, WEAK[2:]),
        *table("That, with G's sum sent while D judges the reals:", replace(slow, overlap=True), WEAK[2:]),
        *table("Batch 32, with two launches in three saved:", replace(cluster, launch=cluster.launch / 3), STRONG),
        *table("Batch 32, on a host that takes 7 us for a launch:", replace(cluster, launch=7e-6), STRONG),
    ]


# ---------------------------------------------------------------- measured


def _rank(rank: int, ranks: int, port: int, preset: str, results: Any) -> None:
    """Trains a few steps as one of several gloo ranks, with one thread, and reports seconds."""
    from benchmarks import training_step
    from torch_utils import distributed
    from training.samples import SampleStream

    torch.set_num_threads(1)
    if ranks > 1:
        store = torch.distributed.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks, store=store)
    config = presets.resolve(preset, data="")
    config = replace(config, batch_gpu=4, stages=(), precision="fp32")
    labels = training_step.FFHQ.orbit(torch.linspace(-0.8, 0.8, training_step.ITEMS)).labels
    torch.manual_seed(0)
    step = training_step.make_step(config, labels, torch.device("cpu"))
    stream = SampleStream(config, labels, step.G.z_dim, torch.device("cpu"))
    batch = training_step.random_batch(replace(config, batch=len(stream.share(0))), labels)
    step.run(0, 0, stream.micro_batches(0, batch))
    wall, processor = time.perf_counter(), time.process_time()
    steps = 3
    for i in range(1, steps + 1):
        step.run(i, i * config.batch, stream.micro_batches(i * config.batch, batch))
    spent = (time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps
    begun = time.perf_counter()
    for phase in step.phases[:2]:
        distributed.all_reduce_gradients(list(phase.module.parameters()), torch.zeros(1))
    results.put((rank, *spent, time.perf_counter() - begun))
    if ranks > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def measure(counts: Sequence[int], preset: str) -> list[dict[str, float]]:
    """Returns seconds of a step on so many ranks of this machine: wall, processor time of a rank, and a sum."""
    context = multiprocessing.get_context("spawn")
    found = []
    for ranks in counts:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        queue = context.Queue()
        processes = [context.Process(target=_rank, args=(r, ranks, store.port, preset, queue)) for r in range(ranks)]
        for process in processes:
            process.start()
        rows = [queue.get(timeout=300) for _ in processes]
        for process in processes:
            process.join()
        wall, processor, summed = (max(row[i] for row in rows) for i in (1, 2, 3))
        found.append({"ranks": ranks, "wall_s": wall, "processor_s": processor, "sum_s": summed})
    return found


@click.command()
@click.option("--measure", "ranks", help="Comma-separated numbers of gloo ranks to run here, in place of the model.")
@click.option("--preset", default="micro", show_default=True, help="Of the measured ranks, 4 samples at a time.")
def main(ranks: str | None, preset: str) -> None:
    """Print how a step scales."""
    if ranks is None:
        print("\n".join(tables()))
        return
    rows = measure([int(count) for count in ranks.split(",")], preset)
    for row in rows:
        share = row["processor_s"] / rows[0]["processor_s"]
        print(
            f"{row['ranks']} ranks: a step {row['wall_s']:.3f} s, processor time of a rank {row['processor_s']:.3f} s "
            f"({share:.2f} of the first), the sums of both networks {row['sum_s'] * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
