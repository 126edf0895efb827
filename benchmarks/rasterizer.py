"""Times the rasterisers that this machine has: `python -m benchmarks.rasterizer --out=rasterizer.json`.

Forward (no gradient) and forward + backward (all of the scene's fields) in ms, beside a 2048x2048x2048 float32 matrix
product on the same device as the yardstick. The cases and the yardstick take turns, and the least time of each counts,
so that other work on the machine disturbs all alike. Peak memory is what one forward + backward needs beyond its
scene. Sweeps: `scenes` (the three scenes and batches of them), `loop` (one batched call against a Python loop over its
views), `splats`, `pixels` and `threads` (how the time grows with each). Prints a table and writes JSON; both name the
machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import click
import torch
import torch.nn.functional as F

from benchmarks.machine import facts, now
from gaussian import Cameras, Gaussians, render, resolve_backend
from gaussian.rendering import DEVICE_BACKENDS

YARDSTICK_SIZE = 2048
DISTANCE, FOCAL = 2.7, 4.2647  # of the camera, world units and image sizes: EG3D's FFHQ cameras
BALL_RADIUS = 0.4  # world units, where the splats are


@dataclass(frozen=True)
class Case:
    """Describes a batch of scenes and of views to render."""

    name: str
    splats: int
    pixels: int  # of the square image's side
    median_scale: float  # world units
    scenes: int = 1
    views: int = 1
    looped: bool = False  # a Python loop over scenes and views in place of one call
    threads: int = 0  # of the CPU; 0 are all that the run has


SMALL = Case("small", 5_440, 64, 0.02)
MEDIUM = Case("medium", 109_056, 256, 0.006)
LARGE = Case("large", 240_128, 512, 0.004)
BATCH = replace(SMALL, name="small, 8x4", scenes=8, views=4)
SWEEPS = {
    "scenes": (SMALL, MEDIUM, LARGE, BATCH, replace(BATCH, name="small, 16x2", scenes=16, views=2)),
    "loop": (BATCH, replace(BATCH, name="small, 8x4 looped", looped=True)),
    "splats": tuple(replace(MEDIUM, name=f"medium, {n:,}", splats=n) for n in (27_264, 54_528, 109_056, 218_112)),
    "pixels": tuple(replace(MEDIUM, name=f"medium, {n} px", pixels=n) for n in (64, 128, 256, 512, 1024)),
    "threads": tuple(
        replace(MEDIUM, name=f"medium, {n} threads", threads=n)
        for n in sorted({1, 2, 4, 8, 16, 32} & set(range(1, (os.cpu_count() or 1) + 1)))
    ),
}


@dataclass(frozen=True)
class Timing:
    """Holds what one case costs with one back end."""

    sweep: str
    case: str
    backend: str
    forward_ms: float
    both_ms: float  # forward + backward
    yardstick_ms: float
    peak_mib: float | None  # of one forward + backward, beyond the scene; None where the system does not tell
    rounds: int


def make_scene(case: Case, device: str) -> Gaussians:
    """Draws splats in a ball: uniform means and colours, log-scales N(ln s, 0.4), quats N(0, 1), logits N(-1, 1)."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.scenes, case.splats)

    def normal(width: int) -> torch.Tensor:
        return torch.randn(*shape, width, generator=generator)

    radius = BALL_RADIUS * torch.rand(*shape, 1, generator=generator) ** (1 / 3)
    scene = Gaussians(
        means=radius * F.normalize(normal(3), dim=-1),
        log_scales=math.log(case.median_scale) + 0.4 * normal(3),
        quats=normal(4),
        opacity_logits=normal(1) - 1,
        sh=(torch.rand(*shape, 1, 3, generator=generator) - 0.5) / 0.28209479177387814,
    )
    return scene.to(device)


def make_cameras(case: Case, device: str) -> Cameras:
    """Makes a frontal camera; several are spread over a yaw of +-0.5 rad."""
    count = case.scenes * case.views
    yaw = torch.linspace(-0.5, 0.5, count) if count > 1 else torch.zeros(1)
    position = DISTANCE * torch.stack([yaw.sin(), torch.zeros(count), yaw.cos()], dim=-1)
    intrinsics = torch.tensor([[FOCAL, 0, 0.5], [0, FOCAL, 0.5], [0, 0, 1]])
    cameras = Cameras.look_at(position, (0.0, 0.0, 0.0), intrinsics=intrinsics)
    return cameras.reshape(case.scenes, case.views).to(device)


