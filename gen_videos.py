"""Films the heads of a trained generator."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource
from tqdm import tqdm

import dnnlib
from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, option
from torch_utils import distributed
from training.checkpoint import CheckpointError, load_checkpoint, load_generator
from training.families.cgs.inspection import Inspection
from training.visualization import grids as visualize
from training.visualization import latents, video
from training.visualization.camera_paths import PATHS, camera_path, read_cameras

AT_LEAST_1, FROM_0 = click.IntRange(min=1), click.IntRange(min=0)
ABOVE_0 = click.FloatRange(min=0, min_open=True)


def _levels(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else tuple(dnnlib.parse_ints(value))
    except ValueError as error:
        raise click.UsageError(f"--levels={value}: {error}", ctx) from None


# fmt: off
FILES = group(
    "Files",
    option("--network", required=True, metavar="PKL", help="checkpoint: network-snapshot-NNNNNN.pkl"),
    option("--outdir", required=True, metavar="DIR", help="where the film goes"),
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
)

HEADS = group(
    "Heads",
    option("--seeds", default="0-3", metavar="LIST", help="one head per seed: 0-3,7"),
    option("--w-file", metavar="NPZ", help="heads from a file of gen_samples.py --w-out, in place of seeds"),
    option("--trunc", "--truncation-psi", "trunc", type=float, default=0.7, help="psi: 0 the mean head, 1 as drawn"),
    option("--grid", metavar="WxH", default="1x1",
           help="columns x rows of heads; with more heads than cells, each cell changes smoothly through its share"),
)

FILM = group(
    "Film",
    option("--path", default="orbit", metavar="|".join([*PATHS, "FILE.json"]),
           help="front: round an ellipse before the face; orbit: a full turn; wiggle: from side to side as far as "
           "the data's cameras; or a list of labels of 25 numbers (or a dataset.json), one camera per frame"),
    option("--w-frames", type=AT_LEAST_1, default=120, help="frames from one head of a cell to its next"),
    option("--fps", type=ABOVE_0, default=30, help="frames a second"),
    option("--show", default="image", metavar="LIST", type=ChoiceList(video.PANELS),
           help=f"side by side, of {','.join(video.PANELS)}"),
    option("--resolution", type=AT_LEAST_1, show_default="the generator's own", help="pixels of one head"),
    option("--enlarge", type=click.IntRange(1, 16), default=1, help="enlarge the finished frames so many times"),
    option("--background", metavar="white|black|R,G,B", show_default="the training's, or white",
           help="numbers in 0..1"),
)

HIERARCHY = group(
    "Inside the hierarchy of splats",
    option("--levels", metavar="LIST", callback=_levels, show_default="all",
           help="only these levels, 0 the coarsest: 0-2,4"),
    option("--anchors", is_flag=True, help="the anchors that splats hang on, in place of the splats"),
    option("--point", type=FROM_0, metavar="N", help="only what descends from this initial point"),
    option("--nearest", type=FROM_0, default=0, metavar="K", help="and from the K initial points nearest to it"),
    option("--opaque", is_flag=True, help="every opacity 1"),
    option("--scale", type=ABOVE_0, default=1, help="factor on the size of every splat"),
    option("--color-levels", is_flag=True, help="each level in a colour of its own"),
)
# fmt: on


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@HEADS
@FILM
@HIERARCHY
@click.pass_context
def main(ctx, network, outdir, device, path, fps, enlarge, **choices):
    """Film generated heads as an .mp4 whose last frame leads back to its first.

    \b
    python gen_videos.py --outdir=out --trunc=0.7 --seeds=0-3 --grid=2x2 --network=net.pkl
    python gen_videos.py --outdir=out --path=front --show=image,depth,normals --network=net.pkl
    """
    given = {name for name in ctx.params if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    try:
        columns, rows = dnnlib.parse_grid(choices["grid"])
        chosen = distributed.initialise(device)
        G = load_generator(network, chosen)
        look = _look(G, **choices)
        keys = _heads(G, given, **choices)
        rounds, rest = divmod(len(keys), columns * rows)
        if rest or not rounds:
            cells = columns * rows
            raise ValueError(f"--grid={choices['grid']} has {cells} cells: {len(keys)} heads are no multiple of that")
        cameras = _cameras(G, network, path, given, rounds * choices["w_frames"])
        ws = keys if rounds == 1 else _changing(keys.to(chosen), columns * rows, len(cameras))
        name = f"{Path(network).stem}-{Path(path).stem if path.endswith('.json') else path}.mp4"
        with video.VideoWriter(Path(outdir) / name, fps) as film:
            frames = video.render_frames(G, ws.to(chosen), cameras, columns, look)
            for frame in tqdm(frames, total=len(cameras), unit="frame", leave=False, disable=None):
                film.write(visualize.enlarge(frame, enlarge))
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not film.has_ffmpeg:
        click.echo("No ffmpeg was found (pip install imageio-ffmpeg), so the frames are PNG files.")
    click.echo(film.target)


def _look(G, resolution, background, show, levels, anchors, point, nearest, opaque, scale, color_levels, **_):
    inspection = Inspection(levels, anchors, point, nearest, opaque, scale, color_levels)
    inspection.check(G)
    return video.Look(resolution, video.shown_background(G, background), show, inspection)


def _heads(G, given, seeds, w_file, trunc, **_):
    """ws [K, num_ws, w_dim] of all heads that appear."""
    if w_file is None:
        return G.mapping(latents.seed_latents(dnnlib.parse_ints(seeds), G.z_dim).to(G.w_avg.device), psi=trunc)
    for name in ("seeds", "trunc"):
        if name in given:
            raise ValueError(f"--w-file={w_file} holds finished heads, so --{name} means nothing; give one of the two")
    return latents.load_ws(w_file, G)


def _cameras(G, network, path, given, num_frames):
    if path.endswith(".json"):
        if "w_frames" in given:
            raise ValueError(f"--path={path} holds one camera per frame, so --w-frames means nothing; leave it out")
        return read_cameras(path, G.geometry)
    limits = video.yaw_range(load_checkpoint(network)) if path == "wiggle" else (0.0, 0.0)
    return camera_path(path, G.geometry, num_frames, limits)


def _changing(keys, cells, num_frames):
    """ws [F, cells, num_ws, w_dim]: the heads in the cells' order, a cell's own ones one after the other."""
    return latents.interpolate(keys.unflatten(0, (cells, -1)).transpose(0, 1), num_frames)


if __name__ == "__main__":
    main()
