"""Computes metrics of a checkpoint: one JSON line each, printed and appended to metric-<name>.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from tqdm import tqdm

import metrics
from training.checkpoint import load_generator
from training.dataset import ImageDataset


class ProgressBar:
    """A tqdm bar that starts afresh for every kind of image."""

    def __init__(self, name: str) -> None:
        self.name, self.what, self.bar = name, "", tqdm(disable=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.bar.close()
            self.what = what
            self.bar = tqdm(total=total, desc=f"{self.name}: {what}", unit="img", leave=False)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()


@click.command()
@click.option("--network", required=True, metavar="FILE", help="Checkpoint, network-snapshot-NNNNNN.pkl")
@click.option("--metrics", "metric_names", metavar="LIST", help="Comma-separated [default: those of the checkpoint]")
@click.option("--data", metavar="DIR", help="Image folder [default: the one the network was trained on]")
@click.option("--detector", metavar="PATH|URL|untrained", help="Inception weights [default: $SPLATGAN_DETECTOR]")
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of latents and cameras")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Changes no value")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Keep statistics of real images")
@click.option("--outdir", metavar="DIR", help="Where the .jsonl files go [default: beside the network]")
def main(
    network: str,
    metric_names: str | None,
    data: str | None,
    detector: str | None,
    device: str,
    seed: int,
    batch_size: int,
    cache: bool,
    outdir: str | None,
) -> None:
    """Compute metrics of a trained generator.

    fid<N>_full, fid3d_<N>_full and swd<N> exist, <N> a number of generated images such as 200 or 50k.

    \b
    python calc_metrics.py --network=runs/00000/network-snapshot-000040.pkl --metrics=swd2k
    """
    where = _device(device)
    try:
        G = load_generator(network, device=where)
        config = G.checkpoint_config
        names = _names(metric_names, config)
        feature_network = None
        if any(metrics.needs_detector(name) for name in names):
            feature_network = metrics.load_detector(detector or config.get("detector"), where)
        dataset = _dataset(data, config)
        for name in names:
            result = metrics.compute_metric(
                name,
                G,
                dataset,
                seed=seed,
                detector=feature_network,
                device=where,
                batch_size=batch_size,
                cache=cache,
                progress=ProgressBar(name),
            )
            if feature_network is not None and metrics.needs_detector(name):
                click.echo(f"{name}: statistics of the real images: {result.real_statistics}", err=True)
            line = metrics.write_result(result, outdir or Path(network).parent, network)
            click.echo(json.dumps(line))
    except metrics.MetricUnavailable as reason:
        raise click.ClickException(str(reason)) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise click.ClickException(f"--device={name} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def _names(given: str | None, config: dict) -> list[str]:
    names = list(config["metrics"]) if given is None else [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise click.ClickException("--metrics names no metric, and the checkpoint has none of its own")
    for name in names:
        metrics.parse_metric(name)
    return names


def _dataset(given: str | None, config: dict) -> ImageDataset:
    if given is not None:
        return ImageDataset(given)
    click.echo(f"--data not given: measuring against the training data, {config['data']}", err=True)
    return ImageDataset(config["data"], config.get("index_list"))


if __name__ == "__main__":
    main()
