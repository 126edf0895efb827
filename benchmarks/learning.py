"""Judges whether runs have learnt, by the bars of docs/learning.md, and draws the curve and the pictures.

    python train.py --preset=tiny --data=datasets/demo/64 --outdir=training-runs --seed=0 --desc=learning
    python -m benchmarks.learning --data=datasets/demo/64 training-runs/00000-learning [more runs]

Prints one row a run and writes learning.json, learning-curve.png and learning-heads.png into --outdir.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from gaussian import Cameras, Geometry
from metrics import swd
from torch_utils import random
from torch_utils.distributed import usable_cores
from training.checkpoint import SNAPSHOT_PATTERN, load_generator, read_progress
from training.data.synthetic.synthesize import render_cars, render_heads
from training.dataset import ImageDataset
from training.families.base import Generator
from training.images import composite, quantize
from training.visualization.grids import save_image_grid

COUNT = 2000  # images of each set behind an swd
BINS = 5  # of the data's yaw, equal counts
SECTORS = 8  # of things seen from all around, likewise
DRAWS = 3  # of latents behind each bin's swd: one alone moves the ratio of two bins by a tenth
IDENTITIES = 64
KINDS = {"heads": render_heads, "cars": render_cars}  # of identities that a run is compared with
BATCH = 50
BARS = {
    "way": (0.80, "at least", "share of the way from 0 kimg to the real-against-real floor"),
    "of_mean_image": (0.50, "at most", "swd over that of the data's mean image"),
    "diversity": (0.50, "at least", "pairwise pixel RMS over that of synthesised identities"),
    "outer_yaw": (2.00, "at most", "swd of the outer yaw bins over the middle one's (the worse of two)"),
    "relief": (0.50, "at least", "median frontal depth relief over that of synthesised identities"),
    "facing": (1.00, "at least", "share of eight yaw sectors that are nearest to the data's from the same side"),
}


# ---------------------------------------------------------------- image sets


def reals(dataset: ImageDataset, items: np.ndarray) -> Tensor:
    """Loads images uint8 [N, 3, R, R] over white."""
    batch = dataset.load(items)
    return quantize(composite(batch.images, batch.masks, torch.ones(len(items), 3)))


@torch.no_grad()
def fakes(G: Generator, labels: Tensor, seed: int = 0) -> Tensor:
    """Generates images uint8 [N, 3, R, R] over white, one latent per label."""
    parts = []
    for start in range(0, len(labels), BATCH):
        cameras = Cameras.from_labels(labels[start : start + BATCH])
        z = random.normal(seed, "benchmark/z", range(start, start + len(cameras)), (G.z_dim,))
        scene = G.synthesis(G.mapping(z, cameras))
        parts.append(quantize(G.render(scene, cameras[:, None]).image[:, 0]))
    return torch.cat(parts)


def mean_swd(a: Tensor, b: swd.PatchDescriptors) -> float:
    """Returns the sliced Wasserstein distance of images uint8 [N, 3, R, R] to described ones, mean over levels."""
    return swd.distance(swd.describe(a), b)["mean"]


# ---------------------------------------------------------------- figures


class Reference:
    """Holds what every run is measured against, from the data alone."""

    def __init__(self, dataset: ImageDataset, identity_seed: int, kind: str = "heads"):
        self.dataset = dataset
        self.all_around = kind == "cars"
        self.labels = torch.from_numpy(dataset.labels)
        count = min(COUNT, len(dataset) // 2)
        order = random.permutation(0, "benchmark/reals", 0, len(dataset))
        self.items, self.others = order[:count], order[count : 2 * count]
        self.set = swd.describe(reals(dataset, self.items))
        camera = dataset.geometry.frontal().reshape(1).expand(IDENTITIES)
        images, masks, depth = (
            torch.as_tensor(part) for part in KINDS[kind](identity_seed, range(IDENTITIES), camera, dataset.resolution)
        )
        self.heads = quantize(composite(images, masks, torch.ones(IDENTITIES, 3)))
        self.diversity = pairwise_rms(self.heads)
        self.relief = depth_relief(depth[:, 0], masks[:, 0] > 127)

    @functools.cached_property
    def floor(self) -> float:
        """Returns the distance of as many other real images."""
        return mean_swd(reals(self.dataset, self.others), self.set)

    @functools.cached_property
    def mean_image(self) -> float:
        """Returns the distance of the mean of all images."""
        mean = reals(self.dataset, np.arange(len(self.dataset))).float().mean(0).round().to(torch.uint8)
        return mean_swd(mean.expand(len(self.items), -1, -1, -1), self.set)

    def yaw_bins(self, count: int = BINS) -> list[np.ndarray]:
        """Returns the items of each bin, of equal count, from the most negative yaw to the most positive."""
        yaw, _ = Cameras.from_labels(self.labels).yaw_pitch(self.dataset.geometry)
        return np.array_split(np.argsort(yaw.numpy(), kind="stable"), count)

    def sectors(self, G: Generator) -> np.ndarray:
        """Returns the distances [SECTORS, SECTORS] of what is generated in one sector of yaw to the data in each."""
        bins = self.yaw_bins(SECTORS)
        parts = [swd.describe(reals(self.dataset, items)) for items in bins]
        made = [swd.describe(fakes(G, self.labels[items])) for items in bins]
        return np.array([[swd.distance(one, part)["mean"] for part in parts] for one in made])


def pairwise_rms(images: Tensor) -> float:
    """Returns the mean over pairs of the root mean square pixel difference, in 0..255."""
    flat = images.double().flatten(1)
    distance = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    count = len(flat)
    return float(distance.sum() / (count * (count - 1)))


def depth_relief(depth: Tensor, inside: Tensor) -> float:
    """Returns the median over scenes of the 10th to 90th percentile range of `depth` [N,H,W] where `inside`."""
    ranges = []
    for values, mask in zip(depth, inside, strict=True):
        if mask.any():
            low, high = values[mask].double().quantile(torch.tensor([0.1, 0.9], dtype=torch.float64))
            ranges.append(float(high - low))
    return float(np.median(ranges)) if ranges else 0.0


@torch.no_grad()
def frontal(G: Generator, geometry: Geometry) -> tuple[Tensor, float]:
    """Returns frontal images uint8 [64, 3, R, R] and the median depth relief of as many seeds."""
    cameras = geometry.frontal().reshape(1).expand(IDENTITIES)
    z = random.normal(0, "benchmark/frontal", range(IDENTITIES), (G.z_dim,))
    out = G.render(G.synthesis(G.mapping(z, cameras)), cameras[:, None])
    alpha = out.alpha[:, 0, 0]
    depth = out.depth[:, 0, 0] / alpha.clamp_min(1e-6)  # `depth` is accumulated, not divided by alpha
    return quantize(out.image[:, 0]), depth_relief(depth, alpha > 0.5)


def snapshots_of(run: Path) -> list[tuple[int, Path]]:
    """Returns the checkpoints of a run with the images seen, in their order."""
    return sorted((read_progress(path)["nimg"], path) for path in run.glob(SNAPSHOT_PATTERN))


def judge(run: Path, reference: Reference, ends_only: bool = False) -> dict[str, Any]:
    """Returns all figures of one run, and which of them meet their bars; ends_only: the curve has two points."""
    snapshots = snapshots_of(run)
    if len(snapshots) < 2:
        raise click.ClickException(f"{run}: needs the checkpoint at 0 kimg and a later one, found {len(snapshots)}")
    snapshots = [snapshots[0], snapshots[-1]] if ends_only else snapshots
    chosen = reference.labels[reference.items]
    curve = []
    for nimg, path in snapshots:
        G = load_generator(path)
        curve.append({"kimg": nimg / 1000, "swd2k": mean_swd(fakes(G, chosen), reference.set)})
    bins = []
    for items in reference.yaw_bins():
        part = swd.describe(reals(reference.dataset, items))
        draws = [mean_swd(fakes(G, reference.labels[items], seed), part) for seed in range(DRAWS)]
        bins.append(float(np.mean(draws)))
    images, relief = frontal(G, reference.dataset.geometry)
    start, end = curve[0]["swd2k"], curve[-1]["swd2k"]
    figures: dict[str, float] = {
        "way": (start - end) / (start - reference.floor),
        "of_mean_image": end / reference.mean_image,
        "diversity": pairwise_rms(images) / reference.diversity,
        "outer_yaw": max(bins[0], bins[-1]) / bins[BINS // 2],
        "relief": relief / reference.relief,
    }
    sectors = reference.sectors(G) if reference.all_around else np.zeros((0, 0))
    if len(sectors):
        figures["facing"] = float((sectors.argmin(axis=1) == np.arange(SECTORS)).mean())
    ticks = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert G.info is not None
    return {
        "run": run.name,
        "seed": G.info.config["seed"],
        "kimg": curve[-1]["kimg"],
        "minutes": ticks[-1]["timing"]["total_sec"] / 60,
        "sec_per_kimg": float(np.median([t["timing"]["sec_per_kimg"] for t in ticks[1:]])),
        "peak_gib": max(t["timing"]["cpu_peak_gib"] for t in ticks),
        "swd2k": end,
        "yaw_bins": bins,
        "sectors": sectors.tolist(),
        "figures": figures,
        "passed": {name: passes(name, value) for name, value in figures.items()},
        "curve": curve,
    }


def passes(name: str, value: float) -> bool:
    """Says whether a figure meets its bar."""
    bar, way, _ = BARS[name]
    return value >= bar if way == "at least" else value <= bar


# ---------------------------------------------------------------- pictures


@torch.no_grad()
def save_turns(path: Path, runs: list[Path], kind: str) -> None:
    """Draws two identities of each run, one a row, at seven yaws: from -1 to 1 rad, or all around for cars."""
    yaws = torch.linspace(-1, 1, 7) if kind == "heads" else torch.arange(7) * (2 * math.pi / 7)
    rows = []
    for run in runs:
        _, newest = snapshots_of(run)[-1]
        G = load_generator(newest)
        z = random.normal(0, "benchmark/frontal", range(2), (G.z_dim,))
        cameras = G.geometry.orbit(yaws).reshape(1, 7).expand(2, 7)
        ws = G.mapping(z, G.geometry.frontal().reshape(1).expand(2))
        rows.append(G.render(G.synthesis(ws), cameras).image.flatten(0, 1))
    save_image_grid(torch.cat(rows), path, 7, factor=2)


def save_curve(path: Path, reference: Reference, results: list[dict[str, Any]]) -> None:
    """Draws the distance to the data over the images seen, one line a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for result in results:
        kimg, value = zip(*((p["kimg"], p["swd2k"]) for p in result["curve"]), strict=True)
        axes.plot(kimg, value, marker="o", markersize=3, label=f"seed {result['seed']}")
    axes.axhline(reference.mean_image, color="0.6", linestyle=":", label="the data's mean image")
    axes.axhline(reference.floor, color="0.3", linestyle="--", label="real against real")
    axes.set(xlabel="kimg", ylabel="swd2k of G_ema, mean over levels", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def report(reference: Reference, results: list[dict[str, Any]]) -> str:
    """Puts the figures and the verdicts of all runs into text."""
    lines = [
        f"real against real {reference.floor:.1f}, mean image {reference.mean_image:.1f}; synthesised identities: "
        f"pairwise RMS {reference.diversity:.1f}, relief {reference.relief:.3f}",
    ]
    for result in results:
        lines.append(
            f"{result['run']}: seed {result['seed']}, {result['kimg']:.1f} kimg in {result['minutes']:.1f} min "
            f"({result['sec_per_kimg']:.1f} s/kimg), peak {result['peak_gib']:.2f} GiB; swd2k "
            f"{result['curve'][0]['swd2k']:.1f} -> {result['swd2k']:.1f}"
        )
        for name, value in result["figures"].items():
            bar, way, meaning = BARS[name]
            verdict = "pass" if result["passed"][name] else "FAIL"
            lines.append(f"    {verdict}  {name:14s} {value:.3f} ({way} {bar:g}): {meaning}")
        if result["sectors"]:
            away = np.roll(np.array(result["sectors"]), -SECTORS // 2, axis=1)
            own, other = np.diagonal(np.array(result["sectors"])), np.diagonal(away)
            lines.append(f"    swd to the data of the same sector {own.round(1)}, of the opposite one {other.round(1)}")
    return "\n".join(lines)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", required=True, help="the data set that the runs were trained on")
@click.option("--outdir", default="docs/images", show_default=True, type=click.Path(path_type=Path))
@click.option("--identity-seed", default=1000, show_default=True, help="of the synthesised identities to compare with")
@click.option("--kind", default="heads", show_default=True, type=click.Choice(list(KINDS)), help="that the data shows")
@click.option("--ends-only", is_flag=True, help="measure the first and the last checkpoint of each run alone")
def main(runs: tuple[Path, ...], data: str, outdir: Path, identity_seed: int, kind: str, ends_only: bool) -> None:
    """Judge RUNS; exit status 1 if any misses a bar."""
    torch.set_num_threads(usable_cores())
    reference = Reference(ImageDataset(data), identity_seed, kind)
    results = [judge(run, reference, ends_only) for run in runs]
    print(report(reference, results))
    outdir.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine.in_one_line(),
        "floor": reference.floor,
        "mean_image": reference.mean_image,
        "diversity_of_data": reference.diversity,
        "relief_of_data": reference.relief,
        "bars": {name: f"{way} {bar:g}" for name, (bar, way, _) in BARS.items()},
        "runs": results,
    }
    (outdir / "learning.json").write_text(json.dumps(record, indent=1) + "\n")
    save_curve(outdir / "learning-curve.png", reference, results)
    save_turns(outdir / "learning-heads.png", list(runs), kind)
    sys.exit(0 if all(all(r["passed"].values()) for r in results) else 1)


if __name__ == "__main__":
    main()
