"""Pictures and splats of a trained generator's heads."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click
import torch
from click.core import ParameterSource

import dnnlib
from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, option
from gaussian import Gaussians, Geometry, save_ply
from torch_utils import distributed
from training.checkpoint import CheckpointError, load_checkpoint, load_generator
from training.visualization import latents, video
from training.visualization.grids import save_image_grid

DEFAULT_COLUMNS = 7
PUBLISHED_SEED, PUBLISHED_IDS = 42, 4  # of the published sample script's draw
AT_LEAST_1, FROM_0 = click.IntRange(min=1), click.IntRange(min=0)


# fmt: off
FILES = group(
    "Files",
    option("--network", "--pkl", "network", required=True, metavar="PKL",
           help="checkpoint: network-snapshot-NNNNNN.pkl"),
    option("--outdir", "--save-dir", "outdir", default="results", metavar="DIR", help="where the files go"),
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
)

HEADS = group(
    "Heads",
    option("--seeds", default="0-3", metavar="LIST", help="one head per seed: 0-3,7"),
    option("--seed", type=FROM_0, show_default=str(PUBLISHED_SEED),
           help="with --num-ids: all heads from one seed, drawn as by the published sample script"),
    option("--num-ids", type=AT_LEAST_1, show_default=str(PUBLISHED_IDS), help="how many"),
    option("--w-file", metavar="NPZ", help="heads from such a file, in place of seeds"),
    option("--w-out", metavar="NPZ", help="also keep the heads' ws in this file"),
    option("--trunc", "--truncation-psi", "trunc", type=float, default=0.8, help="psi: 0 the mean head, 1 as drawn"),
)

PICTURES = group(
    "Pictures",
    option("--yaws", metavar="LIST", show_default=f"{DEFAULT_COLUMNS} across the data's range",
           help="degrees, + towards world +x"),
    option("--radius", type=click.FloatRange(min=0, min_open=True), show_default="the data's",
           help="distance of the cameras from the centre, in the generator's units"),
    option("--show", default="image", metavar="LIST", type=ChoiceList(video.PANELS),
           help=f"a grid each, of {','.join(video.PANELS)}"),
    option("--images", is_flag=True, help="also every head and view as a picture of its own"),
    option("--resolution", type=AT_LEAST_1, show_default="the generator's own", help="pixels of one view"),
    option("--enlarge", type=click.IntRange(1, 16), default=1, help="enlarge the finished pictures so many times"),
    option("--background", metavar="white|black|R,G,B", show_default="the training's, or white",
           help="numbers in 0..1"),
)

SPLATS = group(
    "Splats",
    option("--ply", type=click.Choice(["scene", "levels", "both", "none"]), default="scene",
           help="a .ply per head, one per head and level of the hierarchy, both, or none"),
)
# fmt: on


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@HEADS
@PICTURES
@SPLATS
@click.pass_context
@torch.no_grad()
def main(ctx, network, outdir, device, w_out, yaws, radius, show, images, enlarge, ply, **choices):
    """Draw a grid of heads (rows) seen from several yaws (columns), and write the splats of each head as a .ply.

    \b
    python gen_samples.py --outdir=out --trunc=0.8 --seeds=0-3 --yaws=-45,0,45 --network=net.pkl
    """
    given = {name for name in ctx.params if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    try:
        chosen = distributed.initialise(device)
        G = load_generator(network, chosen)
        look = video.Look(choices["resolution"], video.shown_background(G, choices["background"]))
        angles = _yaws(yaws, video.yaw_range(load_checkpoint(network)))
        geometry = dataclasses.replace(G.geometry, radius=radius or G.geometry.radius)
        names, ws = _heads(G, given, **choices)
        scene = G.synthesis(ws.to(chosen))
        cameras = geometry.orbit(angles).to(chosen).reshape(1, -1).expand(len(names), -1)
        stem = Path(outdir) / Path(network).stem
        stem.parent.mkdir(parents=True, exist_ok=True)
        written = []
        for kind in show:
            pictures = video.render_panels(G, scene, cameras, dataclasses.replace(look, show=(kind,)))
            suffix = "samples" if kind == "image" else kind
            written.append(Path(f"{stem}-{suffix}.png"))
            save_image_grid(pictures.flatten(0, 1), written[-1], len(angles), enlarge)
            if images:
                written += _save_each(pictures, stem, names, suffix, enlarge)
        written += _save_splats(in_label_units(scene, G.geometry), stem, names, ply)
        if w_out:
            latents.save_ws(w_out, ws)
            written.append(Path(w_out))
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


def _heads(G, given, seeds, seed, num_ids, w_file, trunc, **_):
    """A name for each head, and its ws [B, num_ws, w_dim].

    The published script maps its latents twice, which undoes truncation; here w goes straight to synthesis.
    """
    sources = [name for name in ("seeds", "w_file", "seed", "num_ids") if name in given]
    if len(set(sources) - {"num_ids" if "seed" in sources else ""}) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in sources)
        raise ValueError(f"{flags} both say which heads; give --seeds, --seed with --num-ids, or --w-file")
    if w_file is not None:
        if "trunc" in given:
            raise ValueError(f"--w-file={w_file} holds finished heads, so --trunc means nothing; leave it out")
        ws = latents.load_ws(w_file, G)
        return [f"w{i:04d}" for i in range(len(ws))], ws
    if seed is not None or num_ids is not None:
        seed, count = PUBLISHED_SEED if seed is None else seed, num_ids or PUBLISHED_IDS
        names, z = [f"seed{seed:04d}-{i}" for i in range(count)], latents.published_latents(seed, count, G.z_dim)
    else:
        numbers = dnnlib.parse_ints(seeds)
        names, z = [f"seed{number:04d}" for number in numbers], latents.seed_latents(numbers, G.z_dim)
    return names, G.mapping(z.to(G.w_avg.device), psi=trunc)


def _save_each(pictures, stem, names, suffix, enlarge):
    """pictures: [B, V, 3, H, W]."""
    kind = "" if suffix == "samples" else f"-{suffix}"
    paths = []
    for name, views in zip(names, pictures, strict=True):
        for k, view in enumerate(views):
            paths.append(Path(f"{stem}-{name}-view{k}{kind}.png"))
            save_image_grid(view[None], paths[-1], 1, enlarge)
    return paths


def _save_splats(scene, stem, names, which):
    paths = []
    for row, name in enumerate(names):
        if which in ("scene", "both"):
            paths.append(Path(f"{stem}-{name}.ply"))
            save_ply(paths[-1], scene, row)
        if which in ("levels", "both"):
            for level in range(len(scene.level_sizes)):
                paths.append(Path(f"{stem}-{name}-level{level}.ply"))
                save_ply(paths[-1], scene.select(level), row)
    return paths


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
