"""Pictures and splats of a trained generator's heads."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click
import torch

import dnnlib
from gaussian import Gaussians, Geometry, save_ply
from torch_utils import distributed
from training import video
from training.checkpoint import CheckpointError, load_checkpoint, load_generator
from training.dataset import quantize
from training.visualize import color_depth, save_image_grid

DEFAULT_COLUMNS = 7


@click.command(context_settings={"show_default": True, "max_content_width": 120})
@click.option("--network", required=True, metavar="PKL", help="checkpoint: network-snapshot-NNNNNN.pkl")
@click.option("--outdir", required=True, metavar="DIR", help="where the files go")
@click.option("--seeds", default="0-3", metavar="LIST", help="one head per seed: 0-3,7")
@click.option("--trunc", type=float, default=0.8, help="truncation psi: 0 the mean head, 1 as drawn")
@click.option("--yaws", metavar="LIST", help="degrees, + towards world +x; by default 7 across the data's range")
@click.option("--resolution", type=click.IntRange(min=1), help="pixels of one view; by default the generator's own")
@click.option("--enlarge", type=click.IntRange(1, 16), default=1, help="enlarge the finished pictures so many times")
@click.option("--depth", is_flag=True, help="also write the same grid with depth as colour")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA where there is one"
)
@torch.no_grad()
def main(network, outdir, seeds, trunc, yaws, resolution, enlarge, depth, device):
    """Write a grid of heads (rows) seen from several yaws (columns), and one .ply of splats per head.

    \b
    python gen_samples.py --outdir=out --trunc=0.8 --seeds=0-3 --yaws=-45,0,45 --network=net.pkl
    """
    try:
        numbers = dnnlib.parse_ints(seeds)
        chosen = distributed.initialise(device)
        G = load_generator(network, chosen)
        angles = _yaws(yaws, video.yaw_range(load_checkpoint(network)))
        cameras = G.geometry.orbit(angles).to(chosen)
        # The published script maps its latents twice, which undoes truncation; here w goes straight to synthesis.
        ws = G.mapping(video.seed_latents(numbers, G.z_dim).to(chosen), psi=trunc)
        scene = G.synthesis(ws)
        out = G.render(scene, cameras.reshape(1, -1).expand(len(numbers), -1), resolution)
        folder = Path(outdir)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{Path(network).stem}-samples.png"]
        save_image_grid(quantize(out.image).flatten(0, 1), written[0], len(angles), enlarge)
        if depth:
            written.append(folder / f"{Path(network).stem}-depth.png")
            colors = color_depth(out.depth.flatten(0, 1), out.alpha.flatten(0, 1))
            save_image_grid(colors, written[-1], len(angles), enlarge)
        export = in_label_units(scene, G.geometry)
        for row, seed in enumerate(numbers):
            written.append(folder / f"{Path(network).stem}-seed{seed:04d}.ply")
            save_ply(written[-1], export, scene=row)
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        click.echo(path)


def in_label_units(scene: Gaussians, geometry: Geometry) -> Gaussians:
    """The scene in the world units of the data set's own labels (the generator's differ where world_scale is not 1)."""
    return dataclasses.replace(
        scene,
        means=scene.means * geometry.world_scale + scene.means.new_tensor(geometry.origin),
        log_scales=scene.log_scales + math.log(geometry.world_scale),
    )


def _yaws(text: str | None, data_range: tuple[float, float]) -> torch.Tensor:
    """Radians, from degrees or from the data's range. Raises ValueError for what is not a list of numbers."""
    if text is None:
        return torch.linspace(*data_range, DEFAULT_COLUMNS)
    try:
        degrees = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--yaws={text} is not a list of degrees such as -45,0,45") from None
    if not all(map(math.isfinite, degrees)):
        raise ValueError(f"--yaws={text}: every yaw must be finite")
    return torch.tensor(degrees).deg2rad()


if __name__ == "__main__":
    main()
