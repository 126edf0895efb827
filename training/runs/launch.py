"""Turns a command line into a run: which configuration, on which data, in which folder. Nothing here reads options."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dnnlib
from gaussian import resolve_backend
from torch_utils import precision
from training import presets
from training.config import NESTED, TrainingConfig
from training.data.image_store import DatasetError
from training.data.poses import PoseLaw
from training.data.validation import inspect_set
from training.dataset import ImageDataset
from training.families.base import Family
from training.runs import batch_memory
from training.runs.resume import run_name

BACKGROUNDS = "auto|random|white|black|R,G,B"
_VALIDATION = 2  # counts up when more is checked: sets that have passed less are looked at again
NETWORKS = ("generator", "discriminator")
OF_EVERY_STAGE = ("batch", "batch_gpu", "g_lr", "d_lr")  # an option of the command line sets them in all stages


@dataclass(frozen=True)
class Gpu:
    """Describes a GPU as far as it decides a configuration."""

    device: str  # "cuda:0"
    memory_bytes: int


def stated_default(target: str, of: Family) -> str:
    """Returns what --help says of a value of the presets: that of most of them, then those that differ.

    target: a field of TrainingConfig, or of a record in it as in "generator.map_depth".
    of: whose presets are listed.
    """
    owner, _, name = target.rpartition(".")
    values: dict[str, list[str]] = {}
    table = {n: f for n, (f, _) in presets.presets().items() if f is of}
    for preset in reversed(table):
        config = presets.resolve(preset, data="")
        value = getattr(getattr(config, owner) if owner else config, name)
        value = (
            (",".join(map(str, value)) or "none")
            if isinstance(value, tuple)
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        values.setdefault(str(value), []).insert(0, preset)
    usual = max(values, key=lambda value: len(values[value]))
    others = [f"{', '.join(names)}: {value}" for value, names in reversed(values.items()) if value != usual]
    return "; ".join([usual, *others])


def resolve_pose_law(preset: str | None, base: TrainingConfig | None, fields: dict[str, Any]) -> PoseLaw | None:
    """Returns the law of the cameras of a run that `resolve_config` is given, before its data are opened.

    Without a preset and a base, the family is the one whose cameras are always labels'.
    """
    if base is None:
        if preset is None:
            return None
        base = dnnlib.parse_flag("--preset", preset, lambda name: presets.resolve(name, data=""))
    given = {n.removeprefix("objective."): v for n, v in fields.items() if n.startswith("objective.") and v is not None}
    return base.objective.changed(**given).pose_law


def resolve_config(
    dataset: ImageDataset,
    data: str,
    ranks: int = 1,
    preset: str | None = None,  # None: by the data's resolution
    background: str = "auto",  # see BACKGROUNDS
    base: TrainingConfig | None = None,  # of a run that goes on: stands in for the preset
    fields: dict[str, Any] | None = None,  # of TrainingConfig, or "generator.map_depth"; None leaves the preset's value
    gpu: Gpu | None = None,  # the smallest that trains; None on a CPU
    warm: bool = False,  # start from trained weights: without what only a start from noise needs
) -> TrainingConfig:
    """Returns the preset's values, beaten by every one that was given.

    A --batch-gpu that was not given shrinks until it divides --batch over the ranks; on a GPU a new run of one stage
    has the largest, up to 32, whose step fits its memory (`training.runs.batch_memory`). Raises ValueError for what is
    unknown, illegal or contradictory.
    """
    if base is not None and preset not in (None, base.preset):
        raise ValueError(f"--preset={preset}: the run to be resumed has --preset={base.preset}; leave it out")
    if base is not None:
        config = base
    elif preset is not None:
        config = dnnlib.parse_flag("--preset", preset, lambda name: presets.resolve(name, data=""))
    else:
        config = presets.resolve(dataset.resolution, data="")
    if config.resolution != dataset.resolution:
        raise ValueError(
            f"--preset={config.preset} is for {config.resolution} px, the images in {data} have "
            f"{dataset.resolution} px; leave --preset out or convert the data"
        )
    warmth = {name: getattr(config, name).warm_start() if warm and base is None else {} for name in NESTED}
    given: dict[str, dict[str, Any]] = {"": {}, **warmth}
    for name, value in (fields or {}).items():
        owner, _, field = name.partition(".") if "." in name else ("", "", name)
        if value is not None:
            given[owner][field] = value
    colour = resolve_background(background, dataset.has_masks)
    # Published weights say random, which their new data may have no masks for.
    kept = background == "auto" and (config.background != "random" or (base is not None and dataset.has_masks))
    config = dataclasses.replace(
        config,
        data=os.path.abspath(data),
        index_list=_lasting(dataset.index_list),
        background=config.background if kept else colour,
        stages=tuple(
            stage.changed(**{name: given[""][name] for name in OF_EVERY_STAGE if name in given[""]})
            for stage in config.stages
        ),
        **{name: getattr(config, name).changed(**given[name]) for name in NESTED},
        **given[""],
    )
    if config.resolution != dataset.resolution:
        raise ValueError(f"generator.resolution={config.resolution}: the images in {data} have {dataset.resolution} px")
    fixed = base is not None or any("num_classes" in given[name] for name in NETWORKS)
    config = with_classes(config, dataset, data, fixed)
    if "batch_gpu" not in given[""]:
        by_memory = gpu is not None and base is None and not config.stages
        config = fitted(config, ranks, gpu) if gpu and by_memory else shrunk(config, ranks)
    config.check(ranks)
    return config


def _lasting(index_list: str) -> str:
    """Returns an index list by a path that holds in every folder, or its name."""
    return os.path.abspath(index_list) if os.path.isfile(index_list) else index_list


def with_classes(config: TrainingConfig, dataset: ImageDataset, data: str, fixed: bool) -> TrainingConfig:
    """Returns the configuration with networks for the classes of the data, if its objective tells them any.

    fixed: the networks are what they are. Raises ValueError if they have other classes than the data, and for classes
    that cannot be used.
    """
    if not hasattr(config.generator, "num_classes"):  # a family that knows no classes
        return config
    told = config.objective.tells_classes
    if told and dataset.class_problem is not None:
        raise ValueError(f"{dataset.class_problem}; --use-labels=False leaves classes unused")
    count = dataset.num_classes if told else 0
    if not fixed:
        return dataclasses.replace(
            config, **{name: dataclasses.replace(getattr(config, name), num_classes=count) for name in NETWORKS}
        )
    for name in NETWORKS:
        if (own := getattr(config, name).num_classes) != count:
            whose = f"the images in {data} have" if told else "--use-labels=False leaves"
            hint = (
                "--use-labels=False leaves classes unused" if told and not own
                else "networks keep the classes that they were made for; dataset.json may have num_classes"
            )  # fmt: skip
            raise ValueError(f"{name}.num_classes={own}: {whose} {count or 'no'} classes; {hint}")
    return config


def shrunk(config: TrainingConfig, ranks: int) -> TrainingConfig:
    """Returns the configuration with the largest micro-batches up to its own that pass `TrainingConfig.check`."""
    most = max([config.batch_gpu, *(stage.batch_gpu for stage in config.stages)])
    share = min(most, config.batch // ranks) or most  # of one stage, whose check says why nothing fits
    return at_most(config, next(batch_sizes(config, ranks, most), share))


def fitted(config: TrainingConfig, ranks: int, gpu: Gpu) -> TrainingConfig:
    """Returns a configuration of one stage with the largest micro-batches whose step fits the GPU, as it is estimated.

    Where nothing can be estimated, or nothing is legal, it does what `shrunk` does.
    """
    largest = dataclasses.replace(config, batch_gpu=batch_memory.MOST)
    sizes = list(batch_sizes(largest, ranks, batch_memory.MOST))
    try:
        low = precision.resolve(config.precision, gpu.device)
    except ValueError:  # which check_machine will tell
        low = None
    found = batch_memory.largest_that_fits(config, low, gpu.memory_bytes, sizes)
    return shrunk(dataclasses.replace(config, batch_gpu=found), ranks)


def batch_sizes(config: TrainingConfig, ranks: int, most: int) -> Iterator[int]:
    """Yields the values of --batch-gpu up to `most` that `TrainingConfig.check` lets pass, largest first."""
    for size in range(most, 0, -1):
        try:
            at_most(config, size).check(ranks)
        except ValueError:
            continue
        yield size


def at_most(config: TrainingConfig, batch_gpu: int) -> TrainingConfig:
    """Returns the configuration with micro-batches of at most `batch_gpu` samples, in every stage."""
    stages = tuple(stage.changed(batch_gpu=min(stage.batch_gpu, batch_gpu)) for stage in config.stages)
    return dataclasses.replace(config, batch_gpu=min(config.batch_gpu, batch_gpu), stages=stages)


def resolve_background(name: str, has_masks: bool) -> str:
    """Returns what `TrainingConfig.background` holds for a --background. Raises ValueError for an illegal choice."""
    if name == "auto":
        return "random" if has_masks else "white"
    if name == "random":
        if not has_masks:
            raise ValueError(
                "--background=random needs masks, and this set has neither masks nor an alpha channel; "
                "leave it out or give one colour"
            )
        return name
    try:
        dnnlib.parse_color(name)
    except ValueError as error:
        raise ValueError(f"--background={name}: {error} (or auto, random)") from None
    return name


def check_devices(device: str, gpus: int) -> None:
    """Raises ValueError if --gpus asks for more CUDA devices than are visible."""
    visible = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cuda" and not visible:
        raise ValueError("--device=cuda: this PyTorch sees no CUDA device; use --device=cpu")
    if visible and gpus > visible:
        raise ValueError(
            f"--gpus={gpus}: {visible} CUDA {'device is' if visible == 1 else 'devices are'} visible "
            f"(CUDA_VISIBLE_DEVICES chooses); use --gpus={visible}, or --device=cpu for {gpus} processes on this CPU"
        )


def smallest_gpu(device: str, gpus: int) -> Gpu | None:
    """Returns the GPU with the least memory of the first `gpus`; None for a run on the CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return None
    count = min(gpus, torch.cuda.device_count())
    every = [Gpu(f"cuda:{i}", torch.cuda.get_device_properties(i).total_memory) for i in range(count)]
    return min(every, key=lambda gpu: gpu.memory_bytes)


