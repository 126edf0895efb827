"""Extracts triangle meshes from the scenes of a trained generator."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.core import ParameterSource
from torch import Tensor
from tqdm import tqdm

from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, option, version
from dnnlib.numbers import FINITE
from gaussian import Density
from torch_utils import distributed
from training.checkpoint import CheckpointError, load_generator
from training.families.base import Generator
from training.meshes import density, files, fusion, splat_views
from training.meshes.lattice import Lattice
from training.meshes.surface import Mesh, NoSurfaceError
from training.visualization import latents
from training.visualization.video import checkpoint_info

DEFAULT_VIEWS = 64
LEVEL_YAWS = 5  # of the cameras, across the data's range, whose rays find the level
PIXELS = 1.5  # of the images that splats are seen in, for each point along an edge of the lattice


class Level(click.ParamType):
    """Parses `auto`, or a density above 0."""

    name = "auto|DENSITY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Parses and checks the value; auto is None. Called by click."""
        if value in (None, "auto") or isinstance(value, float):
            return None if value == "auto" else value
        try:
            level = float(value)
        except ValueError:
            level = 0.0
        if not 0 < level < float("inf"):
            self.fail(f"{value!r}: auto, or a density above 0, is legal", param, ctx)
        return level


# fmt: off
FILES = group(
    "Files",
    option("--network", required=True, metavar="PKL", help="checkpoint: network-snapshot-NNNNNN.pkl"),
    option("--outdir", default="results", metavar="DIR", help="where the files go"),
    option("--format", "formats", default="glb", metavar="LIST", type=ChoiceList([*files.MESHES, *files.VOLUMES]),
           help="meshes with colours: glb, ply, obj; volumes of densities: mrc, npz"),
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
)

HEADS = group(
    "Heads",
    option("--seeds", default="0-3", metavar="LIST", help="one head per seed: 0-3,7"),
    option("--class", "classes", metavar="LIST", show_default="drawn from the seed",
           help="of a network of classes: every seed in each of these, 1,2,5-10"),
    option("--w-file", metavar="NPZ", help="heads from a file of gen_samples.py --w-out, in place of seeds"),
    option("--trunc", "--truncation-psi", "trunc", type=FINITE, default=0.7, help="psi: 0 the mean head, 1 as drawn"),
)

SURFACE = group(
    "Surface",
    option("--resolution", "--volume-res", "resolution", type=click.IntRange(min=2), default=256,
           help="points along an edge of the cube"),
    option("--level", type=Level(), default="auto", show_default="auto",
           help="of radiance fields, the density of the surface, per unit of the data's labels; auto: the one whose "
           "surface lies closest to where the data's cameras lose half of their light"),
    option("--views", type=click.IntRange(4, 10_000), show_default=str(DEFAULT_VIEWS),
           help="of splats, cameras all around whose depths are fused"),
    option("--pieces", type=click.IntRange(min=1), show_default="all",
           help="keep so many connected pieces, those with the largest surface"),
)
# fmt: on


@dataclass(frozen=True)
class HeadChoice:
    """Says which heads are extracted."""

    seeds: str  # whole numbers and ranges, one head each
    w_file: str | None  # .npz of finished heads, in place of seeds
    trunc: float  # psi of the heads from seeds
    classes: str | None  # of the heads from seeds
    given: frozenset[str]  # names of the options that the user gave

    def heads(self, G: Generator) -> tuple[list[str], Tensor]:
        """Returns a name for each head, and ws [B, num_ws, w_dim].

        Raises ValueError if the choice contradicts itself.
        """
        if self.w_file is None:
            numbers = dnnlib.parse_flag("--seeds", self.seeds, dnnlib.parse_ints)
            heads = latents.seed_heads(G, numbers, self.trunc, self.classes)
            return heads.names, latents.still_ws(G, heads)
        for name in (n for n in ("seeds", "classes", "trunc") if n in self.given):
            flag = "--class" if name == "classes" else f"--{name}"
            raise ValueError(f"--w-file={self.w_file} holds finished heads, so {flag} means nothing; leave it out")
        ws = latents.load_ws(self.w_file, G)
        return [f"w{i:04d}" for i in range(len(ws))], ws