def runs_of(case: Case, backend: str, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Returns forward, and forward + backward."""
    scene, cameras = make_scene(case, device), make_cameras(case, device)
    leaves = scene.map(lambda t: t.clone().requires_grad_())
    inputs = [leaves.means, leaves.log_scales, leaves.quats, leaves.opacity_logits, leaves.sh]
    shape = (case.scenes, case.views, 5, case.pixels, case.pixels)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device).split([3, 1, 1], dim=2)
    upstream = [u.contiguous() for u in upstream]

    def forward() -> None:
        with torch.no_grad():
            draw(case, scene, cameras, backend)

    def both() -> None:
        torch.autograd.grad(draw(case, leaves, cameras, backend), inputs, upstream)

    return forward, both


def draw(case: Case, scene: Gaussians, cameras: Cameras, backend: str) -> list[torch.Tensor]:
    """Renders rgb, alpha and depth of all views."""
    if not case.looped:
        out = render(scene, cameras, case.pixels, backend=backend)
        return [out.rgb, out.alpha, out.depth]
    outs = [
        render(scene.scene(b), cameras[b : b + 1, v : v + 1], case.pixels, backend=backend)
        for b in range(case.scenes)
        for v in range(case.views)
    ]
    lead = (case.scenes, case.views)
    return [torch.cat([getattr(o, name)[0] for o in outs]).unflatten(0, lead) for name in ("rgb", "alpha", "depth")]


def peak_mib(case: Case, backend: str, device: str) -> float | None:
    """Returns the MiB that one forward + backward needs at most beyond what is in use before it.

    On the CPU it is measured in a process of its own, where no earlier case has left memory behind that could be used
    again.
    """
    if device != "cuda":
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_peak_rss_mib, case, backend, torch.get_num_threads()).result()
    _, both = runs_of(case, backend, device)
    both()  # what is built or cached at first use is no part of a run's memory
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak_rss_mib(case: Case, backend: str, threads: int) -> float | None:
    torch.set_num_threads(threads)
    runs_of(replace(case, splats=100, pixels=16), backend, "cpu")[1]()  # libraries and threads are there after this
    _, both = runs_of(case, backend, "cpu")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status_kib("VmRSS")
        both()
        return (_status_kib("VmHWM") - before) / 1024
    except OSError:  # not Linux
        return None


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Returns the wall time of one call."""
    start = now(device)
    run()
    return now(device) - start


def measure(sweep: str, case: Case, backend: str, device: str, budget: float) -> Timing:
    """Takes the least times over two or more rounds of yardstick, forward, forward + backward in `budget` seconds."""
    all_threads = torch.get_num_threads()
    torch.set_num_threads(case.threads or all_threads)
    a, b = (torch.randn(YARDSTICK_SIZE, YARDSTICK_SIZE, device=device) for _ in range(2))
    forward, both = runs_of(case, backend, device)
    peak = peak_mib(case, backend, device)
    runs = (lambda: torch.mm(a, b), forward, both)
    least = [math.inf] * len(runs)
    rounds, start = 0, time.perf_counter()
    while rounds < 2 or time.perf_counter() - start < budget:
        least = [min(t, seconds_of(run, device)) for t, run in zip(least, runs, strict=True)]
        rounds += 1
    torch.set_num_threads(all_threads)
    yardstick, one, two = (1000 * t for t in least)
    return Timing(sweep, case.name, backend, one, two, yardstick, peak, rounds)


def backends_on(device: str) -> list[str]:
    """Returns all back ends that run there, the fastest first, the PyTorch one last."""
    found = [resolve_backend("auto", device)]
    for name in DEVICE_BACKENDS.get(device, ()):
        with contextlib.suppress(ValueError):  # not installed
            found.append(resolve_backend(name, device))
    return [name for name in dict.fromkeys(found) if name != "torch"] + ["torch"]


def table_row(case: Case, timing: Timing) -> str:
    """Puts a case and its timing into one line."""
    size = f"{case.scenes}x{case.views} {case.splats:,} at {case.pixels} px"
    size += " looped" * case.looped + f" {case.threads} thr." * bool(case.threads)
    share = timing.both_ms / timing.yardstick_ms
    peak = "" if timing.peak_mib is None else f"{timing.peak_mib:.0f}"
    return (
        f"{timing.backend[:7]:7} {size:33} {timing.forward_ms:10.2f} {timing.both_ms:10.2f} "
        f"{timing.both_ms / (case.scenes * case.views):10.2f} {share:10.4f} {timing.yardstick_ms:9.1f} {peak:>9}"
    )


@click.command()
@click.option("--out", type=click.Path(dir_okay=False), help="JSON file to write.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's]")
@click.option("--backends", help="Comma-separated.  [default: all of the device]")
@click.option("--sweeps", default=",".join(SWEEPS), show_default=True, help="Comma-separated.")
@click.option("--cases", default="", help="Comma-separated substrings of case names.  [default: all]")
@click.option("--seconds", default=5.0, show_default=True, help="Time per case and back end.")
def main(
    out: str | None, device: str, threads: int | None, backends: str | None, sweeps: str, cases: str, seconds: float
) -> None:
    """Time the rasterisers that this machine has."""
    if threads:
        torch.set_num_threads(threads)
    if unknown := set(sweeps.split(",")) - set(SWEEPS):
        raise click.ClickException(f"--sweeps={sweeps}: {', '.join(unknown)} is none of {', '.join(SWEEPS)}")
    parts = [part.strip() for part in cases.split(",")]
    chosen = [(s, case) for s in sweeps.split(",") for case in SWEEPS[s] if any(part in case.name for part in parts)]
    if not chosen:
        raise click.ClickException(f"--cases={cases} fits no case of --sweeps={sweeps}")
    machine = facts()
    click.echo(", ".join(f"{key} {value}" for key, value in machine.items() if value is not None))
    columns = f"{'fwd ms':>10} {'fwd+bwd':>10} {'per image':>10} {'/ mm':>10} {'mm ms':>9} {'peak MiB':>9}"
    click.echo(f"{'':7} {'scenes x views, splats':33} {columns}")
    results = []
    for backend in backends.split(",") if backends else backends_on(device):
        for sweep, case in chosen:
            if case.threads and device != "cpu":
                continue
            timing = measure(sweep, case, backend, device, seconds)
            click.echo(table_row(case, timing))
            results.append(asdict(case) | asdict(timing))
    if out:
        Path(out).write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
