"""Holds the parts of benchmarks/gpu.py that run whole networks: steps, the published loop, inference, learning."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import training_step
from benchmarks.gpu import ROOT, Job, results
from benchmarks.gpu_kernels import milliseconds
from benchmarks.published_loop import as_published
from gaussian import Cameras, Rendering, resolve_backend
from torch_utils import memory
from training import presets
from training.families.base import Generator
from training.samples import MicroBatch, SampleStream

AFTER_THE_BLUR = 1_000_000  # images seen: the blur of the start would be in every step otherwise
WARM_UP, TIMED = 3, 6  # steps
DATA = ROOT / ".gpu" / "heads.zip"
OTHERS = (
    ("gsgan-ffhq512", 8),
    ("epigraf-ffhq512", 16),
    ("gghead-ffhq512", 16),
    ("pigan-celeba", 28),
)  # samples at a time


@dataclass
class Bench:
    """Holds a step and what it works on, ready to be timed."""

    gan: training_step.TimedStep
    micro: list[MicroBatch]
    config: Any

    def run(self, step: int = training_step.ORDINARY_STEP) -> None:
        """Runs a step. Number 0 has R1."""
        self.gan.run(step, AFTER_THE_BLUR, self.micro)


def make_bench(job: Job, preset: str, precision: str, batch_gpu: int) -> Bench:
    """Builds networks of a preset, or of the trial's, and a batch of random images."""
    torch.backends.cudnn.benchmark = True
    config = presets.resolve(job.preset or preset, data="")
    batch = 4 if job.small else config.batch
    config = replace(config, batch=batch, batch_gpu=min(batch_gpu, batch), precision=precision, stages=())
    labels = training_step.FFHQ.orbit(torch.linspace(-0.8, 0.8, training_step.ITEMS)).labels
    device = torch.device(job.device)
    gan = training_step.make_step(config, labels, device)
    stream = SampleStream(config, labels, gan.G.z_dim, device)
    return Bench(gan, stream.micro_batches(AFTER_THE_BLUR, training_step.random_batch(config, labels)), config)


def step_ms(job: Job, run: Callable[[], None]) -> float:
    """Returns the mean time of a step over TIMED steps that follow one another without a wait."""
    if job.device == "cpu":
        run()
        begun = time.perf_counter()
        run()
        return (time.perf_counter() - begun) * 1e3
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(TIMED):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / TIMED * 1e3


def measure(job: Job, preset: str, precision: str, batch_gpu: int) -> Bench | None:
    """Times steps and R1 in one setting, and states the peak memory."""
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    bench = make_bench(job, preset, precision, batch_gpu)
    ordinary, said = step_ms(job, bench.run), ""
    rare = {}  # phases that are not due in every step
    for phase in bench.gan.phases:
        if phase.every > 1:
            alone = functools.partial(bench.gan.accumulate, phase, AFTER_THE_BLUR, bench.micro)
            rare[phase.name] = milliseconds(alone, job, rounds=2)
            said += f" ({phase.name} {rare[phase.name]:.1f} ms every {phase.every}th)"
    mean = ordinary + sum(rare[phase.name] / phase.every for phase in bench.gan.phases if phase.name in rare)
    peak = memory.peaks(torch.device(job.device))
    gib = peak.get("gpu_peak_gib") or peak["cpu_peak_gib"]
    backend = resolve_backend("auto", job.device)
    setting = f"{bench.config.preset} {precision} {bench.config.batch_gpu} at a time, {backend}"
    text = f"{setting}: step {mean:.1f} ms = {mean / bench.config.batch:.2f} s/kimg{said}"
    text += f"; peak {gib:.1f} GiB; measured in {time.monotonic() - begun:.0f} s"
    job.say(text, setting=setting, preset=bench.config.preset, step_ms=mean, every_step_ms=ordinary, peak_gib=gib)
    return bench


def step_cgs512(job: Job) -> None:
    """Times the step in several settings; profiles the first."""
    settings = (
        (("fp32", 4), ("bf16", 2)) if job.device == "cpu" else (("bf16", 32), ("bf16", 16), ("fp16", 16), ("bf16", 8))
    )
    for i, (precision, batch_gpu) in enumerate(settings):
        if job.left() < 15 and i:
            return job.say(f"{precision} {batch_gpu} left out: no time")
        job.attempt(f"{precision} {batch_gpu}", _step_and_profile, job, precision, batch_gpu, i == 0)


def _step_and_profile(job: Job, precision: str, batch_gpu: int, profiled: bool) -> None:
    bench = measure(job, "cgs512", precision, batch_gpu)
    if profiled and bench is not None:
        job.attempt("phases", _phases, job, bench)
        job.attempt("profile", _profile, job, bench)


