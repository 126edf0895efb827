"""Times the rendering of radiance fields, and measures the memory of a film: `python -m benchmarks.fields`.

    python -m benchmarks.fields --out=fields.json
    python -m benchmarks.fields --members=pigan-tiny --clock=processor

Images of 64 px with 12 + 12 samples along a ray, of one scene from one camera: forward (no gradient), and forward +
backward (all of the scene's tensors and the decoder's weights), by native code and by PyTorch alone, beside a 2048 x
2048 x 2048 float32 product. All take turns, and medians count: of the milliseconds, and of the ratios to the product of
the same round. The making of the scene is left out. Peak memory is that of a process of its own that films a scene in
512 px as gen_videos.py does, Python and its libraries included. Networks have random weights.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor

from benchmarks.machine import facts
from benchmarks.networks import learning_tensors
from benchmarks.video import FFHQ, film
from gaussian.scene import Scene
from torch_utils import distributed, memory
from training import checkpoint, presets
from training.families import family
from training.families.base import Generator
from training.fields import native_fields
from training.visualization.video import Look

PIXELS, SAMPLES = 64, 12  # of an image, and along a ray in each of two passes
FILM_PIXELS, FILM_FRAMES = 512, 8
MEMBERS = ("epigraf-tiny", "eg3d-field128", "pigan-tiny", "pigan-celeba")
FILMED = MEMBERS[:3]  # the last takes minutes for a frame
PATHS = ("native", "torch")
YARDSTICK_SIZE = 2048
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Timing:
    """Holds what an image of a member costs on one path."""

    member: str
    path: str  # one of PATHS
    forward_ms: float
    both_ms: float  # forward + backward
    forward_ratio: float  # to the yardstick
    both_ratio: float
    yardstick_ms: float
    rounds: int


def prepared(preset: str) -> Generator:
    """Builds a generator with random weights and 12 + 12 samples along a ray."""
    config = presets.resolve(preset, data="")
    settings: Any = config.generator
    fine = {"fine_samples": SAMPLES} if hasattr(settings, "fine_samples") else {}  # else there are as many
    torch.manual_seed(0)
    G = family(config.family).generator(replace(settings, samples=SAMPLES, **fine)).eval().requires_grad_(False)
    G.info = checkpoint.run_info(config, FFHQ, FFHQ.orbit(torch.zeros(1)).labels)
    return G


def latents(G: Generator) -> Tensor:
    """Returns the ws [1, num_ws, w_dim] of one scene."""
    z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(0))
    return G.mapping(z, FFHQ.orbit(torch.zeros(1)), psi=0.7)


@contextlib.contextmanager
def computed_by(path: str) -> Iterator[None]:
    """Lets fields be computed by native code, or by PyTorch alone."""
    if path == "native":
        yield
    else:
        with mock.patch.object(native_fields, "usable", lambda *tensors: False):
            yield


def learning_scene(G: Generator) -> Scene:
    """Makes a scene whose tensors are leaves that have a gradient."""
    with torch.no_grad():
        scene = G.synthesis(latents(G))
    return scene.map(lambda tensor: tensor.clone().requires_grad_())


def runs_of(G: Generator, scene: Scene, path: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Returns forward, and forward + backward, of an image of `learning_scene`."""
    camera = FFHQ.orbit(torch.zeros(1, 1))
    decoders = {p for name, p in G.named_parameters() if "mapping" not in name}
    upstream = torch.randn(1, 1, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))

    def forward() -> None:
        with computed_by(path), torch.no_grad():
            G.render(scene, camera, PIXELS)

    def both() -> None:
        with computed_by(path):
            rgb = G.render(scene, camera, PIXELS).rgb
            torch.autograd.grad(rgb, [*learning_tensors(scene), *decoders], upstream, allow_unused=True)

    for parameter in decoders:
        parameter.requires_grad_(True)
    return forward, both


