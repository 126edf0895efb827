"""Films the heads of a trained generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource
from torch import Tensor
from tqdm import tqdm

import dnnlib
from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, option, version
from gaussian import Cameras
from torch_utils import distributed
from training.checkpoint import CheckpointError, load_generator
from training.families.base import Generator
from training.families.inspection import Inspection
from training.visualization import grids, latents, video
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
    option("--seeds", default="0-3", metavar="LIST",
           help="one head per seed: 0-3,7; a network whose mapping is told a camera is told the data's frontal one"),
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


@dataclass(frozen=True)
class HeadChoice:
    """Says which heads appear."""

    seeds: str  # whole numbers and ranges, one head each
    w_file: str | None  # .npz of finished heads, in place of seeds
    trunc: float  # psi of the heads from seeds
    given: frozenset[str]  # names of the options that the user gave

    def ws(self, G: Generator) -> Tensor:
        """Returns ws [K, num_ws, w_dim] of all heads. Raises ValueError if the choice contradicts itself."""
        if self.w_file is None:
            seeds = dnnlib.parse_flag("--seeds", self.seeds, dnnlib.parse_ints)
            return latents.frontal_ws(G, latents.seed_latents(seeds, G.z_dim), self.trunc)
        for name in ("seeds", "trunc"):
            if name in self.given:
                raise ValueError(
                    f"--w-file={self.w_file} holds finished heads, so --{name} means nothing; give one of the two"
                )
        return latents.load_ws(self.w_file, G)


@dataclass(frozen=True)
class CameraChoice:
    """Says where the camera goes, and for how long."""

    path: str  # one of PATHS, or a file of cameras
    w_frames: int  # frames from one head of a cell to its next
    given: frozenset[str]  # names of the options that the user gave

    @property
    def name(self) -> str:
        """Returns the path's part of the film's file name."""
        return Path(self.path).stem if self.path.endswith(".json") else self.path

    def cameras(self, G: Generator, heads_per_cell: int) -> Cameras:
        """Returns cameras [F], one per frame. Raises ValueError for an unknown path or a file of no cameras."""
        if self.path.endswith(".json"):
            if "w_frames" in self.given:
                raise ValueError(
                    f"--path={self.path} holds one camera per frame, so --w-frames means nothing; leave it out"
                )
            return read_cameras(self.path, G.geometry)
        yaw_limits = video.checkpoint_info(G).yaw_limits
        frames = heads_per_cell * self.w_frames
        return dnnlib.parse_flag("--path", self.path, lambda kind: camera_path(kind, G.geometry, frames, yaw_limits))


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@HEADS
@FILM
@HIERARCHY
@version
@click.pass_context
def main(
    ctx: click.Context,
    network: str, outdir: str, device: str,
    seeds: str, w_file: str | None, trunc: float, grid: str,
    path: str, w_frames: int, fps: float, show: tuple[str, ...], resolution: int | None, enlarge: int,
    background: str | None,
    levels: tuple[int, ...] | None, anchors: bool, point: int | None, nearest: int, opaque: bool, scale: float,
    color_levels: bool,
) -> None:  # fmt: skip
    """Film generated heads as an .mp4 whose last frame leads back to its first.

    \b
    python gen_videos.py --outdir=out --trunc=0.7 --seeds=0-3 --grid=2x2 --network=net.pkl
    python gen_videos.py --outdir=out --path=front --show=image,depth,normals --network=net.pkl
    """
    ctx.with_resource(dnnlib.stoppable())
    given = frozenset(n for n in ctx.params if ctx.get_parameter_source(n) == ParameterSource.COMMANDLINE)
    head_choice, camera_choice = HeadChoice(seeds, w_file, trunc, given), CameraChoice(path, w_frames, given)
    inspection = Inspection(levels, anchors, point, nearest, opaque, scale, color_levels)
    try:
        columns, rows = dnnlib.parse_flag("--grid", grid, dnnlib.parse_grid)
        G = load_generator(network, distributed.initialise(device))
        view = video.view_of(G, inspection)
        look = video.Look(resolution, video.shown_background(G, background), show, view)
        heads = head_choice.ws(G)
        heads_per_cell, rest = divmod(len(heads), columns * rows)
        if rest or not heads_per_cell:
            raise ValueError(f"--grid={grid} has {columns * rows} cells: {len(heads)} heads are no multiple of that")
        cameras = camera_choice.cameras(G, heads_per_cell)
        ws = _changing(heads, columns * rows, len(cameras)) if heads_per_cell > 1 else heads
        target = dnnlib.make_folder(outdir) / f"{Path(network).stem}-{camera_choice.name}.mp4"
        with video.VideoWriter(target, fps) as film:
            frames = video.render_frames(G, ws.to(G.device), cameras, columns, look)
            for frame in tqdm(frames, total=len(cameras), unit="frame", leave=False, disable=None):
                film.write(grids.enlarge(frame, enlarge))
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    if not film.has_ffmpeg:
        click.echo("No ffmpeg was found (pip install imageio-ffmpeg), so the frames are PNG files.")
    click.echo(film.target)


def _changing(heads: Tensor, cells: int, num_frames: int) -> Tensor:
    """Returns ws [F, cells, num_ws, w_dim]: each cell changes through its share of the heads [K, num_ws, w_dim]."""
    return latents.interpolate(heads.unflatten(0, (cells, -1)).transpose(0, 1), num_frames)


if __name__ == "__main__":
    main()
