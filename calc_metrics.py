"""Computes metrics of a checkpoint: one JSON line each, printed and appended to metric-<name>.jsonl."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

import metrics
from torch_utils import distributed, launcher
from training.checkpoint import load_generator
from training.dataset import ImageDataset


class ProgressBar:
    """A tqdm bar that starts afresh for every kind of image. With several processes it shows those of the first."""

    def __init__(self, name: str) -> None:
        self.name, self.what, self.bar = name, "", tqdm(disable=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.bar.close()
            self.what = what
            self.bar = tqdm(total=total, desc=f"{self.name}: {what}", unit="img", leave=False, disable=None)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()


@click.command()
@click.option("--network", required=True, metavar="FILE", help="Checkpoint, network-snapshot-NNNNNN.pkl")
@click.option("--metrics", "metric_names", metavar="LIST", help="Comma-separated [default: those of the checkpoint]")
@click.option("--data", metavar="DIR", help="Image folder [default: the one the network was trained on]")
@click.option("--index-list", metavar="NAME|FILE|all", help="Items of it [default: those of the training]")
@click.option("--detector", metavar="PATH|URL|tiny|untrained", help="Inception weights [default: $SPLATGAN_DETECTOR]")
@click.option(
    "--detector-vgg", metavar="PATH|URL|tiny|untrained", help="VGG-16 weights [default: $SPLATGAN_DETECTOR_VGG]"
)
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Processes; changes no value")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of latents and cameras")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Changes no value")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Keep statistics of real images")
@click.option("--outdir", metavar="DIR", help="Where the .jsonl files go [default: beside the network]")
def main(
    network: str,
    metric_names: str | None,
    data: str | None,
    index_list: str | None,
    detector: str | None,
    detector_vgg: str | None,
    device: str,
    gpus: int,
    seed: int,
    batch_size: int,
    cache: bool,
    outdir: str | None,
) -> None:
    """Compute metrics of a trained generator.

    fid<N>_full, fid3d_<N>_full, kid<N>_full, pr<N>k3_full, pr_inception<N>k3_full, is<N>, swd<N>, view_drift<N> and
    fid_yaw<N> exist, <N> a number of generated images such as 200 or 50k.

    \b
    python calc_metrics.py --network=runs/00000/network-snapshot-000040.pkl --metrics=swd2k
    """
    if gpus > 1 and not distributed.is_launched():
        sys.exit(launcher.launch(gpus, [os.path.abspath(__file__), *sys.argv[1:]]))
    try:
        where = _device(device)
        G = load_generator(network, device=where)
        names = _names(metric_names, G.checkpoint_config)
        detectors = _detectors(names, detector, detector_vgg, G.checkpoint_config, where)
        dataset = _dataset(data, index_list, G.checkpoint_config)
        for name in names:
            result = metrics.compute_metric(
                name,
                G,
                dataset,
                seed=seed,
                **detectors,
                device=where,
                batch_size=batch_size,
                cache=cache,
                progress=ProgressBar(name) if distributed.rank() == 0 else None,
            )
            if distributed.rank() == 0:
                if "cache" in result.real_statistics:
                    click.echo(f"{name}: features of the real images: {result.real_statistics}", err=True)
                click.echo(json.dumps(metrics.write_result(result, outdir or Path(network).parent, network)))
    except metrics.MetricUnavailable as reason:
        raise click.ClickException(str(reason)) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        distributed.finalise()


def _detectors(
    names: list[str], inception: str | None, vgg: str | None, config: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Every detector that the metrics need, loaded once; view_drift takes the source as it comes."""
    sources = {"detector": inception or config.get("detector"), "detector_vgg": vgg or config.get("detector_vgg")}
    needed = {metrics.needs_detector(name) for name in names}
    for option, kind in (("detector", "inception"), ("detector_vgg", "vgg")):
        if kind in needed:
            sources[option] = metrics.load_on_all_ranks(sources[option], kind, device)
    return sources


def _device(name: str) -> torch.device:
    """The device of this process; joins the other processes if there are any."""
    if name in ("auto", "cpu", "cuda"):
        return distributed.initialise(name)
    if distributed.is_launched():
        raise click.ClickException(f"--device={name} names one device; with --gpus, auto, cpu and cuda are legal")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise click.ClickException(f"--device={name} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def _names(given: str | None, config: dict[str, Any]) -> list[str]:
    names = list(config["metrics"]) if given is None else [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise click.ClickException("--metrics names no metric, and the checkpoint has none of its own")
    for name in names:
        metrics.parse_metric(name)
    return names


def _dataset(given: str | None, index_list: str | None, config: dict[str, Any]) -> ImageDataset:
    """The data at `given` or those of the training, with the training's index list unless another is asked for."""
    path = config["data"] if given is None else given
    dataset = ImageDataset(path, config.get("index_list") if index_list is None else index_list)
    if distributed.rank() == 0:
        if given is None:
            click.echo(f"--data not given: measuring against the training data, {path}", err=True)
        click.echo(f"{path}: {dataset.index_description}", err=True)
    return dataset


if __name__ == "__main__":
    main()
