"""Trains a 3D GAN whose generator emits Gaussian splats."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import click

import metrics
from dnnlib.command import CONTEXT, GroupedCommand, group, option, refuse
from gaussian.rendering import BACKENDS
from torch_utils import distributed, launcher
from training import presets
from training.checkpoint import CheckpointError
from training.dataset import ImageDataset
from training.measure import MeasureFailed, OutOfMemory, measure_run, report
from training.replay import replay
from training.runs import launch
from training.runs.launch import stated_default
from training.runs.resume import LATEST, Start, check_compatible, data_mark, find_start, nothing_left, open_run
from training.runs.retention import Retention, parse_keep
from training.runs.transfer import LEAST_SHARE, read_weights
from training.safety import rank_check
from training.safety.alarms import Collapsed
from training.safety.requests import EXIT_STOPPED, Stopped
from training.safety.run_state import RanksDiffer
from training.safety.watchdog import Diverged
from training.training_loop import LOADER_WORKERS, STATE_MINUTES, Options, train

COUNT, FROM_0 = click.IntRange(min=1), click.IntRange(min=0)

USER_ERRORS = (
    CheckpointError, Collapsed, Diverged, MeasureFailed, OutOfMemory, RanksDiffer, metrics.MetricUnavailable,
    ValueError, OSError,
)  # fmt: skip

REFUSED = {
    "--g-num-fp16-res": "the published code reads it and never uses it; --precision covers the generator too",
    "--start-pe": "the published code reads it and never uses it; the points' encoding goes by the preset",
}


def field(declaration: str, name: str, *more: str, **attributes):
    """An option that beats field `name` of the configuration and states the presets' values as its default."""
    return option(declaration, *more, name, show_default=stated_default(name), **attributes)


