"""Resolves and checks a command line of train.py into a plan, before anything is written."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from gaussian import Cameras
from torch_utils import distributed
from training.checkpoint import read_config
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.runs import launch
from training.runs.resume import LATEST, Start, check_compatible, data_mark, find_start, latest_config
from training.runs.retention import Retention
from training.runs.train_command import Request
from training.runs.transfer import LEAST_SHARE


@dataclass(frozen=True)
class Plan:
    """Holds a run that is resolved and checked, before anything is written."""

    request: Request
    config: TrainingConfig
    dataset: ImageDataset
    start: Start  # checkpoint that it goes on from, if any
    device: torch.device | None  # of this process; None where it does not train
    loop: dict[str, Any]  # fields of training_loop.Options
    given: Collection[str]  # names of the configuration's values that the command line sets


def make_plan(request: Request, loop: dict[str, Any], fields: dict[str, Any]) -> Plan:
    """Resolves a command line. loop: of training_loop.Options; fields: values of the configuration that were given.

    Raises UsageError or one of train.py's USER_ERRORS.
    """
    _check_together(request, loop)
    if not request.dry_run or request.measure:
        launch.check_devices(request.device, request.gpus)
    device = distributed.initialise(request.device) if request.trains else None
    # The preset of a file, or of the latest run, is its own: the data's resolution may have another one, or none.
    # Ranks that the launcher started anew go on in the folder of the first start.
    resume, resume_kimg = (LATEST, None) if distributed.restarts() else (request.resume, request.resume_kimg)
    reads, outdir, base = request.trains or request.dry_run, Path(request.outdir), None
    if resume and resume != LATEST:
        base = read_config(resume)
    elif resume and request.preset is None:
        base = latest_config(outdir, request.desc)
    dataset = ImageDataset(request.data, request.index_list, launch.resolve_pose_law(request.preset, base, fields))
    ranks = distributed.world_size() if request.trains else request.gpus
    gpu = launch.smallest_gpu(request.device, distributed.local_world_size() if request.trains else request.gpus)

    def resolve(base: TrainingConfig | None = None) -> TrainingConfig:
        return launch.resolve_config(
            dataset, request.data, ranks, request.preset, request.background, base, fields, gpu, bool(request.init_from)
        )

    config = resolve(base)
    start = find_start(resume, outdir, request.desc or config.preset, resume_kimg) if reads else Start()
    if reads and resume == LATEST and start.state is None:  # nothing to go on from: the preset's values hold
        config = resolve()
    if start.state is not None:
        if request.index_list is None:
            assert start.config is not None
            law = launch.resolve_pose_law(None, start.config, fields)
            dataset = ImageDataset(request.data, start.config.index_list, law)
        config = resolve(start.config)
        check_compatible(start, config, data_mark(dataset))
    _check_keep(loop["keep"], config.metrics)
    config.generator.check_cameras(Cameras.from_labels(torch.from_numpy(dataset.labels)))
    return Plan(request, config, dataset, start, device, loop, {n for n, v in fields.items() if v is not None})


def _check_together(request: Request, loop: dict[str, Any]) -> None:
    """Raises UsageError for options that exclude or need each other."""
    if request.resume not in (None, LATEST) and request.init_from:  # latest: the weights are those of the first start
        raise click.UsageError("--init-from starts a run and --resume continues one: give one of them")
    if request.resume_kimg is not None and not request.resume:
        raise click.UsageError("--resume-kimg needs --resume")
    if loop["init_share"] != LEAST_SHARE and not request.init_from:
        raise click.UsageError("--init-share needs --init-from")
    if request.max_restarts and request.gpus == 1 and not distributed.is_launched():
        raise click.UsageError("--max-restarts needs --gpus=2 or more, whose launcher starts a crashed run anew")
    if request.measure and not request.dry_run:
        raise click.UsageError("--measure needs --dry-run")


def _check_keep(keep: Retention | None, measured: tuple[str, ...]) -> None:
    for name, *_ in keep.best if keep else ():
        if name not in measured:
            raise click.UsageError(f"--keep=best:{name}: the run does not measure it; add it to --metrics")
