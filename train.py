"""Trains a 3D GAN whose generator emits Gaussian splats."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path

import click

import dnnlib
import metrics
from torch_utils import distributed
from training import presets
from training.checkpoint import CheckpointError
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.training_loop import Diverged, Options, train

# Options whose only work is to beat one field of the preset.
FIELDS = {
    "kimg": "total_kimg",
    "tick": "tick_kimg",
    "img_snap": "image_ticks",
    "network_snap": "snapshot_ticks",
    "batch": "batch",
    "batch_gpu": "batch_gpu",
    "gamma": "gamma",
    "glr": "g_lr",
    "dlr": "d_lr",
    "mirror": "mirror",
    "seed": "seed",
    "use_multiview_reg": "multiview",
    "num_multiview": "num_views",
    "center_dists": "center_weight",
    "knn_dists": "knn_weight",
    "knn_num_ks": "knn_neighbours",
    "blur_fade_kimg": "blur_fade_kimg",
    "precision": "precision",
    "rasterizer": "rasterizer",
    "detector": "detector",
}


def _dashes(name: str) -> str:
    """Option names arrive without their leading dashes: --batch_gpu is --batch-gpu."""
    return name.replace("_", "-")


@click.command(context_settings={"token_normalize_func": _dashes, "show_default": True, "max_content_width": 120})
# Data and place
@click.option(
    "--data", required=True, metavar="DIR", help="folder of the images, with dataset.json and mask/ beside it"
)
@click.option("--outdir", default="training-runs", metavar="DIR", help="where run folders are made")
@click.option("--desc", metavar="TEXT", help="goes into the run folder's name")
@click.option("--mirror", type=bool, help="flip image, mask and camera of every second sample")
# Model
@click.option(
    "--preset", metavar="NAME", help=f"{', '.join(presets.PRESETS)}; by default the data's resolution picks it"
)
@click.option("--resume", metavar="PKL", help="continue this checkpoint in a new run folder")
# Length
@click.option("--kimg", type=float, help="length in thousands of real images; fractions are allowed")
@click.option("--tick", type=float, help="kimg between two status lines")
@click.option("--minutes", type=float, help="end the run after this time")
@click.option("--img-snap", type=click.IntRange(min=1), help="ticks between two pictures")
@click.option("--network-snap", type=click.IntRange(min=1), help="ticks between two checkpoints")
@click.option("--metrics", "metric_names", metavar="LIST", help="comma-separated, or none")
@click.option("--detector", metavar="PATH|URL|untrained", help="Inception weights for FID")
# Optimisation
@click.option("--batch", type=click.IntRange(min=1), help="samples a step, over all ranks")
@click.option("--batch-gpu", type=click.IntRange(min=1), help="samples a micro-batch")
@click.option("--gamma", type=click.FloatRange(min=0), help="R1 weight")
@click.option("--glr", type=float, help="learning rate of the generator")
@click.option("--dlr", type=float, help="learning rate of the discriminator")
@click.option("--seed", type=click.IntRange(min=0), help="everything random follows from it")
@click.option("--use-multiview-reg", "--use-multivew-reg", type=bool, help="several views of each scene a step")
@click.option("--num-multiview", type=click.IntRange(min=1), help="how many")
@click.option("--center-dists", type=float, help="weight of the centre term")
@click.option("--knn-dists", type=float, help="weight of the nearest-neighbour term")
@click.option("--knn-num-ks", type=click.IntRange(min=1), help="its number of neighbours")
@click.option("--blur-fade-kimg", type=float, help="kimg over which the initial blur fades")
# Machine
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA where there is one"
)
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="processes on this machine")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="of the convolutions")
@click.option("--rasterizer", type=click.Choice(["auto", "torch", "cpu", "gsplat"]), help="back end of the splatting")
# Logging
@click.option("--tensorboard", is_flag=True, help="also write TensorBoard events (needs the package)")
@click.option("--wandb", type=click.Choice(["off", "offline", "online"]), default="off", help="also log to W&B")
def main(data, outdir, desc, preset, resume, minutes, metric_names, device, gpus, tensorboard, wandb, **flags):
    """Train a 3D GAN on posed images.

    \b
    python train.py --data=datasets/heads/64 --outdir=training-runs
    python train.py --data=/data/FFHQC/512 --gpus=4 --gamma=1
    """
    if gpus > 1 and not distributed.is_launched():
        sys.exit(distributed.launch(gpus, [os.path.abspath(__file__), *sys.argv[1:]]))
    try:
        chosen = distributed.initialise(device)
        dataset = ImageDataset(data)
        config = resolve(dataset, data, preset, metric_names, flags)
        config.check(distributed.world_size())
        run_dir = _make_run_dir(Path(outdir), desc or config.preset)
        options = Options(run_dir, chosen, minutes, resume, tensorboard, wandb)
        if distributed.rank() == 0:
            with dnnlib.Logger(run_dir / "log.txt"):
                train(config, options, dataset)
        else:
            train(config, options, dataset)
    except (CheckpointError, Diverged, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        distributed.finalise()


def resolve(
    dataset: ImageDataset, data: str, preset: str | None, metric_names: str | None, flags: dict[str, object]
) -> TrainingConfig:
    """The preset's values, beaten by every flag that was given. Raises ValueError for unknown names."""
    config = presets.resolve(preset or dataset.resolution, data=os.path.abspath(data))
    if config.generator.resolution != dataset.resolution:
        raise ValueError(
            f"--preset={config.preset} is for {config.generator.resolution} px, the images in {data} have "
            f"{dataset.resolution} px; leave --preset out or convert the data"
        )
    given = {FIELDS[name]: value for name, value in flags.items() if value is not None}
    if metric_names is not None:
        names = [] if metric_names == "none" else [n for n in re.split(r"[,\s]+", metric_names) if n]
        for name in names:
            metrics.parse_metric(name)
        given["metrics"] = tuple(names)
    return dataclasses.replace(config, **given)


def _make_run_dir(outdir: Path, desc: str) -> Path:
    """`<outdir>/NNNNN-<desc>` with the next free number; made by rank 0, the others need no folder."""
    if distributed.rank() != 0:
        return outdir
    outdir.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^\w.=+-]+", "-", desc).strip("-") or "run"
    numbers = [int(m[1]) for p in outdir.iterdir() if (m := re.match(r"(\d{5})-", p.name))]
    number = max(numbers, default=-1) + 1
    while True:
        path = outdir / f"{number:05d}-{slug}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run took the number
            number += 1


if __name__ == "__main__":
    main()
