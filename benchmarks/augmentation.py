"""Compares runs on few images with and without adaptive augmentation, by their distance to images held out.

    python -m benchmarks.augmentation --outdir=training-runs/augmentation

Makes two sets of ray-cast heads of other seeds, trains on the small one, and measures every snapshot against the large
one with calc_metrics.py. It goes on where it was stopped: runs with --resume=latest, and a snapshot is measured once.
Options after -- are train.py's, for all runs. Writes --json and, with matplotlib, --plot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import machine
from dnnlib import ROOT, parse_color
from training.checkpoint import SNAPSHOT_PATTERN, load_discriminator, read_config, read_progress
from training.data.synthetic.synthesize import synthesize_heads
from training.dataset import ImageDataset
from training.families.base import Conditioning
from training.images import composite

MODES = ("noaug", "ada")
METRIC = "swd2k"
SEEDS_OF_SETS = {"train": 0, "held-out": 1}
COLORS = {"noaug": "#d55e00", "ada": "#0072b2"}


def call(script: str, *arguments: str) -> None:
    """Runs a script of the project in a process of its own. Raises ClickException if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if subprocess.run([sys.executable, str(ROOT / script), *arguments], env=environment, check=False).returncode:
        raise click.ClickException(f"{script} {' '.join(arguments)} failed")


def records(path: Path) -> list[dict[str, Any]]:
    """Reads a file of JSON objects, one a line; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train_one(outdir: Path, name: str, data: Path, arguments: tuple[str, ...]) -> Path:
    """Trains the run `name`, or goes on with it, and returns its folder."""
    call("train.py", f"--data={data}", f"--outdir={outdir}", f"--desc={name}", "--resume=latest", *arguments)
    return next(outdir.glob(f"?????-{name}"))


@torch.no_grad()
def sign(network: Path, data: Path, count: int = 256) -> float:
    """Returns the mean sign of the logits that a checkpoint's discriminator gives the first images of a set, unchanged.

    Its difference between images trained on and held out is what the discriminator knows by heart.
    """
    images = ImageDataset(data)
    batch = images.load(range(min(count, len(images))))
    colour = torch.tensor(parse_color(read_config(network).shown_background)).expand(len(batch.labels), 3)
    seen = composite(batch.images, batch.masks, colour)
    return load_discriminator(network).outputs(seen, Conditioning(batch.labels)).logits.sign().mean().item()


def measure(run_dir: Path, train: Path, held_out: Path) -> list[dict[str, float]]:
    """Returns what there is to tell of each snapshot; its distance to the held-out images is measured once."""
    kept = run_dir / "held-out"
    kept.mkdir(exist_ok=True)
    curve = []
    for path in sorted(run_dir.glob(SNAPSHOT_PATTERN), key=lambda path: read_progress(path)["nimg"]):
        found = {r["snapshot_pkl"]: r["results"][METRIC] for r in records(kept / f"metric-{METRIC}.jsonl")}
        if path.name not in found:
            call(
                "calc_metrics.py", f"--network={path}", f"--data={held_out}", f"--metrics={METRIC}", f"--outdir={kept}"
            )
            found = {r["snapshot_pkl"]: r["results"][METRIC] for r in records(kept / f"metric-{METRIC}.jsonl")}
        signs = {"sign_train": round(sign(path, train), 4), "sign_held_out": round(sign(path, held_out), 4)}
        curve.append({"kimg": read_progress(path)["nimg"] / 1000, METRIC: found[path.name], **signs})
    return curve


def statistics(run_dir: Path) -> dict[str, list[float]]:
    """Returns p and the mean sign of the logits of real and generated images, tick by tick."""
    lines = records(run_dir / "stats.jsonl")
    names = {
        "p": "Augment/p",
        "sign_real": "Logits/real/sign",
        "sign_fake": "Logits/fake/sign",
    }
    series = {short: [round(line.get(name, 0.0), 4) for line in lines] for short, name in names.items()}
    return {"kimg": [line["nimg"] / 1000 for line in lines], **series}


def described(point: dict[str, float]) -> str:
    """Returns one line about a snapshot."""
    signs = f"sign of unchanged images {point['sign_train']:.2f} in training, {point['sign_held_out']:.2f} held out"
    return f"{METRIC} {point[METRIC]:.2f}, {signs}"


def resting(p: list[float]) -> tuple[float, float]:
    """Returns the mean of p over the third and over the last quarter of the ticks: alike where it has come to rest."""
    quarter = max(len(p) // 4, 1)
    before, last = p[-2 * quarter : -quarter] or p, p[-quarter:]
    return sum(before) / len(before), sum(last) / len(last)


def save_plot(path: Path, runs: list[dict[str, Any]]) -> None:
    """Draws the distance to the held-out images, p, and the sign of real logits over the images seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    distance, probability, sign = figure.subplots(1, 3)
    for run in runs:
        look = {"color": COLORS[run["mode"]], "linestyle": "-" if run["seed"] == runs[0]["seed"] else "--"}
        label = f"{run['mode']}, seed {run['seed']}"
        kimg, values = zip(*((p["kimg"], p[METRIC]) for p in run["curve"] if p["kimg"] >= 1), strict=True)
        distance.plot(kimg, values, marker="o", markersize=3, label=label, **look)
        ticks = run["statistics"]
        sign.plot(ticks["kimg"], ticks["sign_real"], **look)
        if run["mode"] == "ada":
            probability.plot(ticks["kimg"], ticks["p"], **look)
    distance.set(xlabel="kimg", ylabel=f"{METRIC} to held-out images")
    probability.set(xlabel="kimg", ylabel="p", ylim=(0, None))
    sign.set(xlabel="kimg", ylabel="mean sign of real logits")
    distance.legend(fontsize=8)
    figure.savefig(path, dpi=100)