@dataclass(frozen=True)
class Extraction:
    """Says how surfaces are found, and which files they go to."""

    resolution: int  # points along an edge of the cube
    level: float | None  # density per label unit; None: found
    views: int | None  # of splats
    pieces: int | None  # None: all
    formats: tuple[str, ...]

    def check(self, G: Generator, scene: Any) -> None:
        """Raises ValueError for options that say nothing of such scenes, and for a volume that fits in no memory."""
        volumes = [name for name in self.formats if name in files.VOLUMES]
        if G.makes_splats:
            if self.level is not None:
                raise ValueError(
                    f"--level={self.level:g}: splats have no density, their surface comes from depth; leave it out"
                )
            if volumes:
                raise ValueError(f"--format={volumes[0]}: splats have no density; {', '.join(files.MESHES)} are legal")
        elif not isinstance(scene, Density):
            raise ValueError("--network: the scenes of this network have neither splats nor a density")
        elif self.views is not None:
            raise ValueError(
                f"--views={self.views}: this network has a density, which is looked at directly; leave it out"
            )
        if len(volumes) == len(self.formats) and self.pieces is not None:
            raise ValueError("--pieces says which part of a mesh is written, and --format that none is; leave one out")
        Lattice((0.0, 0.0, 0.0), 1.0, self.resolution).require_memory()

    def write(self, G: Generator, scene: Any, stem: str) -> Iterator[Path]:
        """Writes the files of a batch of one scene, and yields their names. Raises NoSurfaceError, OSError."""
        if G.makes_splats:
            mesh = self._of_splats(G, scene)
        else:
            lattice = Lattice((0.0, 0.0, 0.0), scene.half_width, self.resolution)
            with _bar("density") as progress:
                volume = density.density_volume(scene, lattice, progress)
            for suffix in (name for name in self.formats if name in files.VOLUMES):
                yield self._save_volume(G, volume, lattice, Path(f"{stem}-density.{suffix}"))
            if set(self.formats) <= set(files.VOLUMES):
                return
            mesh = self._of_density(G, scene, volume, lattice)
        if self.pieces is not None:
            mesh, left_out = mesh.largest(self.pieces)
            if left_out:
                click.echo(f"{Path(stem).name}: {left_out} smaller pieces are left out", err=True)
        mesh = mesh.transformed(G.geometry.world_scale, G.geometry.origin)
        for suffix in (name for name in self.formats if name in files.MESHES):
            path = Path(f"{stem}-mesh.{suffix}")
            files.save_mesh(path, mesh)
            yield path

    def _of_density(self, G: Generator, scene: Density, volume: np.ndarray, lattice: Lattice) -> Mesh:
        scale = G.geometry.world_scale
        if self.level is None:
            yaws = torch.linspace(*checkpoint_info(G).yaw_limits, LEVEL_YAWS)
            level = density.seen_level(scene, G.geometry.orbit(yaws))
            click.echo(f"--level={level / scale:.4g}", err=True)
        else:
            level = self.level * scale
        return density.density_mesh(scene, volume, level, lattice)

    def _of_splats(self, G: Generator, scene: Any) -> Mesh:
        scene = scene.foreground() if G.has_background else scene
        lattice = splat_views.bounding_lattice(scene.as_gaussians(), self.resolution)
        with _bar("views") as progress:
            size = math.ceil(PIXELS * self.resolution)
            views = splat_views.look_around(G, scene, lattice, self.views or DEFAULT_VIEWS, size, progress)
        with _bar("fusion") as progress:
            volume = fusion.fuse(views, lattice, progress)
        return fusion.fused_mesh(views, volume, lattice)

    @staticmethod
    def _save_volume(G: Generator, volume: np.ndarray, lattice: Lattice, path: Path) -> Path:
        scale = G.geometry.world_scale
        files.save_volume(path, volume / np.float32(scale), lattice.transformed(scale, G.geometry.origin))
        return path


@contextmanager
def _bar(what: str) -> Iterator[Callable[[float], object]]:
    """Shows how much of something is done, on a terminal; lends the function that is told each share."""
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1, desc=what, bar_format=layout, leave=False, delay=0.5, disable=None) as bar:
        yield bar.update


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@HEADS
@SURFACE
@version
@click.pass_context
@torch.no_grad()
def main(
    ctx: click.Context,
    network: str, outdir: str, formats: tuple[str, ...], device: str,
    seeds: str, classes: str | None, w_file: str | None, trunc: float,
    resolution: int, level: float | None, views: int | None, pieces: int | None,
) -> None:  # fmt: skip
    """Extract the surfaces of generated heads as triangle meshes with colours, in the units of the data's labels.

    \b
    python extract_mesh.py --outdir=out --seeds=0-3 --network=net.pkl
    python extract_mesh.py --outdir=out --seeds=0 --resolution=512 --format=ply,mrc --network=net.pkl
    """
    ctx.with_resource(dnnlib.stoppable())
    given = frozenset(n for n in ctx.params if ctx.get_parameter_source(n) == ParameterSource.COMMANDLINE)
    head_choice = HeadChoice(seeds, w_file, trunc, classes, given)
    extraction = Extraction(resolution, level, views, pieces, formats)
    empty: list[str] = []
    try:
        files.require_libraries(formats)
        G = load_generator(network, distributed.initialise(device))
        names, ws = head_choice.heads(G)
        extraction.check(G, G.synthesis(ws[:1].to(G.device)))
        stem = dnnlib.make_folder(outdir) / Path(network).stem
        for row, name in enumerate(names):
            scene = G.synthesis(ws[row : row + 1].to(G.device))
            try:
                for path in extraction.write(G, scene, f"{stem}-{name}"):
                    click.echo(path)
            except NoSurfaceError as error:
                empty.append(f"{name}: {error}")
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    if empty:
        flag = "" if level is None else f" at --level={level:g}"
        raise click.ClickException(f"{len(empty)} of {len(names)} heads have no surface{flag}, the first is {empty[0]}")


if __name__ == "__main__":
    main()
