"""Draws the heads of a trained generator as pictures, and writes their splats."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from click.core import ParameterSource
from torch import Tensor

from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, in_a_folder, option, version
from dnnlib.numbers import FINITE, SEED, FloatRange
from gaussian import Gaussians, Scene, Splats, save_splats
from gaussian.export import FORMATS, check_format
from gaussian.ply import UPS
from torch_utils import distributed
from training.checkpoint import CheckpointError, load_generator
from training.families.base import Generator
from training.families.inspection import Inspection
from training.visualization import latents, video
from training.visualization.grids import save_image_grid
from training.visualization.look_options import LOOKS
from training.visualization.sweeps import Sweep

DEFAULT_COLUMNS = 7
PUBLISHED_SEED, PUBLISHED_IDS = 42, 4  # of the published sample script's draw
BYTES_A_PIXEL = 2 * 3 * 4  # of a grid of pictures: as rendered, and as laid out; float32
AT_LEAST_1 = click.IntRange(min=1)


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
    option("--seeds", default="0-3", metavar="LIST",
           help="one head per seed: 0-3,7; a network whose mapping is told a camera is told the data's frontal one"),
    option("--class", "classes", metavar="LIST", show_default="drawn from the seed",
           help="of a network of classes: every seed in each of these, 1,2,5-10"),
    option("--seed", type=SEED, show_default=str(PUBLISHED_SEED),
           help="with --num-ids: all heads from one seed, drawn as by the published sample script"),
    option("--num-ids", type=click.IntRange(1, 1_000_000), show_default=str(PUBLISHED_IDS), help="how many"),
    option("--w-file", metavar="NPZ", help="heads from such a file, in place of seeds"),
    option("--w-out", metavar="NPZ", callback=in_a_folder, help="also keep the heads' ws in this file"),
    option("--trunc", "--truncation-psi", "trunc", type=FINITE, default=0.8, help="psi: 0 the mean head, 1 as drawn"),
    option("--direction", metavar="FILE[:NAME]:AMOUNT",
           help="move the heads along a direction of find_directions.py, so many standard deviations"),
)

PICTURES = group(
    "Pictures",
    option("--yaws", metavar="LIST", show_default=f"{DEFAULT_COLUMNS} across the data's range",
           help="degrees, + towards world +x"),
    option("--pitch", type=FloatRange(-89, 89), default=0.0, help="degrees of all cameras, + from above"),
    option("--radius", type=FloatRange(min=0, min_open=True), show_default="the data's",
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
    option("--splats", "--ply", "splats", type=click.Choice(["scene", "levels", "both", "none"]), default="scene",
           show_default="scene; none where scenes are no splats",
           help="files for viewers of splats (see --up): one per head, one per head and level of the hierarchy, both, "
           "or none"),
    option("--formats", default="ply", metavar="LIST", type=ChoiceList(tuple(FORMATS)),
           help=f"a file each, of {','.join(FORMATS)}"),
    option("--up", "--ply-up", "up", type=click.Choice(UPS), default="y",
           help="axis of the files' world that is up; -y turns the scene by half a turn about z, as viewers "
           "expect that are made for splats from photographs. Not in .spz and .glb: their descriptions say y"),
)
# fmt: on


@dataclass(frozen=True)
class HeadChoice:
    """Says which heads appear.

    The published script maps its latents twice, which undoes truncation; here w goes straight to synthesis.
    """

    seeds: str  # whole numbers and ranges, one head each
    seed: int | None  # draws all heads; PUBLISHED_SEED where only num_ids is given
    num_ids: int | None  # heads of `seed`; PUBLISHED_IDS where only seed is given
    w_file: str | None  # .npz of finished heads
    trunc: float  # psi of the heads from seeds
    classes: str | None  # of the heads from seeds
    given: frozenset[str]  # names of the options that the user gave

    def heads(self, G: Generator) -> tuple[list[str], Tensor]:
        """Returns a name for each head, and ws [B, num_ws, w_dim].

        Raises ValueError if the choice contradicts itself.
        """
        self._check()
        if self.w_file is not None:
            ws = latents.load_ws(self.w_file, G)
            return [f"w{i:04d}" for i in range(len(ws))], ws
        if self.seed is not None or self.num_ids is not None:
            seed = PUBLISHED_SEED if self.seed is None else self.seed
            z = latents.published_latents(seed, self.num_ids or PUBLISHED_IDS, G.z_dim)
            names = [f"seed{seed:04d}-{i}" for i in range(len(z))]
        else:
            numbers = dnnlib.parse_flag("--seeds", self.seeds, dnnlib.parse_ints)
            heads = latents.seed_heads(G, numbers, self.trunc, self.classes)
            return heads.names, latents.still_ws(G, heads)
        return names, latents.frontal_ws(G, z, self.trunc)

    def _check(self) -> None:
        sources = [name for name in ("seeds", "w_file", "seed", "num_ids") if name in self.given]
        if len(set(sources) - {"num_ids" if "seed" in sources else ""}) > 1:
            flags = " and ".join("--" + name.replace("_", "-") for name in sources)
            raise ValueError(f"{flags} both say which heads; give --seeds, --seed with --num-ids, or --w-file")
        if self.w_file is not None and "trunc" in self.given:
            raise ValueError(f"--w-file={self.w_file} holds finished heads, so --trunc means nothing; leave it out")
        if self.classes is not None and sources not in ([], ["seeds"]):
            raise ValueError(f"--class={self.classes} goes with --seeds, whose every head it makes of each class")


@dataclass(frozen=True)
class SplatChoice:
    """Says which files of splats are written."""

    which: str  # "scene", "levels", "both" or "none"
    formats: Sequence[str] = ("ply",)  # of `gaussian.export.FORMATS`
    up: str = "y"  # as in `save_ply`
    given: frozenset[str] = frozenset()  # names of the options that the user gave

    def check(self, G: Generator) -> None:
        """Raises ValueError if the user asks for splats of a network that makes none, or says how not to write any."""
        how = [f"--{name}" for name in ("formats", "up") if name in self.given]
        if how and self.which == "none":
            raise ValueError(f"{how[0]} says how splats are written, and --splats=none that none are; leave out one")
        if how and not G.makes_splats:
            raise ValueError(f"{how[0]}: the scenes of this network are no splats; leave it out")
        if not G.makes_splats and "splats" in self.given and self.which != "none":
            raise ValueError(f"--splats={self.which}: the scenes of this network are no splats; leave --splats out")

    def splats(self, G: Generator, scene: Scene) -> Gaussians | None:
        """Returns the splats to write, in the world units of the data set's own labels; None if there are none.

        A colour that depends on the place of the camera is the one that the data's frontal camera sees.
        Raises ValueError if levels are asked for and there are none, or if a format cannot hold the splats.
        """
        if self.which == "none" or not G.makes_splats:
            return None
        assert isinstance(scene, Splats)  # G.makes_splats promises it
        viewpoint = G.geometry.frontal().positions.to(scene.device).expand(scene.batch_size, 3)
        splats = scene.as_gaussians(viewpoint)
        if self.which in ("levels", "both") and not splats.level_sizes:
            raise ValueError(f"--splats={self.which}: the scenes of this network have no levels; give --splats=scene")
        for name in self.formats:
            try:
                check_format(name, splats, self.up)
            except ValueError as error:
                hint = " (--colors-from=0: the front's)" if splats.sh_degree > FORMATS[name].max_degree else ""
                raise ValueError(f"--formats={name}: {error}{hint}") from None
        return splats.transformed(translation=G.geometry.origin, scale=G.geometry.world_scale)


@dataclass(frozen=True)
class Output:
    """Writes files whose names start alike."""

    stem: str  # path and start of the name
    names: Sequence[str]  # of the heads
    enlarge: int  # factor on the finished pictures

    def save_grid(self, pictures: Tensor, suffix: str) -> Path:
        """Writes pictures [B, V, 3, H, W], a head a row."""
        path = Path(f"{self.stem}-{suffix}.png")
        save_image_grid(pictures.flatten(0, 1), path, pictures.shape[1], self.enlarge)
        return path

    def save_each(self, pictures: Tensor, suffix: str) -> list[Path]:
        """Writes pictures [B, V, 3, H, W], each into a file of its own."""
        kind = "" if suffix == "samples" else f"-{suffix}"
        paths = []
        for name, views in zip(self.names, pictures, strict=True):
            for k, view in enumerate(views):
                paths.append(Path(f"{self.stem}-{name}-view{k}{kind}.png"))
                save_image_grid(view[None], paths[-1], 1, self.enlarge)
        return paths

    def save_splats(self, splats: Gaussians, choice: SplatChoice) -> list[Path]:
        """Writes files per head, per head and level, or both, as chosen."""
        paths = []

        def write(shown: Gaussians, row: int, stem: str) -> None:
            for name in choice.formats:
                paths.append(Path(f"{stem}.{name}"))
                save_splats(paths[-1], shown, row, choice.up)

        for row, name in enumerate(self.names):
            if choice.which in ("scene", "both"):
                write(splats, row, f"{self.stem}-{name}")
            if choice.which in ("levels", "both"):
                for level in range(len(splats.level_sizes)):
                    if splats.level_sizes[level] > 0:  # else left out of what is shown
                        write(splats.select(level), row, f"{self.stem}-{name}-level{level}")
        return paths


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@HEADS
@PICTURES
@SPLATS
@LOOKS
@version
@click.pass_context
@torch.no_grad()
def main(
    ctx: click.Context,
    network: str, outdir: str, device: str,
    seeds: str, classes: str | None, seed: int | None, num_ids: int | None, w_file: str | None, w_out: str | None,
    trunc: float, direction: str | None,
    yaws: str | None, pitch: float, radius: float | None, show: tuple[str, ...], images: bool,
    resolution: int | None, enlarge: int, background: str | None,
    splats: str, formats: tuple[str, ...], up: str,
    **looks: Any,
) -> None:  # fmt: skip
    """Draw a grid of heads (rows) seen from several yaws (columns), and write the splats of each head.

    \b
    python gen_samples.py --outdir=out --trunc=0.8 --seeds=0-3 --yaws=-45,0,45 --network=net.pkl
    """
    ctx.with_resource(dnnlib.stoppable())
    given = frozenset(n for n in ctx.params if ctx.get_parameter_source(n) == ParameterSource.COMMANDLINE)
    head_choice = HeadChoice(seeds, seed, num_ids, w_file, trunc, classes, given)
    splat_choice = SplatChoice(splats, formats, up, given)
    try:
        G = load_generator(network, distributed.initialise(device))
        splat_choice.check(G)
        view = video.view_of(G, Inspection(**looks))
        look = video.Look(resolution, video.shown_background(G, background))
        angles = _yaws(yaws, video.checkpoint_info(G).yaw_limits)
        geometry = dataclasses.replace(G.geometry, radius=radius or G.geometry.radius)
        names, ws = head_choice.heads(G)
        ws = dnnlib.parse_flag("--direction", direction, Sweep.parse).moved(G, ws) if direction else ws
        _require_memory(len(names), len(angles), resolution or G.resolution)
        scene = view(G.synthesis(ws.to(G.device)))  # so that what is written is what is shown
        to_write = splat_choice.splats(G, scene)
        cameras = geometry.orbit(angles, math.radians(pitch)).to(G.device).reshape(1, -1).expand(len(names), -1)
        output = Output(f"{dnnlib.make_folder(outdir) / Path(network).stem}", names, enlarge)
        written = []
        for kind in show:
            pictures = video.render_panels(G, scene, cameras, dataclasses.replace(look, show=(kind,)))
            suffix = "samples" if kind == "image" else kind
            written.append(output.save_grid(pictures, suffix))
            written += output.save_each(pictures, suffix) if images else []
        written += output.save_splats(to_write, splat_choice) if to_write is not None else []
        if w_out:
            latents.save_ws(w_out, ws)
            written.append(Path(w_out))
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    for path in written:
        click.echo(path)


def _require_memory(heads: int, views: int, resolution: int) -> None:
    """Raises ValueError if the pictures of one grid do not fit in the memory that is free."""
    needed, free = heads * views * resolution**2 * BYTES_A_PIXEL, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"--seeds: {heads:,} heads from {views} sides of {resolution} px take {dnnlib.format_bytes(needed)} "
            f"at once, and {dnnlib.format_bytes(free)} of memory are free; give fewer in several calls"
        )


def _yaws(text: str | None, data_range: tuple[float, float]) -> Tensor:
    """Returns radians, from degrees or from the data's range. Raises ValueError for what is not a list of numbers."""
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