def check_machine(config: TrainingConfig, device: torch.device) -> None:
    """Raises ValueError if the rasteriser or the precision asked for does not run on the device."""
    dnnlib.parse_flag("--rasterizer", config.rasterizer, lambda name: resolve_backend(name, device))
    dnnlib.parse_flag("--precision", config.precision, lambda name: precision.resolve(name, device))


def validate_data(data: str, dataset: ImageDataset) -> list[str]:
    """Decodes every image and mask of the set, once for each content. Raises DatasetError with the first problem.

    Returns what decoding has shown beside `dataset.notes`, one line each; the cache keeps it for the next start.
    """
    passed = dnnlib.cache_dir("validated", f"{dataset.content_key()}-{_VALIDATION}")
    with contextlib.suppress(OSError, ValueError):
        return [str(note) for note in json.loads(passed.read_text())]
    with tqdm(total=len(dataset), unit="img", desc="Checking the data", leave=False, delay=1, disable=None) as bar:
        found = inspect_set(data, bar.update)
    if found.problems:
        others = len(found.problems) - 1
        more = f" (and {others} more: dataset_tool.py validate lists them)" if others else ""
        raise DatasetError(found.problems[0] + more)
    notes = [note for note in found.notes if note not in dataset.notes]
    with contextlib.suppress(OSError):  # without a cache to write to, the next run looks again
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.write_text(json.dumps(notes))
    return notes


def make_run_dir(outdir: Path, desc: str, job_id: str = "") -> Path:
    """Makes `<outdir>/NNNNN-<desc>[_jobid-ID]` with the next free number."""
    name = run_name(desc, job_id)
    dnnlib.make_folder(outdir)
    try:
        numbers = [int(m[1]) for p in outdir.iterdir() if (m := re.match(r"(\d{5})-", p.name))]
        number = max(numbers, default=-1) + 1
        while True:
            path = outdir / f"{number:05d}-{name}"
            try:
                path.mkdir()
                return path
            except FileExistsError:  # another run took the number
                number += 1
    except OSError as error:
        raise ValueError(f"--outdir={outdir}: no run folder can be made there: {error.strerror}") from None