def _phases(job: Job, bench: Bench) -> None:
    """Times phases and their parts, with waits between them: their sum is more than a step."""
    clock = training_step.Clock(torch.device(job.device))
    for owner, method in ((bench.gan.G, "synthesis"), (bench.gan.G, "render"), (bench.gan, "update_averages")):
        clock.watch(owner, method, method)
    bench.gan.clock = clock
    bench.run()
    bench.gan.clock = None
    for owner, method in ((bench.gan.G, "synthesis"), (bench.gan.G, "render"), (bench.gan, "update_averages")):
        delattr(owner, method)  # the watched one hides the class's
    said = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in clock.seconds.items())
    job.say(f"with waits, ms: {said}", phases=dict(clock.seconds))


def _profile(job: Job, bench: Bench) -> None:
    """Profiles an ordinary step, then each phase that is not in every step."""
    _profile_of(job, "step", bench.run, 25)
    for phase in bench.gan.phases:
        if phase.every > 1:
            alone = functools.partial(bench.gan.accumulate, phase, AFTER_THE_BLUR, bench.micro)
            _profile_of(job, phase.name, alone, 8)


def _profile_of(job: Job, name: str, run: Callable[[], None], most: int) -> None:
    """Names the longest kernels and host operators, and states how many kernels and how much of the time none runs."""
    activity = torch.profiler.ProfilerActivity
    on_gpu = job.device == "cuda"
    with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if on_gpu else [])]) as profile:
        begun = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - begun
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    averages = [event for event in profile.key_averages() if not event.is_user_annotation]
    total = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [event for event in averages if event.device_type == kind and getattr(event, total) > 0]
    busy, count = sum(getattr(e, total) for e in events) / 1e6, sum(e.count for e in events)
    text = f"profile of {name}: {count:,} {'kernels' if on_gpu else 'operators'}, {busy * 1e3:.1f} ms; idle "
    text += f"{1 - busy / wall:.0%} of {wall * 1e3:.1f} ms under the profiler"
    job.say(text, kernels=count, busy_s=busy, wall_s=wall)
    lists = [(events, total, most)] if on_gpu else [(events, total, 3)]
    if on_gpu:
        lists.append(([e for e in averages if e.device_type != kind], "self_cpu_time_total", most))
    for which, attribute, longest in lists:
        for event in sorted(which, key=lambda e: -getattr(e, attribute))[:longest]:
            spent = getattr(event, attribute) / 1e3
            text = f"{spent:8.2f} ms {event.count:5} x {event.key[:110]}"
            job.say(text, detail=True, of=f"{name} {attribute}", ms=spent, count=event.count)


def step_cgs256(job: Job) -> None:
    """Times the step at 256 px."""
    job.attempt("bf16 32", measure, job, "cgs256", "fp32" if job.device == "cpu" else "bf16", 32)


def step_families(job: Job) -> None:
    """Times a step of a published size of every family."""
    for i, (preset, batch_gpu) in enumerate(OTHERS[: 2 if job.small else None]):
        if job.left() < 12 and i:
            return job.say(f"{preset} left out: no time")
        job.attempt(preset, measure, job, preset, "fp32" if job.device == "cpu" else "bf16", batch_gpu)


# ---------------------------------------------------------------- the published loop


def published_loop(job: Job) -> None:
    """Times the loop of the published code with our kernels, and ours beside it in the same process."""
    cpu = job.device == "cpu"
    ours = measure(job, "cgs512", "fp32" if cpu else "bf16", 32)
    del ours
    if not cpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    bench = make_bench(job, "cgs512", "fp32" if cpu else "fp16", 8)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    as_published(bench.gan, bench.config.batch_gpu)
    spent = step_ms(job, bench.run)
    mine = [r["every_step_ms"] for r in results(job.out) if "setting" in r and r["part"] == job.part]
    setting = f"{'fp32' if cpu else 'fp16'} {bench.config.batch_gpu} at a time"
    text = f"published loop with our kernels, {setting}: {spent:.1f} ms without R1"
    peak = memory.peaks(torch.device(job.device))
    gib = peak.get("gpu_peak_gib") or peak["cpu_peak_gib"]
    text += f", peak {gib:.1f} GiB"
    job.say(f"{text}; ours takes {mine[-1] / spent:.2f} of it" if mine else text, step_ms=spent, peak_gib=gib)


# ---------------------------------------------------------------- compile, inference, learning


