"""Computes metrics of a checkpoint: one JSON line each, printed and appended to metric-<name>.jsonl."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

import itertools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

import metrics
from dnnlib.command import CONTEXT, GroupedCommand, group, option, refuse, version
from dnnlib.numbers import SEED
from metrics.measuring import estimate
from torch_utils import distributed, launcher
from training.averages import parse_lengths
from training.checkpoint import load_averages, load_generator
from training.config import TrainingConfig
from training.dataset import ImageDataset

COUNT = click.IntRange(min=1)
LONG = 1000  # generated images, from which on a metric says beforehand how long it will take
WEIGHTS = "PATH|URL|tiny|untrained"


# fmt: off
FILES = group(
    "Files",
    option("--network", required=True, metavar="FILE", help="checkpoint: network-snapshot-NNNNNN.pkl"),
    option("--ema", metavar="LIST", show_default="the average that pictures show",
           help="instead each of these averages of the weights, by half-life in kimg, as train.py --ema kept them"),
    option("--data", metavar="DIR|ZIP", show_default="the one the network was trained on", help="folder of the images"),
    option("--index-list", metavar="NAME|FILE|all", show_default="that of the training",
           help="images of it to use, and how often"),
    option("--outdir", metavar="DIR", show_default="beside the network", help="where the .jsonl files go"),
)

THEIRS = {  # options of the published script -> what to do instead, and the value that means what happens here
    "--mirror": ("the images are measured as they are, as published: its metrics never mirror them", "False"),
    "--verbose": ("every metric prints its line", "True"),
    "--save-images": ("gen_samples.py --images writes pictures", "False"),
}

METRICS = group(
    "Metrics",
    option("--metrics", metavar="LIST", show_default="those of the checkpoint", help="comma-separated"),
    option("--detector", metavar=WEIGHTS, show_default="that of the checkpoint, or $SPLATGAN_DETECTOR",
           help="Inception weights for FID and kin"),
    option("--detector-vgg", metavar=WEIGHTS, show_default="that of the checkpoint, or $SPLATGAN_DETECTOR_VGG",
           help="VGG-16 weights for pr<N>k3_full"),
    option("--seed", type=SEED, default=0, help="latents and cameras follow from it"),
    option("--cache/--no-cache", default=True, help="keep statistics of real images"),
)

MACHINE = group(
    "Machine",
    option("--device", metavar="NAME", default="auto", help="cpu, cuda, cuda:1, ...; auto: CUDA where there is one"),
    option("--gpus", type=COUNT, default=1, help="processes; changes no value"),
    option("--batch-size", type=COUNT, default=32, help="images at once; changes no value"),
)
# fmt: on


@dataclass(frozen=True)
class Request:
    """Holds the command line."""

    network: str  # checkpoint
    ema: str | None  # averages to measure, by half-life in kimg, comma-separated; None: G_ema
    data: str | None  # folder of the images; None: that of the training
    index_list: str | None  # images to use; None: those of the training
    outdir: str | None  # where the results go; None: beside the checkpoint
    metrics: str | None  # names, comma-separated; None: those of the checkpoint
    detector: str | None  # Inception weights; None: those of the training, or of the environment
    detector_vgg: str | None  # VGG-16 weights; None: as `detector`
    seed: int  # latents and cameras follow from it
    cache: bool  # keep statistics of real images
    device: str  # auto, or a name of torch's
    gpus: int  # processes on this machine
    batch_size: int  # images at once


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@METRICS
@MACHINE
@version
@refuse(THEIRS)
def main(**options: Any) -> None:
    """Compute metrics of a trained generator.

    fid<N>_full, fid3d_<N>_full, kid<N>_full, pr<N>k3_full, pr_inception<N>k3_full, is<N>, swd<N>, swd3d_<N>,
    view_drift<N>, fid_yaw<N> and swd_yaw<N> exist, <N> a number of generated images such as 200 or 50k.

    \b
    python calc_metrics.py --network=runs/00000/network-snapshot-000040.pkl --metrics=swd2k
    """
    request = Request(**options)
    if request.gpus > 1 and not distributed.is_launched():
        sys.exit(launcher.launch(request.gpus, [os.path.abspath(__file__), *sys.argv[1:]]))
    try:
        compute(request)
    except (metrics.MetricUnavailable, OSError, ValueError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from None
    finally:
        distributed.finalise()


def compute(request: Request) -> None:
    """Computes all metrics that are asked for, and prints and writes them on rank 0.

    Raises MetricUnavailable for the first that cannot run, ClickException, OSError and ValueError.
    """
    device = _device(request.device)
    lengths = (None,) if request.ema is None else dnnlib.parse_flag("--ema", request.ema, parse_lengths)
    networks = [load_generator(request.network, device)] if request.ema is None else []
    networks += load_averages(request.network, [kimg for kimg in lengths if kimg is not None], device)
    assert networks[0].info is not None  # every generator from a file has it
    config = networks[0].info.config
    names = _names(request.metrics, config)
    detector, detector_vgg = metrics.load_detectors(
        names, request.detector or config["detector"], request.detector_vgg or config["detector_vgg"], device
    )
    dataset = _dataset(request, config)
    folder = Path(request.network).parent if request.outdir is None else Path(request.outdir)
    dnnlib.require_place(folder)
    main_rank, ranks = distributed.rank() == 0, distributed.world_size()
    for name, (kimg, G) in itertools.product(names, zip(lengths, networks, strict=True)):
        with metrics.named(name):
            if main_rank and metrics.image_counts(name, len(dataset))[0] >= LONG:
                network = metrics.used_detector(name, detector, detector_vgg)
                click.echo(f"{name}: {estimate(name, G, dataset, device, network, ranks)}", err=True)
            result = metrics.compute_metric(
                name,
                G,
                dataset,
                seed=request.seed,
                detector=detector,
                detector_vgg=detector_vgg,
                device=device,
                batch_size=request.batch_size,
                cache=request.cache,
                progress=metrics.ProgressBar(name) if main_rank else None,
            )
        if main_rank:
            if "cache" in result.real_statistics:
                click.echo(f"{name}: features of the real images: {result.real_statistics}", err=True)
            click.echo(json.dumps(metrics.write_result(result, folder, request.network, kimg)))


def _device(name: str) -> torch.device:
    """Returns the device of this process; joins the other processes if there are any."""
    if name in ("auto", "cpu", "cuda"):
        return distributed.initialise(name)
    if distributed.is_launched():
        raise click.ClickException(f"--device={name} names one device; with --gpus, auto, cpu and cuda are legal")
    try:
        if torch.device(name).type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch asserts that it was built with CUDA
        legal = "auto, cpu, cuda and cuda:N are legal"
        raise click.ClickException(f"--device={name}: there is no such device here; {legal}") from None
    return torch.device(name)


def _names(given: str | None, config: Mapping[str, Any]) -> list[str]:
    """Returns the metrics to compute, each of them a legal name."""
    if given is None:
        names = metrics.parse_metrics(",".join(config["metrics"]))
    else:
        names = dnnlib.parse_flag("--metrics", given, metrics.parse_metrics)
    if not names:
        raise click.ClickException("--metrics names no metric, and the checkpoint has none of its own")
    return list(names)


def _dataset(request: Request, config: Mapping[str, Any]) -> ImageDataset:
    """Opens the data asked for or those of the training, with the training's index list unless another is asked for."""
    path = config["data"] if request.data is None else request.data
    law = TrainingConfig.from_dict(dict(config)).objective.pose_law
    listed = config["index_list"] if request.index_list is None else request.index_list
    dataset = ImageDataset(path, listed, law)
    if distributed.rank() == 0:
        if request.data is None:
            click.echo(f"--data not given: measuring against the training data, {path}", err=True)
        click.echo(f"{path}: {dataset.index_description}", err=True)
    return dataset


if __name__ == "__main__":
    main()
