"""Shows where the time of a film's frames goes, for any preset, with random weights.

    python -m benchmarks.video --preset=cgs512
    python -m benchmarks.video --preset=cgs512 --heads=1
    python -m benchmarks.video --preset=cgs512 --against=../other-checkout

With several heads, which change into each other as in gen_videos.py, every frame is synthesised; with one, none is.
The time of ffmpeg, a process of its own, shows in the wall time alone. With --against, two processes take turns at a
film each: one over this checkout, one over the other.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks import machine, turns
from benchmarks.training_step import FFHQ
from gaussian import Cameras
from torch_utils import distributed, memory
from training import checkpoint, presets
from training.families import family
from training.families.base import Generator
from training.visualization import latents, video


def prepared(preset: str, heads: int, frames: int) -> tuple[Generator, Tensor, Cameras]:
    """Builds a generator with random weights, ws as gen_videos.py makes them, and cameras [F] on an orbit."""
    config = presets.resolve(preset, data="")
    torch.manual_seed(0)
    G = family(config.family).generator(config.generator).eval().requires_grad_(False)
    cameras = FFHQ.orbit(torch.linspace(-0.4, 0.4, frames))
    G.rasterizer, G.info = config.rasterizer, checkpoint.run_info(config, FFHQ, cameras.labels)
    told = FFHQ.orbit(torch.zeros(heads))
    ws = G.mapping(latents.seed_latents(list(range(heads)), G.z_dim), told, psi=0.7)  # [heads, num_ws, w_dim]
    if heads > 1:
        ws = latents.interpolate(ws[:, None], frames)  # [F, 1, num_ws, w_dim]
    return G, ws, cameras


def keeps_memory() -> bool:
    """Tells whether the checkout's gen_videos.py keeps freed memory."""
    return "keep_freed_memory" in Path("gen_videos.py").read_text(encoding="utf-8")


def film(G: Generator, ws: Tensor, cameras: Cameras, look: video.Look | None = None) -> None:
    """Renders and encodes a film."""
    with tempfile.TemporaryDirectory() as folder, video.VideoWriter(Path(folder) / "film.mp4", fps=30) as writer:
        for frame in video.render_frames(G, ws, cameras, 1, look or video.Look()):
            writer.write(frame)


def parts(G: Generator, ws: Tensor, cameras: Cameras) -> dict[str, float]:
    """Returns the wall seconds per frame of a film and of what it consists of, each done alone."""
    count = len(cameras)

    def seconds(start: float) -> float:
        return (time.perf_counter() - start) / count

    film(G, ws, cameras)  # warm-up
    start = time.perf_counter()
    film(G, ws, cameras)
    result = {"film": seconds(start)}
    start = time.perf_counter()
    frames = list(video.render_frames(G, ws, cameras, 1))
    result["synthesis, rendering, 8 bits"] = seconds(start)
    start = time.perf_counter()
    scene = G.synthesis(ws[:, 0] if ws.ndim == 4 else ws)
    result["synthesis alone" if ws.ndim == 4 else "synthesis alone, once"] = seconds(start)
    start = time.perf_counter()
    G.render(scene, cameras.reshape(-1, 1) if ws.ndim == 4 else cameras.reshape(1, -1))
    result["rendering alone, in one call"] = seconds(start)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, video.VideoWriter(Path(folder) / "film.mp4", fps=30) as writer:
        for frame in frames:
            writer.write(frame)
    result["encoding alone"] = seconds(start)
    return result


@click.command()
@click.option("--preset", default="cgs512", show_default=True)
@click.option("--heads", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--frames", default=16, show_default=True, type=click.IntRange(min=1), help="of the film")
@click.option("--against", type=click.Path(), help="compare with this checkout instead")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1), help="turns with --against")
@torch.no_grad()
def main(preset: str, heads: int, frames: int, against: str | None, rounds: int) -> None:
    """Print the time of a film's frames."""
    what = f"{preset}, {frames} frames of {heads} heads"
    if against and not turns.is_worker():
        try:
            turns.report(turns.compare(__file__, sys.argv[1:], Path(against), rounds), what)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        return
    distributed.initialise("cpu")
    G, ws, cameras = prepared(preset, heads, frames)
    if turns.is_worker():
        if keeps_memory():
            memory.keep_freed_memory()
        turns.serve(lambda: film(G, ws, cameras))
        return
    memory.keep_freed_memory()
    print(f"{what}; {machine.in_one_line()}")
    for name, seconds in parts(G, ws, cameras).items():
        print(f"    {seconds * 1e3:9.1f} ms a frame  {name}")


if __name__ == "__main__":
    main()
