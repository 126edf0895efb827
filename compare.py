"""Compares trained generators by one protocol: a table, and a page that needs no other file."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

import metrics
from dnnlib.command import CONTEXT, GroupedCommand, group, option, version
from dnnlib.numbers import SEED, FloatRange
from torch_utils import distributed, launcher
from training.comparison import compute, equal_time, systems
from training.comparison.page import build_page
from training.comparison.quoted import read_quoted, shipped
from training.comparison.store import Store, write_whole
from training.comparison.table import quality_table, size_table, to_markdown
from training.dataset import ImageDataset
from training.families.base import Generator

COUNT = click.IntRange(min=1)
DEFAULT_METRICS = "swd2k,swd3d_2k,swd_yaw1k,view_drift256"  # none needs a detector
WEIGHTS = "PATH|URL|tiny|untrained"
Source = str | metrics.Detector | None  # of features


# fmt: off
SYSTEMS = group(
    "Systems (any of the three, in this order in the table)",
    option("--networks", metavar="PKL,...", help="checkpoints, ours or published"),
    option("--runs", metavar="DIR,...", help="run folders, of each the newest checkpoint"),
    option("--train", metavar="PRESET,...", help="presets to train first, each for --minutes, in --outdir/runs"),
    option("--minutes", type=FloatRange(min=0, min_open=True),
           help="that each preset of --train trains; what was interrupted goes on"),
    option("--names", metavar="NAME,...", show_default="of the run folders, files and presets",
           help="what the systems are called"),
)

FILES = group(
    "Data and results",
    option("--data", required=True, metavar="DIR|ZIP", help="the images that all networks were trained on"),
    option("--index-list", metavar="NAME|FILE|all",
           show_default="smile_pose_rebalancing where it lies beside dataset.json, else all",
           help="the reals of the metrics, and how often each counts"),
    option("--outdir", required=True, metavar="DIR",
           help="where comparison.json, comparison.md and comparison.html go"),
    option("--quoted", metavar="NAME|FILE", help=f"figures from papers to show beside: {', '.join(shipped())}, or a "
           "JSON file (docs/comparison.md)"),
)

PROTOCOL = group(
    "Protocol",
    option("--metrics", "wanted", metavar="LIST", default=DEFAULT_METRICS, help="comma-separated"),
    option("--detector", metavar=WEIGHTS, show_default="$SPLATGAN_DETECTOR", help="Inception weights for FID and kin"),
    option("--detector-vgg", metavar=WEIGHTS, show_default="$SPLATGAN_DETECTOR_VGG",
           help="VGG-16 weights for pr<N>k3_full"),
    option("--seed", type=SEED, default=0, help="latents and cameras of the metrics follow from it"),
    option("--seeds", metavar="LIST", default="0-3", help="one head each in the pictures: 0-3,7"),
    option("--background", metavar="auto|own|white|black|R,G,B", default="auto",
           help="behind reals and fakes; auto: one that suits all networks; own: of each network's training"),
    option("--cache/--no-cache", default=True, help="take values from earlier calls, and keep new ones"),
)

MACHINE = group(
    "Machine",
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
    option("--gpus", type=COUNT, default=1, help="processes; changes no value"),
    option("--batch-size", type=COUNT, default=32, help="images at once; changes no value"),
)
# fmt: on


@dataclass(frozen=True)
class Request:
    """Holds the command line."""

    networks: str | None  # checkpoints, comma-separated
    runs: str | None  # run folders, comma-separated
    train: str | None  # presets, comma-separated
    minutes: float | None  # that each preset trains
    names: str | None  # of the systems, comma-separated; None: by folder, file or preset
    data: str  # folder or archive of the images
    index_list: str | None  # reals; None: the default of the data
    outdir: str  # where the results go
    quoted: str | None  # shipped name or file of quoted figures
    wanted: str  # metrics, comma-separated
    detector: str | None  # Inception weights; None: those of the environment
    detector_vgg: str | None  # VGG-16 weights; None: likewise
    seed: int  # of the metrics' latents and cameras
    seeds: str  # of the pictures' heads
    background: str  # auto, own or a colour
    cache: bool  # keep values between calls
    device: str  # auto, cpu or cuda
    gpus: int  # processes on this machine
    batch_size: int  # images at once


@dataclass(frozen=True)
class Choices:
    """Holds what the lists of a command line name, each read and checked."""

    networks: list[Path]
    runs: list[Path]
    train: list[str]
    names: list[str]
    metrics: list[str]
    seeds: list[int]
    quoted: dict[str, Any] | None

    @staticmethod
    def of(request: Request) -> Choices:
        """Reads the lists. Raises ValueError, naming the option, for what is unknown, missing or there twice."""
        chosen = Choices(
            [Path(word) for word in systems.split_list("--networks", request.networks)],
            [Path(word) for word in systems.split_list("--runs", request.runs)],
            systems.split_list("--train", request.train),
            systems.split_list("--names", request.names),
            systems.split_list("--metrics", request.wanted),
            dnnlib.parse_flag("--seeds", request.seeds, dnnlib.parse_ints),
            read_quoted(request.quoted) if request.quoted else None,
        )
        dnnlib.parse_flag("--metrics", request.wanted, lambda _: [metrics.parse_metric(n) for n in chosen.metrics])
        if not (chosen.networks or chosen.runs or chosen.train):
            raise ValueError("nothing to compare: give --networks, --runs or --train")
        if chosen.train and request.minutes is None:
            raise ValueError("--train needs --minutes, the time that each preset trains")
        if request.minutes is not None and not chosen.train:
            raise ValueError("--minutes is the time that presets of --train train; give --train")
        return chosen


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@SYSTEMS
@FILES
@PROTOCOL
@MACHINE
@version
def main(**options: Any) -> None:
    """Compare trained generators, of any family, by one protocol.

    Writes a table as comparison.json and comparison.md, and comparison.html with the same seeds from the same cameras.
    Values are kept by the content of the network and of the data: a second call with a network or metric more computes
    that alone, and a call that was interrupted goes on.

    \b
    python compare.py --runs=training-runs/00000-tiny,training-runs/00001-tiny --data=datasets/heads/64 --outdir=table
    python compare.py --train=micro,tiny --minutes=30 --data=datasets/heads/64 --outdir=table
    """
    request = Request(**options)
    try:
        compare(request)
    except (metrics.MetricUnavailable, OSError, ValueError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from None
    finally:
        distributed.finalise()


def compare(request: Request) -> None:
    """Trains, measures and writes what a command line asks for. Raises MetricUnavailable, OSError and ValueError."""
    chosen = Choices.of(request)
    outdir = Path(request.outdir)
    dnnlib.require_place(outdir)
    dataset = ImageDataset(request.data, request.index_list)
    store = Store(dnnlib.cache_dir("comparison") if request.cache else None)
    given = [*chosen.networks, *map(systems.newest_network, chosen.runs)]
    trained = _train(chosen.train, given, request, dataset, store)
    if request.gpus > 1 and not distributed.is_launched():
        sys.exit(launcher.launch(request.gpus, [os.path.abspath(__file__), *sys.argv[1:]]))
    device = distributed.initialise(request.device)
    detectors = metrics.load_detectors(chosen.metrics, request.detector, request.detector_vgg, device)
    names = chosen.names or [*systems.unique_names(given), *chosen.train]
    opened = _open([*given, *trained], names, request, dataset, store)
    protocol = compute.Protocol(
        dataset,
        distributed.on_main(dataset.content_key),
        tuple(chosen.metrics),
        {name: metrics.features_key(name, *detectors) for name in chosen.metrics},
        request.seed,
        tuple(chosen.seeds),
        device,
    )
    first = distributed.rank() == 0
    computer = compute.Computer(
        protocol, store, _measure(request, protocol, detectors), _say if first else _say_nothing
    )
    colours = systems.backgrounds(opened, request.background)
    measured = [
        computer.system(system, colour, f"{place}/{len(opened)}")
        for place, (system, colour) in enumerate(zip(opened, colours, strict=True), 1)
    ]
    if first:
        columns = [_column(name) for name in chosen.metrics]
        training = {"presets": chosen.train, "minutes": request.minutes} if chosen.train else None
        record = compute.describe(protocol, measured, computer.machine, columns, chosen.quoted, request.data, training)
        _write(record, computer.reals(colours[0]), measured, dnnlib.make_folder(outdir))
        if store.problem:
            _say(f"Warning: values are not kept for the next call: {store.problem}")
        compute.require_whole(measured)


def _open(
    paths: Sequence[Path], names: Sequence[str], request: Request, dataset: ImageDataset, store: Store
) -> list[systems.System]:
    """Reads what the networks are. Raises ValueError for one that cannot be used, or not beside the others."""
    opened = systems.open_systems(paths, names, store)
    systems.require_comparable(opened, dataset, request.data)
    systems.backgrounds(opened, request.background)
    return opened


def _train(
    presets: Sequence[str], given: Sequence[Path], request: Request, dataset: ImageDataset, store: Store
) -> list[Path]:
    """Trains the presets, once all that can be checked without them is, and returns their checkpoints."""
    if not presets or request.minutes is None:
        return []
    equal_time.check_presets(presets, dataset, request.data)
    metrics.load_detectors(request.wanted.split(","), request.detector, request.detector_vgg, torch.device("cpu"))
    _open(given, systems.unique_names(given), request, dataset, store)
    background = "auto" if request.background == systems.OWN else request.background
    arguments = [f"--data={request.data}", f"--background={background}", f"--seed={request.seed}"]
    arguments += [f"--device={request.device}", f"--gpus={request.gpus}"]
    if request.index_list is not None:
        arguments.append(f"--index-list={request.index_list}")
    return equal_time.train_presets(presets, request.minutes, Path(request.outdir) / "runs", arguments, _say)


def _measure(
    request: Request, protocol: compute.Protocol, detectors: tuple[Source, Source]
) -> Callable[[Generator, str, str, str], dict[str, Any]]:
    """Returns the function that measures a generator by a metric over a background, under a title."""

    def measure(G: Generator, name: str, background: str, title: str) -> dict[str, Any]:
        try:
            result = metrics.compute_metric(
                name,
                G,
                protocol.dataset,
                seed=request.seed,
                detector=detectors[0],
                detector_vgg=detectors[1],
                device=protocol.device,
                batch_size=request.batch_size,
                cache=request.cache,
                background=background,
                progress=metrics.ProgressBar(title) if distributed.rank() == 0 else None,
            )
        except metrics.MetricUnavailable as reason:
            return {compute.UNAVAILABLE: str(reason)}
        return metrics.result_line(result)

    return measure


def _column(name: str) -> dict[str, Any]:
    return {"name": name, "meaning": metrics.meaning(name), "larger_is_better": metrics.larger_is_better(name)}


def _write(record: dict[str, Any], reals: bytes, measured: Sequence[compute.Measured], outdir: Path) -> None:
    """Writes the three files, prints the table and says where they are."""
    table = "\n".join(to_markdown(layout(record)) for layout in (quality_table, size_table))
    shown = {m.system.name: m.picture for m in measured}
    for name, text in (
        ("comparison.json", json.dumps(record, indent=2) + "\n"),
        ("comparison.md", table),
        ("comparison.html", build_page(record, reals, shown)),
    ):
        write_whole(outdir / name, text)
    click.echo(table)
    click.echo(f"{outdir / 'comparison.html'}, with comparison.md and comparison.json beside it")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _say_nothing(line: str) -> None:
    pass


if __name__ == "__main__":
    main()
