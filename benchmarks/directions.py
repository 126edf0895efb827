"""Measures what directions of w do to ray-cast heads: how far each trait moves, and how much others move with it.

    python -m benchmarks.directions --network=PKL                            # fits the reader of traits, then the table
    python -m benchmarks.directions --network=PKL --picture=docs/images/edits.png

The traits of a generated head are read off its pictures by kernel regression on heads whose traits are known, seen
from the same two places. Its own error on heads that it has not seen comes first: what it cannot read is left out.
One thread of a CPU takes some minutes, most of them to cast rays; --cache keeps those pictures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks import machine
from benchmarks.landmarks import blurred
from gaussian import Geometry
from training.checkpoint import load_generator
from training.data.synthetic.synthesize import render_heads
from training.data.synthetic.traits import CameraSpread, Traits, sample_traits
from training.families.base import Generator
from training.images import quantize
from training.visualization import directions, latents
from training.visualization.directions import Directions, Scores
from training.visualization.grids import save_image_grid

SEED = 9090  # of the ray-cast heads; data sets are made with small seeds
YAWS = (0.0, 0.9)  # radians: from the front, and from a side
SIZE = 64  # px
HELD_OUT = 500  # ray-cast heads that the reader's error is measured on
BLUR = 0.7  # px, of what the reader sees
WIDTH, RIDGE = 1.0, 3e-3  # of its kernels, over the mean squared distance of two heads; added to the kernel of a head
READ = 0.6  # share of a trait's variance that the reader must tell
FIRST_JUDGED = 1_000_000  # seed of the first generated head that directions are judged on
AMOUNT = 2.0  # standard deviations that heads are moved to either side
UNSUPERVISED = 8  # directions of each kind, of which the best for a trait is taken
PICTURED = ("skin", "hair", "beard", "smile", "width", "shoulder_width")
AT_ONCE = 64

NUMBERS = (
    "width", "height", "depth", "jaw_width", "jaw_length", "neck_width", "shoulder_width", "eye_height", "eye_spacing",
    "eye_size", "eye_open", "eye_tilt", "brow_tilt", "brow_height", "brow_thickness", "nose_length", "nose_width",
    "nose_reach", "mouth_height", "mouth_width", "mouth_thickness", "smile", "ear_size", "hairline", "blush",
)  # fmt: skip
OTHERS: Mapping[str, Callable[[Traits], float]] = {
    "skin": lambda traits: float(traits.skin.mean()),
    "hair": lambda traits: float(traits.hair.mean()) if traits.hair_style != "bald" else 0.35,
    "shirt": lambda traits: float(traits.shirt.mean()),
    "shirt_warmth": lambda traits: float(traits.shirt[0] - traits.shirt[2]),
    "beard": lambda traits: float(traits.beard),
    "fringe": lambda traits: float(traits.fringe and traits.hair_style != "bald"),
    "long_hair": lambda traits: float(traits.hair_style in ("bob", "long")),
    "round_hair": lambda traits: float(traits.hair_style == "round"),
    "no_hair": lambda traits: float(traits.hair_style == "bald"),
}
NAMES = (*NUMBERS, *OTHERS)


def traits_of(indices: range) -> Tensor:
    """Returns the traits [N, T] of ray-cast heads."""
    rows = []
    for index in indices:
        traits = sample_traits(SEED, index)
        rows.append([getattr(traits, name) for name in NUMBERS] + [read(traits) for read in OTHERS.values()])
    return torch.tensor(rows)


# ---------------------------------------------------------------- the reader of traits


def features_of(pictures: Tensor) -> Tensor:
    """Returns what the reader sees [N, F] of pictures uint8 [N, 3 V, 64, 64]: a little blurred, and half as large."""
    parts = [F.avg_pool2d(blurred(some / 255, BLUR), 2).flatten(1) for some in pictures.split(AT_ONCE)]
    return torch.cat(parts)


class Reader:
    """Maps pictures to standardised traits by kernel ridge regression with Gaussian kernels on what it has seen."""

    def __init__(self, pictures: Tensor, traits: Tensor) -> None:
        self.seen = features_of(pictures)
        distances = torch.cdist(self.seen, self.seen).square()
        self.width = WIDTH * float(distances.mean())
        kernel = torch.exp(-distances / self.width).double()
        kernel.diagonal().add_(RIDGE)
        self.weights = torch.cholesky_solve(traits.double(), torch.linalg.cholesky(kernel)).float()

    def __call__(self, pictures: Tensor) -> Tensor:
        """Returns traits [N, T] of pictures uint8 [N, 3 V, 64, 64]."""
        distances = torch.cdist(features_of(pictures), self.seen).square()
        return torch.exp(-distances / self.width) @ self.weights


def ray_cast(indices: range, geometry: Geometry, cache: Path | None) -> Tensor:
    """Returns pictures uint8 [N, 3 V, 64, 64] of heads over white, from the cache if it holds them."""
    path = cache / f"directions-{SEED}-{indices.start}-{indices.stop}.npz" if cache else None
    if path and path.is_file():
        return torch.from_numpy(np.load(path)["pictures"])
    parts = []
    for start in tqdm(range(indices.start, indices.stop, AT_ONCE), desc="ray-cast heads", leave=False, disable=None):
        some = range(start, min(start + AT_ONCE, indices.stop))
        views = []
        for yaw in YAWS:
            found = render_heads(SEED, some, geometry.orbit(yaw).reshape(1).expand(len(some)), SIZE)
            mask = found.masks / 255
            views.append((found.images * mask + 255 * (1 - mask)).round().byte())
        parts.append(torch.cat(views, dim=1))
    pictures = torch.cat(parts)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, pictures=pictures.numpy())
    return pictures


@dataclass(frozen=True)
class Reading:
    """Holds a fitted reader, and what it can read."""

    reader: Reader
    told: Tensor  # [T] share of each trait's variance that it tells on heads held out
    mean: Tensor  # [T] of the traits
    std: Tensor  # [T]

    @property
    def kept(self) -> list[int]:
        """The traits that it tells well enough."""
        return [k for k, share in enumerate(self.told.tolist()) if share >= READ]

    @property
    def names(self) -> list[str]:
        return [NAMES[k] for k in self.kept]

    def traits(self, pictures: Tensor) -> Tensor:
        """Returns the traits that are kept [N, K], standardised on the ray-cast heads, off uint8 [N, 3 V, 64, 64]."""
        return self.reader(pictures)[:, self.kept]


def fitted(geometry: Geometry, count: int, cache: Path | None) -> Reading:
    """Fits a reader on `count` ray-cast heads, and measures it on HELD_OUT others."""
    pictures, traits = ray_cast(range(count + HELD_OUT), geometry, cache), traits_of(range(count + HELD_OUT))
    mean, std = traits[:count].mean(0), traits[:count].std(0)
    truth = (traits - mean) / std
    reader = Reader(pictures[:count], truth[:count])
    error = (reader(pictures[count:]) - truth[count:]).square().mean(0)
    return Reading(reader, 1 - error / truth[count:].var(0, correction=0), mean, std)


# ---------------------------------------------------------------- generated heads


@torch.no_grad()
def pictures_of(G: Generator, ws: Tensor) -> Tensor:
    """Returns pictures uint8 [N, 3 V, 64, 64] of heads ws [N, num_ws, w_dim] over white."""
    cameras, parts = G.geometry.orbit(torch.tensor(YAWS)), []
    for some in ws.split(AT_ONCE):
        image = G.render(G.synthesis(some), cameras.expand(len(some), len(YAWS)), SIZE).image
        parts.append(quantize(image).flatten(1, 2))
    return torch.cat(parts)


def ws_of(G: Generator, seeds: range, psi: float) -> Tensor:
    """Returns ws [N, num_ws, w_dim] of heads by their seeds."""
    with torch.no_grad():
        return latents.frontal_ws(G, latents.seed_latents(list(seeds), G.z_dim), psi)


@dataclass(frozen=True)
class Effect:
    """Says what directions do to traits."""

    names: tuple[str, ...]  # of the D directions
    changes: Tensor  # [D, K] mean change of each trait from -AMOUNT to AMOUNT, over 2 AMOUNT, in deviations of it

    def own(self, row: int, trait: int) -> float:
        """Returns how far a direction moves a trait, in deviations for each deviation of w along it."""
        return float(self.changes[row, trait])

    def leak(self, row: int, trait: int) -> float:
        """Returns the root mean square of what it does to the other traits, over what it does to this one."""
        others = self.changes[row].clone()
        others[trait] = 0
        return float(others.square().sum().div(len(others) - 1).sqrt() / self.changes[row, trait].abs().clamp(min=1e-9))

    def best(self, trait: int) -> int:
        """Returns the direction that leaks least for a trait, of those that move it by a tenth at least."""
        leaks = [self.leak(d, trait) if abs(self.own(d, trait)) >= 0.1 else math.inf for d in range(len(self.names))]
        return int(np.argmin(leaks))


def effect_of(G: Generator, reading: Reading, found: Directions, ws: Tensor, spread: Tensor) -> Effect:
    """Moves heads ws [N, num_ws, w_dim] along every direction to both sides, and reads their traits."""
    rows = []
    for name in tqdm(found.names, desc="moved", leave=False, disable=None):
        step = AMOUNT * found.step(name)
        low, high = (reading.traits(pictures_of(G, ws + sign * step)) for sign in (-1, 1))
        rows.append((high - low).mean(0) / (2 * AMOUNT) / spread)
    return Effect(found.names, torch.stack(rows))


def lines_of(reading: Reading, ratio: Tensor, told: Tensor, effects: Mapping[str, Effect]) -> list[str]:
    """Returns the lines of a Markdown table, a trait a row, those first that w tells best."""
    heads = ["trait", "read", "spread", "told by w"]
    heads += [f"{kind}: moved" for kind in effects]
    heads += [f"{kind}: leak" for kind in effects]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for k in told.argsort(descending=True).tolist():
        rows = {kind: (effect.names.index(reading.names[k]) if reading.names[k] in effect.names else effect.best(k))
                for kind, effect in effects.items()}  # fmt: skip
        cells = [reading.names[k].replace("_", " ")]
        cells += [f"{reading.told[reading.kept[k]]:.2f}", f"{ratio[k]:.2f}", f"{told[k]:.2f}"]
        cells += [f"{abs(effects[kind].own(d, k)):.2f}" for kind, d in rows.items()]
        cells += [f"{effects[kind].leak(d, k):.2f}" for kind, d in rows.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary(reading: Reading, told: Tensor, effects: Mapping[str, Effect]) -> list[str]:
    """Returns a line for each kind: medians over the traits that w tells half of."""
    lines, chosen = [], [k for k in range(len(told)) if told[k] >= 0.5]
    for kind, effect in effects.items():
        rows = [effect.names.index(n) if n in effect.names else effect.best(k) for k, n in enumerate(reading.names)]
        moved = np.median([abs(effect.own(rows[k], k)) for k in chosen])
        leaks = np.median([effect.leak(rows[k], k) for k in chosen])
        lines.append(f"{kind}: of {len(chosen)} traits the median is moved {moved:.2f}, and leaks {leaks:.2f}")
    return lines


def save_picture(path: Path, G: Generator, found: Directions, seed: int) -> None:
    """Writes a head a row, moved along a direction from -3 to 3 deviations."""
    ws = ws_of(G, range(seed, seed + 1), 0.7)
    names = [name for name in PICTURED if name in found.names]
    cameras = G.geometry.frontal().reshape(1, 1)
    rows = []
    for name in names:
        moved = ws + (torch.linspace(-3, 3, 7)[:, None] * found.step(name))[:, None]
        with torch.no_grad():
            image = G.render(G.synthesis(moved), cameras.expand(7, 1)).image
        rows.append(quantize(image)[:, 0])
    save_image_grid(torch.cat(rows), path, 7, 1)
    click.echo(f"{path}: from top to bottom {', '.join(names)}")


@click.command()
@click.option("--network", required=True, help="trained on ray-cast heads over white")
@click.option("--heads", default=3500, show_default=True, help="ray-cast heads that the reader learns from")
@click.option(
    "--table", default=1500, show_default=True, help="generated heads that directions are found from by traits"
)
@click.option("--judged", default=24, show_default=True, help="generated heads that directions are judged on")
@click.option("--psi", default=0.7, show_default=True, help="truncation of these")
@click.option("--cache", type=click.Path(path_type=Path), help="folder that keeps the ray-cast pictures")
@click.option("--scores", type=click.Path(path_type=Path), help="keep the traits as a table for find_directions.py")
@click.option("--picture", type=click.Path(path_type=Path), help="also draw a head moved along some directions")
@click.option("--picture-seed", default=3, show_default=True)
def main(
    network: str, heads: int, table: int, judged: int, psi: float,
    cache: Path | None, scores: Path | None, picture: Path | None, picture_seed: int,
) -> None:  # fmt: skip
    """Prints what directions of w do to the traits of heads."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    G = load_generator(network, "cpu")
    spread = CameraSpread()
    if abs(G.geometry.radius - spread.radius) > 0.01:
        raise click.ClickException(f"the cameras stand {G.geometry.radius:.2f} away, not {spread.radius}")
    reading = fitted(G.geometry, heads, cache)
    unread = ", ".join(f"{NAMES[k]} {share:.2f}" for k, share in enumerate(reading.told.tolist()) if share < READ)
    click.echo(f"The reader tells {READ} of the variance, or more, of {len(reading.kept)} traits; not of {unread}")
    seeds = range(table)
    read = reading.traits(pictures_of(G, ws_of(G, seeds, 1.0)))
    ratio = read.std(0)  # traits are standardised on ray-cast heads
    rows = Scores(tuple(seeds), tuple(reading.names), read.double().numpy())
    if scores:
        text = "\n".join(",".join([str(s), *(f"{v:.5f}" for v in row)]) for s, row in zip(seeds, read, strict=True))
        scores.write_text(f"seed,{','.join(reading.names)}\n{text}\n")
    w = directions.sampled_w(G)
    kinds = {
        "scores": directions.by_scores(G, rows),
        "free": directions.by_scores(G, rows, hold=False),
        "pca": directions.principal(G, w, UNSUPERVISED),
        "layers": directions.closed_form(G, w, UNSUPERVISED),
    }
    ws = ws_of(G, range(FIRST_JUDGED, FIRST_JUDGED + judged), psi)
    effects = {kind: effect_of(G, reading, found, ws, ratio) for kind, found in kinds.items()}
    told = kinds["scores"].shares
    click.echo("\n".join([*lines_of(reading, ratio, told, effects), "", *summary(reading, told, effects)]))
    if picture:
        save_picture(picture, G, kinds["scores"], picture_seed)
    click.echo(f"{Path(network).name}, {time.perf_counter() - started:.0f} s with one thread; {machine.in_one_line()}")


if __name__ == "__main__":
    main()