def compile(job: Job) -> None:
    """Times the step with a compiled generator."""
    bench = make_bench(job, "cgs512", "fp32" if job.device == "cpu" else "bf16", 16)
    before = step_ms(job, bench.run)
    # Compiling a generator takes a CPU minutes in C++, and half a minute without: a trial takes what is small.
    backend, method = ("aot_eager", "mapping") if job.small else ("inductor", "synthesis")
    setattr(bench.gan.G, method, torch.compile(getattr(bench.gan.G, method), backend=backend))
    begun = time.monotonic()
    bench.run()
    milliseconds(lambda: None, job, 1)  # waits for the device
    spent = time.monotonic() - begun
    after = step_ms(job, bench.run)
    text = f"G.{method} by {backend}: compiled in {spent:.0f} s, step {before:.1f} -> {after:.1f} ms"
    job.say(text, compile_s=spent, before_ms=before, after_ms=after)


@torch.no_grad()
def inference(job: Job) -> None:
    """Times generator and renderer."""
    for preset in ("cgs512", "cgs1024"):
        job.attempt(preset, _inference, job, preset)


def _inference(job: Job, preset: str) -> None:
    bench = make_bench(job, preset, "fp32" if job.device == "cpu" else "bf16", 8)
    G = bench.gan.G.eval()
    frontal = training_step.FFHQ.frontal().to(job.device)
    for count in (1, 8):
        z, cameras = torch.randn(count, G.z_dim, device=job.device), frontal.expand(count).reshape(count, 1)
        scene = G.synthesis(G.mapping(z))
        draw = functools.partial(G.render, scene, cameras)
        alone = milliseconds(draw, job)
        whole = milliseconds(functools.partial(_generate, G, z, cameras), job)
        text = f"{bench.config.preset}, {count} at a time, {G.resolution} px: {1e3 * count / whole:.1f} images/s, "
        job.say(f"{text}rendering alone {1e3 * count / alone:.1f}", whole_ms=whole, render_ms=alone, count=count)


def _generate(G: Generator, z: Tensor, cameras: Cameras) -> Rendering:
    return G.render(G.synthesis(G.mapping(z)), cameras)


def learning(job: Job) -> None:
    """Trains from nothing for as long as there is time, then measures the run's first and last network."""
    folder = job.out / "work"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _learn(job, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _learn(job: Job, folder: Path) -> None:
    data, preset = DATA, "small"
    if job.small or not DATA.exists():
        data, preset = folder / "set", job.preset or "tiny"
        size, count = presets.resolve(preset, data="").resolution, 16 if job.small else 1000
        _script("dataset_tool.py", "synthesize", f"--dest={data}", f"--num={count}", f"--resolution={size}")
        data = data / str(size)
    minutes = 0.01 if job.small else max(job.left() - 45, 20) / 60
    options = ["--network-snap=1000000", "--img-snap=1000000", "--metrics=none", f"--device={job.device}"]
    _script(
        "train.py", f"--data={data}", f"--outdir={folder}", f"--preset={preset}", f"--minutes={minutes:.3f}", *options
    )
    run = next(path for path in folder.iterdir() if (path / "stats.jsonl").exists())
    stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for picture in sorted(run.glob("fakes*.png"))[-1:]:
        shutil.copy(picture, job.out / "fakes.png")
    spent, last = minutes * 60, stats[-1]
    text = f"{preset}, {spent:.0f} s of training with its start: {last['nimg'] / 1000:.2f} kimg"
    job.say(f"{text}, {last['timing'].get('sec_per_kimg', 0):.2f} s/kimg in the last tick", last=last)
    for snapshot in sorted(run.glob("network-snapshot-*.pkl"))[-1:]:
        metric = "swd16" if job.small else "swd2k"
        command = (f"--network={snapshot}", f"--data={data}", f"--metrics={metric}", f"--device={job.device}")
        line = next(line for line in _script("calc_metrics.py", *command).splitlines() if line.startswith("{"))
        job.say(f"{metric} {json.loads(line)['results'][metric]:.1f} at {snapshot.stem}", metric=metric)


def _script(name: str, *arguments: str) -> str:
    """Runs a script of the project and returns what it printed; raises RuntimeError with its end if it fails."""
    ran = subprocess.run([sys.executable, str(ROOT / name), *arguments], cwd=ROOT, capture_output=True, text=True)
    print(ran.stdout[-3000:], ran.stderr[-3000:], flush=True)
    if ran.returncode:
        raise RuntimeError(f"{name} ended with {ran.returncode}: {(ran.stderr.strip().splitlines() or [''])[-1]}")
    return ran.stdout
