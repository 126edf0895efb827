"""Measures invert.py on ray-cast heads that a network never saw: the picture, six other views, the camera, the time.

    python -m benchmarks.inversion --network=NET.pkl --encoder=NET-encoder.pt --heads=12
    python -m benchmarks.inversion --network=NET.pkl --heads=4 --without=features,weights,starts
    python -m benchmarks.inversion --tables=a.json,b.json

Heads come from another seed than data sets do. Rows leave out one stage each, take the true camera,
or are shown the six views as well: the most that the network can make of such a head.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from gaussian import Cameras
from training.checkpoint import load_discriminator, load_generator
from training.data.synthetic.synthesize import render_heads, sample_cameras
from training.families.base import Discriminator, Generator
from training.inversion.cameras import angle_between
from training.inversion.encoder import Encoder, read_encoder
from training.inversion.fitting import Target
from training.inversion.inversion import Inversion, Settings, invert
from training.inversion.similarity import psnr
from training.visualization.directions import network_key
from training.visualization.grids import save_image_grid

SEED = 1  # of the heads; networks are trained on seed 0
NOVEL_YAWS, NOVEL_PITCHES = (-45.0, -27.0, -9.0, 9.0, 27.0, 45.0), (8.0, -8.0, 8.0, -8.0, 8.0, -8.0)  # degrees

WITHOUT: dict[str, dict[str, Any]] = {  # what a row leaves out -> the settings that do so
    "starts": {"starts": 1},
    "latent": {"latent_steps": 0},
    "parts": {"block_steps": 0},
    "weights": {"tuning_steps": 0},
    "splats": {"splat_steps": 0},
    "features": {"features": False},
    "prior": {"prior": 0.0},
    "symmetry": {"symmetry": 0.0},
    "locality": {"locality": 0.0, "hold": 0.0},
    "camera": {"moves_camera": False},
    "nothing": {},
}
TRUE_CAMERA, TRUE_VIEWS, ENCODER = "true-camera", "true-views", "encoder"
OTHERS = (ENCODER, TRUE_CAMERA, TRUE_VIEWS)
ALL, GIVEN, SHOWN = "all stages", "the true camera given", "the six other views shown as well, true cameras"


@dataclasses.dataclass(frozen=True)
class Truth:
    """Holds a ray-cast head: pictures of it, their cameras, and six views that nobody was shown."""

    target: Target
    cameras: Cameras  # [V]
    novel: Cameras  # [6]
    views: Target  # [6]

    def with_views(self) -> tuple[Target, Cameras]:
        """Returns the pictures and the six views as one target, with their cameras: what no search is meant to see."""
        pictures, views = self.target, self.views
        assert pictures.masks is not None and views.masks is not None
        images, masks = torch.cat([pictures.images, views.images]), torch.cat([pictures.masks, views.masks])
        labels = torch.cat([self.cameras.labels, self.novel.labels])
        return Target(images, masks, pictures.background), Cameras.from_labels(labels)


def truth_of(index: int, pictures: int, G: Generator) -> Truth:
    """Casts head `index`, `pictures` times, over white."""
    degrees = torch.tensor([NOVEL_YAWS, NOVEL_PITCHES]).deg2rad()
    novel = G.geometry.orbit(*degrees).to(dtype=torch.float32)
    cameras = sample_cameras(SEED, [index + 1000 * v for v in range(pictures)])
    both = Cameras.from_labels(torch.cat([cameras.labels, novel.labels]))
    cast = render_heads(SEED, [index] * len(both), both, G.resolution)
    masks = cast.masks / 255
    images = masks * (cast.images / 255) + 1 - masks
    seen, others = (Target(images[some], masks[some], torch.ones(3)) for some in np.split(range(len(both)), [pictures]))
    return Truth(seen, cameras, novel, others)


@torch.no_grad()
def judged(found: Inversion, truth: Truth) -> dict[str, float]:
    """Returns what counts of one inversion."""
    cameras = found.cameras[: len(truth.cameras)]
    away = angle_between(cameras, truth.cameras, found.G.geometry)
    return {
        "input_db": float(psnr(found.shown(cameras)[0], truth.target.images).mean()),
        "novel_db": float(psnr(found.shown(truth.novel)[0], truth.views.images).mean()),
        "camera_deg": float(away.mean()),
        "seconds": sum(stage.seconds for stage in found.stages),
        "processor_seconds": sum(stage.processor_seconds for stage in found.stages),
    }


@torch.no_grad()
def row_of_pictures(found: Inversion, truth: Truth) -> Iterator[Tensor]:
    """Yields the picture and the six views of the truth, then those of the head that was found, [7, 3, R, R]."""
    yield torch.cat([truth.target.images[:1], truth.views.images])
    yield torch.cat([found.shown(found.cameras[:1])[0], found.shown(truth.novel)[0]])


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Returns the table in Markdown, of the heads that every row has: means in dB and seconds, medians in degrees."""
    shared = set.intersection(*({row["head"] for row in rows} for rows in results.values()))
    columns = ("the picture, dB", "six other views, dB", "camera, degrees (median)", "processor seconds")
    lines = [f"| {len(shared)} heads | {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for name, every in results.items():
        rows = [row for row in every if row["head"] in shared]
        mean = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
        angle, seconds = statistics.median(row["camera_deg"] for row in rows), mean["processor_seconds"]
        lines.append(f"| {name} | {mean['input_db']:.1f} | {mean['novel_db']:.1f} | {angle:.1f} | {seconds:.0f} |")
    return "\n".join(lines)


def joined(files: list[str]) -> dict[str, list[dict[str, float]]]:
    """Returns the rows that several runs have kept by --json, those of one name together."""
    results: dict[str, list[dict[str, float]]] = {}
    for file in files:
        for name, rows in json.loads(Path(file).read_text())["rows"].items():
            results.setdefault(name, []).extend(rows)
    return results


def variants(without: str, base: Settings) -> dict[str, Settings]:
    """Returns the settings of each row. Raises ValueError for a row that does not exist."""
    rows = {ALL: base}
    for name in filter(None, without.split(",")):
        if name == TRUE_CAMERA:
            rows[GIVEN] = base
        elif name == TRUE_VIEWS:
            rows[SHOWN] = base
        elif name == ENCODER:
            rows[f"without {ENCODER}"] = base
        elif name in WITHOUT:
            rows[f"without {name}"] = dataclasses.replace(base, **WITHOUT[name])
        else:
            raise ValueError(f"--without={name}: legal are {', '.join((*WITHOUT, *OTHERS))}")
    return rows


@click.command(context_settings={"show_default": True})
@click.option("--network", metavar="PKL")
@click.option("--encoder", "encoder_path", metavar="FILE", help="of invert.py --train-encoder")
@click.option("--heads", type=click.IntRange(min=1), default=12)
@click.option("--first", type=click.IntRange(min=0), default=0, help="of the heads")
@click.option("--pictures", type=click.IntRange(min=1), default=1, help="of each head")
@click.option("--without", default="", metavar="LIST", help=f"a row each, of {','.join((*WITHOUT, *OTHERS))}")
@click.option("--splat-steps", type=click.IntRange(min=0), default=Settings().splat_steps)
@click.option("--only", is_flag=True, help="leave out the row of all stages")
@click.option("--json", "json_path", metavar="FILE", help="keep all values")
@click.option(
    "--tables", metavar="FILE,...", help="print the table of what runs have kept, of the heads that all rows share"
)
@click.option("--picture", "picture_path", metavar="PNG", help="draw truth and find of the first row")
def main(
    network: str | None, encoder_path: str | None, heads: int, first: int, pictures: int, without: str,
    splat_steps: int, only: bool, json_path: str | None, tables: str | None, picture_path: str | None,
) -> None:  # fmt: skip
    """Print the table."""
    if tables:
        click.echo(table(joined(tables.split(","))))
        return
    if network is None:
        raise click.MissingParameter(param_type="option", param_hint="'--network'")
    try:
        rows = variants(without, dataclasses.replace(Settings(), splat_steps=splat_steps))
        measured = Measured.of(network, encoder_path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if only:
        del rows[ALL]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    drawn: list[Tensor] = []
    for index in range(first, first + heads):
        truth = truth_of(index, pictures, measured.G)
        for name, settings in rows.items():
            record, found = measured.inverted(truth, name, settings)
            results[name].append({"head": index, **record})
            if name == next(iter(rows)):
                drawn.extend(row_of_pictures(found, truth))
            click.echo(f"{name}: {json.dumps(results[name][-1])}", err=True)
            if json_path:
                Path(json_path).write_text(json.dumps({"seed": SEED, "rows": results}, indent=1) + "\n")
    if picture_path:
        save_image_grid(2 * torch.cat(drawn) - 1, picture_path, 1 + len(NOVEL_YAWS))
    click.echo(table(results))


@dataclasses.dataclass(frozen=True)
class Measured:
    """Holds what is measured: a network, its discriminator, and an encoder of it, if there is one."""

    G: Generator
    D: Discriminator
    encoder: Encoder | None

    @classmethod
    def of(cls, network: str, encoder_path: str | None) -> Measured:
        """Opens them. Raises ValueError, or CheckpointError, which is one."""
        G = load_generator(network)
        encoder = None if encoder_path is None else read_encoder(encoder_path, network_key(G))
        return cls(G, load_discriminator(network), encoder)

    def inverted(self, truth: Truth, row: str, settings: Settings) -> tuple[dict[str, float], Inversion]:
        """Inverts one head as a row has it, and returns what counts beside what was found."""
        begun = time.perf_counter()
        encoder = None if row == f"without {ENCODER}" else self.encoder
        target, cameras = truth.target, truth.cameras if row == GIVEN else None
        if row == SHOWN:
            target, cameras = truth.with_views()
        found = invert(self.G, self.D, target, cameras, settings, encoder=encoder)
        return judged(found, truth) | {"wall_seconds": time.perf_counter() - begun}, found


if __name__ == "__main__":
    main()