def _only_true(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        raise click.UsageError("--cond=False is refused: the discriminator judges an image with its camera", ctx)


def _blur(ctx: click.Context, parameter: click.Parameter, value: bool | None) -> float | None:
    return 0.0 if value is False else None


def _inverted(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    return not value


def _keep(ctx: click.Context, parameter: click.Parameter, value: str) -> Retention | None:
    try:
        return parse_keep(value)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None


def _debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value


def _replay(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    # Not eager: click heeds it after --debug and the other options that were given, and before it misses --data.
    if value is not None:
        try:
            bad_again = replay(Path(value), click.echo)
        except USER_ERRORS as error:
            raise_line(ctx, error)
        ctx.exit(0 if bad_again else 1)


def raise_line(ctx: click.Context, error: Exception) -> NoReturn:
    """Ends with the message of an error that explains itself, or with --debug with its traceback."""
    if ctx.meta.get("debug"):
        raise error
    raise click.ClickException(str(error)) from error


def _metrics(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    names = None if value is None else tuple(n for n in re.split(r"[,\s]+", value) if n and n != "none")
    for name in names or ():
        try:
            metrics.parse_metric(name)
        except ValueError as error:
            raise click.UsageError(f"--metrics={value}: {error}", ctx) from None
    return names


# fmt: off
DATA = group(
    "Data",
    option("--data", required=True, metavar="DIR|ZIP",
           help="folder of the images, with dataset.json and mask/ beside it, or an archive of the same"),
    option("--cam-sample-mode", "--index-list", "index_list", metavar="FILE|NAME|all",
           show_default="smile_pose_rebalancing where it lies beside dataset.json, else all",
           help="images to use, and how often; NAME.json lies beside dataset.json or in custom_dist/"),
    option("--validate/--no-validate", default=True, help="decode every image of a new or changed set before training"),
    field("--mirror", "mirror", type=bool, help="flip image, mask and camera of every second sample"),
    option("--background", metavar=launch.BACKGROUNDS, default="auto",
           help="behind real and generated images, numbers in 0..1; auto: random with masks, white without"),
    option("--cond", type=bool, default=True, callback=_only_true, expose_value=False,
           help="the discriminator is told the cameras; nothing else is legal"),
)

REPORTS = group(
    "Run folder and reports",
    option("--outdir", default="training-runs", metavar="DIR", help="where run folders are made"),
    option("--desc", metavar="TEXT", show_default="the preset", help="goes into the run folder's name"),
    option("--job-id", metavar="TEXT", default="", help="of a cluster's queue; goes into the run folder's name"),
    field("--tick", "tick_kimg", type=float, help="kimg between two status lines"),
    field("--img-snap", "image_ticks", type=COUNT, help="ticks between two pictures"),
    field("--network-snap", "snapshot_ticks", type=COUNT, help="ticks between two checkpoints, each with the metrics"),
    field("--metrics", "metrics", metavar="LIST", callback=_metrics, help="comma-separated, or none"),
    option("--detector", metavar="PATH|URL|tiny|untrained", show_default="$SPLATGAN_DETECTOR",
           help="Inception weights for FID and kin"),
    option("--detector-vgg", metavar="PATH|URL|tiny|untrained", show_default="$SPLATGAN_DETECTOR_VGG",
           help="VGG-16 weights for pr<N>k3_full"),
    option("--tensorboard", is_flag=True, help="also write TensorBoard events (needs the package)"),
    option("--wandb", "wandb_mode", type=click.Choice(["off", "offline", "online"]), default="off",
           help="also log to W&B"),
)

NETWORKS = group(
    "Networks",
    option("--preset", metavar="NAME", show_default="by the images' resolution", help=", ".join(presets.PRESETS)),
    field("--gaussian-num-pts", "generator__num_points", type=click.IntRange(min=2),
          help="points of the coarsest level"),
    field("--map-depth", "generator__map_depth", type=COUNT, help="layers of the generator's mapping network"),
    field("--cbase", "channel_base", type=COUNT, help="the discriminator has so many channels / pixels of an edge,"),
    field("--cmax", "channel_max", type=COUNT, help="and at most so many"),
    field("--mbstd-group", "discriminator__minibatch_std_group", type=COUNT,
          help="samples that share a minibatch standard deviation; 1 switches it off"),
    field("--freezed", "freeze_d", type=FROM_0,
          help="layers of the discriminator, from the image on, that do not learn"),
    option("--init-from", metavar="PKL", help="start from this checkpoint's weights, as far as names and shapes fit"),
    option("--init-share", type=click.FloatRange(0, 1), default=LEAST_SHARE,
           help="refuse it if a network finds a smaller share of its values there"),
)

OPTIMISATION = group(
    "Optimisation",
    field("--kimg", "total_kimg", type=float, help="length in thousands of real images; fractions are allowed"),
    option("--minutes", type=click.FloatRange(min=0, min_open=True), help="end the run after this time"),
    field("--batch", "batch", type=COUNT, help="samples a step, over all processes"),
    field("--batch-gpu", "batch_gpu", type=COUNT,
          help="samples that a process holds at once; unless given, at most its share of --batch"),
    field("--glr", "g_lr", type=float, help="learning rate of the generator"),
    field("--dlr", "d_lr", type=float, help="learning rate of the discriminator"),
    field("--gamma", "gamma", type=float, help="R1 weight"),
    field("--use-multiview-reg", "multiview", "--use-multivew-reg", type=bool,
          help="several views of each scene a step"),
    field("--num-multiview", "num_views", type=COUNT, help="how many"),
    field("--center-dists", "center_weight", type=float, help="weight of the centre term"),
    field("--knn-dists", "knn_weight", type=float, help="weight of the nearest-neighbour term"),
    field("--knn-num-ks", "knn_neighbours", type=COUNT, help="its number of neighbours"),
    field("--blur-fade-kimg", "blur_fade_kimg", type=float, help="kimg over which the initial blur fades"),
    field("--disc-c-noise", "label_noise", type=float,
          help="noise on the cameras that the discriminator is told, in standard deviations of the labels"),
    field("--seed", "seed", type=FROM_0, help="everything random follows from it"),
)

RESUMING = group(
    "Resuming and safety",
    option("--resume", metavar="latest|PKL",
           help="latest: go on with the newest run of this --desc, in its folder; PKL: in a new folder from this file"),
    option("--resume-kimg", type=click.FloatRange(min=0), show_default="what the file says",
           help="thousands of images that published weights count as; a checkpoint of ours knows them"),
    option("--state-minutes", "state_minutes", type=click.FloatRange(min=0), default=STATE_MINUTES,
           help="between two writes of state-latest.pkl, from which --resume=latest goes on"),
    option("--keep", metavar="RULES", default="all", callback=_keep,
           help="snapshots to keep: last:N, best:METRIC:N, every:KIMG, separated by commas; the others are deleted"),
    field("--max-bad-steps", "max_bad_steps", type=COUNT,
          help="steps in a row with a non-finite loss or gradient after which the run stops"),
    option("--stop-on-collapse", is_flag=True, help="let the alarms for collapsed runs stop the run, not only warn"),
    option("--replay", metavar="JSON", expose_value=False, callback=_replay,
           help="run the step of a diagnosis.json again, say where it is not finite, and do nothing else"),
    option("--debug", is_flag=True, is_eager=True, expose_value=False, callback=_debug,
           help="print the traceback of every error"),
    option("--resume-blur", "blur_sigma", type=bool, callback=_blur, show_default="True",
           help="the initial blur fades by the images seen; False: no blur at all"),
)

MACHINE = group(
    "Machine",
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
    option("--gpus", type=COUNT, default=1,
           help="processes on this machine, each with a CUDA device of its own or an equal share of the cores"),
    option("--max-restarts", type=FROM_0, default=0,
           help="with --gpus: after a crash, so often go on from the latest state"),
    field("--rasterizer", "rasterizer", type=click.Choice(BACKENDS), help="back end of the splatting"),
    field("--precision", "precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="of the convolutions"),
    option("--d-num-fp16-res", "fp16_blocks", type=FROM_0,
           show_default=stated_default("discriminator__num_fp16_blocks"),
           help="blocks of the discriminator that fp16 covers; 0 also lifts the clamp that it needs, more set it"),
    option("--workers", type=FROM_0, default=LOADER_WORKERS, help="threads that read images ahead"),
    option("--nobench", "bench", is_flag=False, flag_value=True, type=bool, default=False, callback=_inverted,
           help="do not let cuDNN try out its algorithms"),
)

TRYING_OUT = group(
    "Trying out",
    option("--dry-run", is_flag=True, help="print the resolved configuration as JSON, and do nothing else"),
    option("--measure", is_flag=True,
           help="with --dry-run: run three steps and a batch of each metric, and print memory, speed and days"),
)
# fmt: on


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@DATA
@REPORTS
@NETWORKS
@OPTIMISATION
@RESUMING
@MACHINE
@TRYING_OUT
@refuse(REFUSED)
def main(data, index_list, validate, outdir, desc, job_id, resume, resume_kimg, device, gpus, max_restarts, dry_run,
         measure, **choices):  # fmt: skip
    """Train a 3D GAN on posed images.

    Underscores and dashes are alike in options. A default that differs between presets is given for those of 256 px
    and more, then for the smaller ones by name.

    \b
    python train.py --data=datasets/heads/64 --outdir=training-runs
    python train.py --data=/data/FFHQC/512 --gpus=4 --gamma=1
    """
    # A parameter is named after the field that it sets: of the loop's options, or of the configuration.
    loop = {f.name: choices.pop(f.name) for f in dataclasses.fields(Options) if f.name in choices}
    try:
        _check_together(resume, resume_kimg, loop["init_from"], dry_run, measure)
        trains = not dry_run and (gpus == 1 or distributed.is_launched())
        if not dry_run or measure:
            launch.check_devices(device, gpus)
        chosen = distributed.initialise(device) if trains else None
        dataset = ImageDataset(data, index_list)
        ranks = distributed.world_size() if trains else gpus
        config = launch.resolve_config(dataset, data, ranks, **choices)
        if distributed.restarts():  # the launcher started the ranks anew: go on in the folder of the first start
            resume, resume_kimg = LATEST, None
        reads = trains or dry_run
        start = find_start(resume, Path(outdir), desc or config.preset, resume_kimg) if reads else Start()
        if start.state is not None:
            if index_list is None:
                dataset = ImageDataset(data, start.config.index_list)
            config = launch.resolve_config(dataset, data, ranks, base=start.config, **choices)
            check_compatible(start, config, data_mark(dataset))
        _check_keep(loop["keep"], config.metrics)
        if measure:
            click.echo(report(measure_run(config, device, gpus, loop["workers"]), config, gpus))
        elif dry_run:
            click.echo(json.dumps(config.to_dict(), indent=2))
        elif line := nothing_left(start, config):
            if distributed.rank() == 0:
                click.echo(line)
        else:
            if validate:
                distributed.on_main(lambda: launch.validate_data(data, dataset))
            if not trains:
                arguments = [os.path.abspath(__file__), *sys.argv[1:], "--no-validate"]
                sys.exit(launcher.launch(gpus, arguments, max_restarts))
            rank_check.require_equal_runs(config, dataset, chosen)
            init_from = loop.pop("init_from")
            weights = read_weights(init_from, config, loop["init_share"]) if init_from else None
            _train(config, dataset, desc, job_id, Options(Path(outdir), chosen, start, weights, **loop))
    except Stopped as stopped:
        click.echo(stopped)
        sys.exit(EXIT_STOPPED)
    except USER_ERRORS as error:
        raise_line(click.get_current_context(), error)
    except distributed.RankLost as error:
        click.echo(f"Error: {error}", err=True)
        launcher.leave_lost()
    finally:
        distributed.finalise()


def _check_together(
    resume: str | None, resume_kimg: float | None, init_from: str | None, dry_run: bool, measure: bool
) -> None:
    """Options that exclude or need each other."""
    if resume not in (None, LATEST) and init_from:  # latest: the weights are those of the first start
        raise click.UsageError("--init-from starts a run and --resume continues one: give one of them")
    if resume_kimg is not None and not resume:
        raise click.UsageError("--resume-kimg needs --resume")
    if measure and not dry_run:
        raise click.UsageError("--measure needs --dry-run")


def _check_keep(keep: Retention | None, measured: tuple[str, ...]) -> None:
    for name, _ in keep.best if keep else ():
        if name not in measured:
            raise click.UsageError(f"--keep=best:{name}: the run does not measure it; add it to --metrics")


def _train(config, dataset, desc: str | None, job_id: str, options: Options) -> None:
    """One rank's part of the run, once all choices are made. Everything that can be checked is, before a folder is.

    `options.run_dir` is the folder of run folders yet.
    """
    launch.check_machine(config, options.device)
    left_out = metrics.check_detectors(config.metrics, config.detector, config.detector_vgg)
    outdir, start = options.run_dir, options.start
    options.run_dir = start.run_dir or distributed.on_main(
        lambda: launch.make_run_dir(outdir, desc or config.preset, job_id)
    )
    with open_run(options.run_dir, start) if distributed.rank() == 0 else contextlib.nullcontext():
        if left_out and distributed.rank() == 0:
            click.echo("\n".join(left_out))
        train(config, options, dataset)


if __name__ == "__main__":
    main()