def measure(member: str, clock: str, budget: float) -> list[Timing]:
    """Takes medians over three or more rounds of yardstick, and all ways of rendering, in `budget` seconds."""
    G, now = prepared(member), CLOCKS[clock]
    paths = [path for path in PATHS if path == "torch" or native_fields.available()]
    a, b = (torch.randn(YARDSTICK_SIZE, YARDSTICK_SIZE) for _ in range(2))
    scene, runs = learning_scene(G), list[Callable[[], object]]([lambda: torch.mm(a, b)])
    for path in paths:
        runs += runs_of(G, scene, path)
    for run in runs:
        run()  # what is built or cached at first use is no part of the time
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < 3 or time.perf_counter() - start < budget:
        seconds = []
        for run in runs:
            begun = now()
            run()
            seconds.append(now() - begun)
        rounds.append(seconds)
    ms = [1000 * statistics.median(times) for times in zip(*rounds, strict=True)]
    ratios = [statistics.median(one[i] / one[0] for one in rounds) for i in range(len(runs))]
    return [
        Timing(member, path, ms[i], ms[i + 1], ratios[i], ratios[i + 1], ms[0], len(rounds))
        for path, i in zip(paths, range(1, len(runs), 2), strict=True)
    ]


def film_peak_gib(member: str) -> float:
    """Returns the peak GiB of a process that films a scene of the member."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_film_peak_gib, member, torch.get_num_threads()).result()


@torch.no_grad()
def _film_peak_gib(member: str, threads: int) -> float:
    distributed.initialise("cpu")
    torch.set_num_threads(threads)
    memory.keep_freed_memory()  # as gen_videos.py does
    G = prepared(member)
    film(G, latents(G), FFHQ.orbit(torch.linspace(-0.4, 0.4, FILM_FRAMES)), Look(FILM_PIXELS))
    return memory.peaks(torch.device("cpu"))["cpu_peak_gib"]


def lines(timings: list[Timing], peak: float | None) -> str:
    """Puts what is known of a member into lines of text."""
    rows = [
        f"{t.member:14} {t.path:7} {t.forward_ms:9.1f} {t.both_ms:9.1f} {t.forward_ratio:9.2f} {t.both_ratio:9.2f} "
        f"{t.yardstick_ms:8.1f} {t.rounds:7}"
        for t in timings
    ]
    if peak is not None:
        rows.append(f"{timings[0].member:14} {FILM_FRAMES} frames of {FILM_PIXELS} px: peak {peak:.2f} GiB")
    return "\n".join(rows)


@click.command()
@click.option("--out", type=click.Path(dir_okay=False), help="JSON file for the results.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's]")
@click.option("--members", default=",".join(MEMBERS), show_default=True, help="Comma-separated presets.")
@click.option("--seconds", default=20.0, show_default=True, help="Time per member.")
@click.option("--clock", default="wall", show_default=True, type=click.Choice(list(CLOCKS)))
@click.option("--films", default=",".join(FILMED), show_default=True, help="Members of which to film a scene.")
def main(out: str | None, threads: int | None, members: str, seconds: float, clock: str, films: str) -> None:
    """Time fields, and measure their memory."""
    if threads:
        torch.set_num_threads(threads)
    memory.keep_freed_memory()  # as the training loop does
    machine = facts()
    click.echo(", ".join(f"{key} {value}" for key, value in machine.items() if value is not None) + f", {clock} time")
    click.echo(f"{'':22} {'fwd ms':>9} {'fwd+bwd':>9} {'fwd/mm':>9} {'both/mm':>9} {'mm ms':>8} {'rounds':>7}")
    results = []
    for member in members.split(","):
        try:
            presets.resolve(member, data="")
        except ValueError as error:
            raise click.ClickException(f"--members={members}: {error}") from error
        timings = measure(member, clock, seconds)
        peak = film_peak_gib(member) if member in films.split(",") else None
        click.echo(lines(timings, peak))
        results.append({"timings": [asdict(t) for t in timings], "film_peak_gib": peak})
    if out:
        record = {"machine": machine, "clock": clock, "results": results}
        Path(out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