@click.command(context_settings={"show_default": True, "ignore_unknown_options": True})
@click.option("--outdir", required=True, type=click.Path(path_type=Path), help="folder of the sets and runs")
@click.option("--preset", default="micro", help="preset of all runs")
@click.option("--resolution", default=32, help="pixels of the images")
@click.option("--images", default=300, help="images to train on")
@click.option("--held-out", default=2000, help="images to measure against")
@click.option("--seeds", default="0,1", help="of the runs, comma-separated")
@click.option(
    "--target", type=float, help="mean sign of real logits, of the runs with augmentation; train.py's if none"
)
@click.option("--json", "out", type=click.Path(path_type=Path), help="file for the figures")
@click.option("--plot", type=click.Path(path_type=Path), help="picture of the curves")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(
    outdir: Path,
    preset: str,
    resolution: int,
    images: int,
    held_out: int,
    seeds: str,
    target: float | None,
    out: Path | None,
    plot: Path | None,
    options: tuple[str, ...],
) -> None:
    """Train, measure and compare. OPTIONS after -- go to train.py."""
    counts, folders = {"train": images, "held-out": held_out}, {}
    for name, made_with in SEEDS_OF_SETS.items():
        synthesize_heads(outdir / name, counts[name], resolution, seed=made_with)
        folders[name] = outdir / name / str(resolution)
    runs = []
    augmented = ("--aug=ada",) if target is None else ("--aug=ada", f"--target={target:g}")
    for seed in seeds.split(","):
        for mode in MODES:
            own = augmented if mode == "ada" else ()
            arguments = (f"--preset={preset}", f"--seed={seed}", "--metrics=none", "--no-validate", *options, *own)
            run_dir = train_one(outdir, f"{mode}-{seed}", folders["train"], arguments)
            curve = measure(run_dir, folders["train"], folders["held-out"])
            series = statistics(run_dir)
            runs.append({"mode": mode, "seed": int(seed), "curve": curve, "statistics": series})
            click.echo(f"{mode}, seed {seed}: after {curve[-1]['kimg']:g} kimg {described(curve[-1])}")
            if mode == "ada":
                before, last = resting(series["p"])
                click.echo(f"  p {before:.3f} in the third quarter of the ticks, {last:.3f} in the last")
    if out:
        record = {
            "machine": machine.facts(),
            "images": images,
            "held_out": held_out,
            "options": [f"--preset={preset}", *options],
            "augmented": list(augmented),
            "runs": runs,
        }
        out.write_text(json.dumps(record, indent=1) + "\n")
    if plot:
        save_plot(plot, runs)


if __name__ == "__main__":
    main()
