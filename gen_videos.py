"""Films the heads of a trained generator."""

from __future__ import annotations

import math
from pathlib import Path

import click
from tqdm import tqdm

import dnnlib
from torch_utils import distributed
from training import video, visualize
from training.checkpoint import CheckpointError, load_checkpoint, load_generator


@click.command(context_settings={"show_default": True, "max_content_width": 120})
@click.option("--network", required=True, metavar="PKL", help="checkpoint: network-snapshot-NNNNNN.pkl")
@click.option("--outdir", required=True, metavar="DIR", help="where the film goes")
@click.option("--seeds", default="0-3", metavar="LIST", help="one head per seed: 0-3,7")
@click.option("--grid", metavar="WxH", help="columns x rows of heads; by default as square as the seeds allow")
@click.option("--trunc", type=float, default=0.7, help="truncation psi: 0 the mean head, 1 as drawn")
@click.option("--path", type=click.Choice(video.PATHS), default="orbit", help="full turn, or a swing before the face")
@click.option("--w-frames", type=click.IntRange(min=1), default=120, help="frames of one round")
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), default=30, help="frames a second")
@click.option("--resolution", type=click.IntRange(min=1), help="pixels of one head; by default the generator's own")
@click.option("--enlarge", type=click.IntRange(1, 16), default=1, help="enlarge the finished frames so many times")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA where there is one"
)
def main(network, outdir, seeds, grid, trunc, path, w_frames, fps, resolution, enlarge, device):
    """Write a turntable of generated heads as an .mp4 whose last frame leads back to its first.

    \b
    python gen_videos.py --outdir=out --trunc=0.7 --seeds=0-3 --grid=2x2 --network=net.pkl
    """
    try:
        numbers = dnnlib.parse_ints(seeds)
        columns, rows = dnnlib.parse_grid(grid) if grid else _square_grid(len(numbers))
        if columns * rows != len(numbers):
            raise ValueError(f"--grid={grid} has {columns * rows} cells, --seeds={seeds} names {len(numbers)} heads")
        chosen = distributed.initialise(device)
        G = load_generator(network, chosen)
        low, high = video.yaw_range(load_checkpoint(network))
        cameras = video.camera_path(path, G.geometry, w_frames, max(-low, high))
        ws = G.mapping(video.seed_latents(numbers, G.z_dim).to(chosen), psi=trunc)
        with video.VideoWriter(Path(outdir) / f"{Path(network).stem}-{path}.mp4", fps) as film:
            frames = video.render_frames(G, ws, cameras, columns, resolution)
            for frame in tqdm(frames, total=w_frames, unit="frame", leave=False):
                film.write(visualize.enlarge(frame, enlarge))
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not film.has_ffmpeg:
        click.echo("No ffmpeg was found (pip install imageio-ffmpeg), so the frames are PNG files.")
    click.echo(film.target)


def _square_grid(count: int) -> tuple[int, int]:
    """Columns and rows of the squarest full grid of `count` cells, at least as wide as high."""
    rows = next(r for r in range(math.isqrt(count), 0, -1) if count % r == 0)
    return count // rows, rows


if __name__ == "__main__":
    main()
