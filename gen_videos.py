"""Films the heads of a trained generator."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from tqdm import tqdm

from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, option, version
from dnnlib.numbers import FINITE, FloatRange
from gaussian import Cameras
from torch_utils import distributed, memory
from training.checkpoint import CheckpointError, load_generator
from training.families.base import Generator
from training.families.inspection import Inspection
from training.visualization import grids, latents, video
from training.visualization.camera_paths import PATHS, breathing, camera_path, read_cameras
from training.visualization.control import POSE, Control
from training.visualization.latents import Heads
from training.visualization.look_options import LOOKS
from training.visualization.sweeps import Sweep

AT_LEAST_1 = click.IntRange(min=1)


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
           help="one head per seed: 0-3,7"),
    option("--class", "classes", metavar="LIST", show_default="drawn from the seed",
           help="of a network of classes: every seed in each of these, 1,2,5-10"),
    option("--w-file", metavar="NPZ", help="heads from a file of gen_samples.py --w-out, in place of seeds"),
    option("--trunc", "--truncation-psi", "trunc", type=FINITE, default=0.7, help="psi: 0 the mean head, 1 as drawn"),
    option("--grid", metavar="WxH", default="1x1",
           help="columns x rows of heads; with more heads than cells, each cell changes through its share"),
    option("--interpolate", type=click.Choice(["w", "z", "none"]), default="w",
           help="from head to head: smoothly through w, straight through z, or none: a film of each head"),
    option("--mapping-camera", type=click.Choice(["frontal", "film"]), default="frontal",
           help="what a network whose mapping is told a camera is told: the data's frontal one, or that of each frame"),
)

FILM = group(
    "Film",
    option("--path", default="orbit", metavar="|".join([*PATHS, "FILE.json"]),
           help="front: round an ellipse before the face; circle: round a circle there; orbit: a full turn; wiggle: "
           "from side to side as far as the data's cameras; or a list of labels of 25 numbers (or a dataset.json), one "
           "camera per frame"),
    option("--turns", type=click.IntRange(1, 1000), default=1, help="times round the path"),
    option("--w-frames", type=click.IntRange(1, 1_000_000), default=120,
           help="frames from one head of a cell to its next"),
    option("--fps", type=FloatRange(0.1, 1000), default=30, help="frames a second"),
    option("--fov-breathing", type=FINITE, default=0, metavar="DEG",
           help="the field of view widens, by up to twice so many degrees, and narrows again"),
    option("--show", default="image", metavar="LIST", type=ChoiceList(video.PANELS),
           help=f"side by side, of {','.join(video.PANELS)}"),
    option("--resolution", type=AT_LEAST_1, show_default="the generator's own", help="pixels of one head"),
    option("--enlarge", type=click.IntRange(1, 16), default=1, help="enlarge the finished frames so many times"),
    option("--background", metavar="white|black|R,G,B", show_default="the training's, or white",
           help="numbers in 0..1"),
)
# fmt: on


# fmt: off
CONTROL = group(
    "Control",
    option("--control", metavar="pose|BLOCK",
           help="change one thing alone: the pose, on an ellipse that grows and shrinks, or a block of a network whose "
           "latents have named ones: expression, texture, illumination, ...; identity leads through the heads and "
           "holds the expression. A grid of heads by keys goes beside the film"),
    option("--fix-subject", is_flag=True, help="all cells show the first head, each with keys of its own"),
    option("--key-expressions", metavar="FILE.json", show_default="the mean and 6 draws",
           help="what the block runs through: [[its numbers], ...], in standard deviations"),
    option("--direction", metavar="FILE[:NAME]:AMOUNT",
           help="move each head to and fro along a direction of find_directions.py, or along all of the file, so many "
           "standard deviations; head after head of a cell, direction after direction, --w-frames for each"),
)
# fmt: on


@dataclass(frozen=True)
class HeadChoice:
    """Says which heads appear, and how they change into each other."""

    seeds: str  # whole numbers and ranges, one head each
    w_file: str | None  # .npz of finished heads, in place of seeds
    trunc: float  # psi of the heads from seeds
    interpolate: str  # "w", "z" or "none"
    mapping_camera: str  # "frontal" or "film"
    classes: str | None  # of the heads from seeds
    given: frozenset[str]  # names of the options that the user gave

    def heads(self, G: Generator) -> Heads:
        """Returns the heads. Raises ValueError if the choice contradicts itself, or asks for what G does not have."""
        if self.mapping_camera == "film" and not G.mapping_follows_camera:
            raise ValueError("--mapping-camera=film: the mapping of this network is told no camera")
        if self.w_file is None:
            seeds = dnnlib.parse_flag("--seeds", self.seeds, dnnlib.parse_ints)
            return latents.seed_heads(G, seeds, self.trunc, self.classes)
        clashing = [f"--{name}" for name in ("seeds", "trunc") if name in self.given]
        clashing += [f"--class={self.classes}"] if self.classes is not None else []
        clashing += ["--interpolate=z"] if self.interpolate == "z" else []
        clashing += ["--mapping-camera=film"] if self.mapping_camera == "film" else []
        for flag in clashing:
            raise ValueError(
                f"--w-file={self.w_file} holds finished heads, so {flag} means nothing; give one of the two"
            )
        ws = latents.load_ws(self.w_file, G)
        return Heads([f"w{i:04d}" for i in range(len(ws))], ws=ws)


@dataclass(frozen=True)
class CameraChoice:
    """Says where the camera goes, and for how long."""

    path: str  # one of PATHS, or a file of cameras
    w_frames: int  # frames from one head of a cell to its next
    turns: int  # times round the path
    fov_breathing: float  # degrees by twice which, at most, the field of view widens
    given: frozenset[str]  # names of the options that the user gave

    @property
    def name(self) -> str:
        """Returns the path's part of the film's file name."""
        return Path(self.path).stem if self.path.endswith(".json") else self.path

    def cameras(self, G: Generator, heads_per_cell: int) -> Cameras:
        """Returns cameras [F], one per frame. Raises ValueError for an unknown path or a file of no cameras."""
        cameras = self._path(G, heads_per_cell)
        return breathing(cameras, self.fov_breathing) if self.fov_breathing else cameras

    def _path(self, G: Generator, heads_per_cell: int) -> Cameras:
        if self.path.endswith(".json"):
            for name in ("w_frames", "turns"):
                if name in self.given:
                    flag = "--" + name.replace("_", "-")
                    raise ValueError(
                        f"--path={self.path} holds one camera per frame, so {flag} means nothing; leave it out"
                    )
            return read_cameras(self.path, G.geometry)
        yaw_limits, frames = video.checkpoint_info(G).yaw_limits, heads_per_cell * self.w_frames
        return dnnlib.parse_flag(
            "--path", self.path, lambda kind: camera_path(kind, G.geometry, frames, yaw_limits, self.turns)
        )


@dataclass(frozen=True)
class ChangeChoice:
    """Says what changes in heads that are filmed, besides the camera and from head to head."""

    control: str | None
    fix_subject: bool
    key_expressions: str | None
    direction: str | None

    def change(self, interpolate: str, mapping_camera: str) -> Control | Sweep | None:
        """Returns what changes; None: nothing. Raises ValueError if the options contradict each other."""
        if self.control is None:
            for flag, given in (("--fix-subject", self.fix_subject), ("--key-expressions", self.key_expressions)):
                if given:
                    raise ValueError(f"{flag} goes with --control=BLOCK")
        named = {"--control": self.control, "--direction": self.direction}
        chosen = [f"{flag}={value}" for flag, value in named.items() if value is not None]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} both say how heads change; give one of the two")
        if chosen and interpolate != "w":
            raise ValueError(f"{chosen[0]} says how heads change, so --interpolate={interpolate} means nothing")
        if self.control is not None:
            return Control(self.control, self.fix_subject, self.key_expressions)
        if self.direction is None:
            return None
        if mapping_camera == "film":
            raise ValueError("--direction moves the heads of one camera; leave out --mapping-camera=film")
        return dnnlib.parse_flag("--direction", self.direction, Sweep.parse)


def shared_among(cells: int, heads: int, grid: str) -> int:
    """Returns the heads of each cell of a film. Raises ValueError if cells get unequally many, or none."""
    each, rest = divmod(heads, cells)
    if rest or not each:
        raise ValueError(f"--grid={grid} has {cells} cells: {heads} heads are no multiple of that")
    return each


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@HEADS
@FILM
@CONTROL
@LOOKS
@version
@click.pass_context
@torch.no_grad()
def main(
    ctx: click.Context,
    network: str, outdir: str, device: str,
    seeds: str, classes: str | None, w_file: str | None, trunc: float, grid: str, interpolate: str, mapping_camera: str,
    path: str, turns: int, w_frames: int, fps: float, fov_breathing: float, show: tuple[str, ...],
    resolution: int | None, enlarge: int, background: str | None,
    control: str | None, fix_subject: bool, key_expressions: str | None, direction: str | None,
    **looks: Any,
) -> None:  # fmt: skip
    """Film generated heads as an .mp4 whose last frame leads back to its first.

    \b
    python gen_videos.py --outdir=out --trunc=0.7 --seeds=0-3 --grid=2x2 --network=net.pkl
    python gen_videos.py --outdir=out --path=front --show=image,depth,normals --network=net.pkl
    """
    ctx.with_resource(dnnlib.stoppable())
    given = frozenset(n for n in ctx.params if ctx.get_parameter_source(n) == ParameterSource.COMMANDLINE)
    head_choice = HeadChoice(seeds, w_file, trunc, interpolate, mapping_camera, classes, given)
    try:
        choice = ChangeChoice(control, fix_subject, key_expressions, direction)
        controlled = choice.change(interpolate, mapping_camera)
        if controlled and "path" not in given:
            path = controlled.path
        camera_choice = CameraChoice(path, w_frames, turns, fov_breathing, given)
        columns, rows = dnnlib.parse_flag("--grid", grid, dnnlib.parse_grid)
        if interpolate == "none" and columns * rows > 1:
            raise ValueError(f"--interpolate=none makes a film of each head, so --grid={grid} means nothing")
        inspection = Inspection(**looks)
        G = load_generator(network, distributed.initialise(device))
        memory.keep_freed_memory()  # frames are all of one size
        look = video.Look(resolution, video.shown_background(G, background), show, video.view_of(G, inspection))
        heads = head_choice.heads(G)
        if fix_subject:
            heads = heads.repeated(columns * rows)
        heads_per_cell = shared_among(columns * rows, len(heads.names), grid)
        if controlled:
            heads_per_cell = controlled.num_keys(G, heads, columns * rows)
        cameras = camera_choice.cameras(G, 1 if interpolate == "none" else heads_per_cell)
        told = cameras if mapping_camera == "film" else None
        shows = controlled.what if controlled else camera_choice.name
        start = dnnlib.make_folder(outdir) / f"{Path(network).stem}-{shows}"
        films = {f"-{head.names[0]}": head for head in heads} if interpolate == "none" else {"": heads}
        for suffix, shown in films.items():
            ws = latents.film_ws(G, shown, columns * rows, len(cameras), interpolate, told)
            if controlled:
                ws = controlled.film_ws(G, shown, columns * rows, len(cameras), ws)
            with video.VideoWriter(start.with_name(f"{start.name}{suffix}.mp4"), fps) as film:
                frames = video.render_frames(G, ws, cameras, columns, look)
                for frame in tqdm(frames, total=len(cameras), unit="frame", leave=False, disable=None):
                    film.write(grids.enlarge(frame, enlarge))
            click.echo(film.target)
        if controlled and controlled.what != POSE:
            click.echo(controlled.save_grid(G, heads, look, start, enlarge))
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    if not video.ffmpeg_available():
        click.echo("No ffmpeg was found (pip install imageio-ffmpeg), so the frames are PNG files.")


if __name__ == "__main__":
    main()
