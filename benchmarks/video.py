"""Shows where the time of a film's frames goes, for any preset, with random weights.

    python -m benchmarks.video --preset=cgs512
    python -m benchmarks.video --preset=cgs512 --heads=1
    python -m benchmarks.video --preset=cgs512 --heads=1 --against=../other-checkout

With several heads, which change into each other as in gen_videos.py, every frame is synthesised; with one, none is.
Heads of CGS-GAN are given the size, opacity and place that those of a trained network have: a random network's splats
are specks, which cost nothing to blend. With --against, two processes take turns, one over this checkout, one over the
other: at a film each, and then at each part of it. Processor time contains ffmpeg's.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import machine, turns
from benchmarks.training_step import FFHQ
from gaussian import Cameras
from torch_utils import distributed, memory
from training import checkpoint, presets
from training.families import family
from training.families.base import Generator
from training.families.cgs.generator import Generator as CgsGenerator
from training.families.cgs.hierarchy import COARSE_REACH
from training.visualization import latents, video

PARTS = {
    "film": "film",
    "frames": "its frames: synthesis, rendering, 8 bits",
    "synthesis": "synthesis alone (of one scene for all frames, if there is one head)",
    "rendering": "rendering alone",
    "encoding": "encoding alone",
}


def prepared(preset: str, heads: int, frames: int) -> tuple[Generator, Tensor, Cameras]:
    """Builds a generator with random weights, ws as gen_videos.py makes them, and cameras [F] on an orbit."""
    config = presets.resolve(preset, data="")
    torch.manual_seed(0)
    G = family(config.family).generator(config.generator).eval().requires_grad_(False)
    cameras = FFHQ.orbit(torch.linspace(-0.4, 0.4, frames))
    G.rasterizer, G.info = config.rasterizer, checkpoint.run_info(config, FFHQ, cameras.labels)
    told = FFHQ.orbit(torch.zeros(heads))
    ws = G.mapping(latents.seed_latents(list(range(heads)), G.z_dim), told, psi=0.7)  # [heads, num_ws, w_dim]
    as_trained(G, ws)
    if heads > 1:
        ws = latents.interpolate(ws[:, None], frames)  # [F, 1, num_ws, w_dim]
    return G, ws, cameras


def as_trained(G: Generator, ws: Tensor) -> None:
    """Moves the biases of a CGS-GAN's heads so that its splats look like those of a trained network.

    Measured on heads of 32 px after 100 kimg: opacities of 0.9 and more, the finest splats as large as they may be (a
    standard deviation of half a pixel to one), 45 % of the image covered. Here: opacities of about 0.8 at the finest
    level, 1 px, 42 % covered. Other families stay as they are.
    """
    if not isinstance(G, CgsGenerator):
        return
    heads: Any = G.point_gen
    for kind in (heads.anchors, heads.gaussians):
        kind["opacity"][0].bias.add_(4.6)
        for head in kind["scale"]:
            head.bias.add_(3.5)
            head.weight.mul_(10)
    place = heads.anchors["xyz"][0]
    place.weight.mul_(1.6)
    coarse = G.synthesis(ws[:1]).anchors.means[0, : G.config.num_points]
    place.bias.sub_(coarse.mean(dim=0) / COARSE_REACH)


def keeps_memory() -> bool:
    """Tells whether the checkout's gen_videos.py keeps freed memory."""
    return "keep_freed_memory" in Path("gen_videos.py").read_text(encoding="utf-8")


def film(G: Generator, ws: Tensor, cameras: Cameras, look: video.Look | None = None) -> None:
    """Renders and encodes a film."""
    encode(video.render_frames(G, ws, cameras, 1, look or video.Look()))


def encode(frames: Iterable[np.ndarray]) -> None:
    """Writes frames to a film."""
    with tempfile.TemporaryDirectory() as folder, video.VideoWriter(Path(folder) / "film.mp4", fps=30) as writer:
        for frame in frames:
            writer.write(frame)


def parts(G: Generator, ws: Tensor, cameras: Cameras) -> dict[str, Callable[[], object]]:
    """Returns what makes a film, and what it consists of, each to be done alone."""
    moving = ws.ndim == 4
    part = slice(0, 8)  # frames that are rendered in one call
    some = cameras[part].reshape(-1, 1) if moving else cameras[part].reshape(1, -1)
    scene = G.synthesis(ws[part, 0] if moving else ws)
    frames = list(video.render_frames(G, ws, cameras, 1))

    def render() -> None:
        for _ in range(math.ceil(len(cameras) / 8)):
            G.render(scene, some)

    def synthesise() -> None:
        for _ in range(math.ceil(len(cameras) / 8) if moving else 1):
            G.synthesis(ws[part, 0] if moving else ws)

    return {
        "film": lambda: film(G, ws, cameras),
        "frames": lambda: list(video.render_frames(G, ws, cameras, 1)),
        "synthesis": synthesise,
        "rendering": render,
        "encoding": lambda: encode(frames),
    }


@click.command()
@click.option("--preset", default="cgs512", show_default=True)
@click.option("--heads", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--frames", default=16, show_default=True, type=click.IntRange(min=1), help="of the film")
@click.option("--against", type=click.Path(), help="compare with this checkout instead")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1), help="turns with --against")
@click.option("--part", type=click.Choice(PARTS), help="with --against, compare this alone")
@torch.no_grad()
def main(preset: str, heads: int, frames: int, against: str | None, rounds: int, part: str | None) -> None:
    """Print the time of a film's frames."""
    what = f"{preset}, {frames} frames of {heads} heads"
    if against and not turns.is_worker():
        print(f"{what}; {machine.in_one_line()}; milliseconds are those of a frame")
        for name in [part] if part else PARTS:
            arguments = [*sys.argv[1:], *([] if part else [f"--part={name}"])]
            try:
                turns.report(turns.compare(__file__, arguments, Path(against), rounds), name, frames)
            except ValueError as error:
                raise click.ClickException(str(error)) from error
        return
    distributed.initialise("cpu")
    G, ws, cameras = prepared(preset, heads, frames)
    if turns.is_worker():
        if keeps_memory():
            memory.keep_freed_memory()
        turns.serve(parts(G, ws, cameras)[part or "film"])
        return
    memory.keep_freed_memory()
    print(f"{what}; {machine.in_one_line()}; milliseconds are those of a frame")
    print("         wall  processor")
    film(G, ws, cameras)  # warm-up
    for name, work in parts(G, ws, cameras).items():
        start = turns.clocks()
        work()
        processor, wall = ((now - then) / frames * 1e3 for now, then in zip(turns.clocks(), start, strict=True))
        print(f"    {wall:9.1f}  {processor:9.1f}  {PARTS[name]}")
    print(f"peak memory of the process: {memory.peaks(torch.device('cpu'))['cpu_peak_gib']:.2f} GiB")


if __name__ == "__main__":
    main()
