"""Trains a 3D GAN whose generator emits Gaussian splats."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

import dnnlib
import metrics
from dnnlib.command import CONTEXT, group, option, refuse, version
from dnnlib.numbers import SEED, FloatRange
from gaussian.rendering import BACKENDS
from torch_utils import distributed, launcher
from training import presets
from training.averages import parse_lengths
from training.checkpoint import CheckpointError
from training.measure import MeasureFailed, OutOfMemory, measure_run, report
from training.replay import replay
from training.runs import launch
from training.runs.plan import Plan, make_plan
from training.runs.resume import nothing_left, open_run
from training.runs.retention import Retention, parse_keep
from training.runs.startup import cost_lines
from training.runs.their_options import THEIRS
from training.runs.train_command import DEFAULT_OUTDIR, Request, TrainCommand, field, read_settings
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


def _only_true(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        raise click.UsageError("--cond=False is refused: the discriminator judges an image with its camera", ctx)


def _inverted(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    return not value


def _keep(ctx: click.Context, parameter: click.Parameter, value: str) -> Retention | None:
    try:
        return parse_keep(value, metrics.larger_is_better)
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
    raise click.ClickException(dnnlib.format_error(error)) from error


def _metrics(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    try:
        return None if value is None else metrics.parse_metrics(re.sub(r"\bnone\b", " ", value))
    except ValueError as error:
        raise click.UsageError(f"--metrics={value}: {error}", ctx) from None


def _lengths(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else dnnlib.parse_flag("--ema", value, parse_lengths)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None


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
           help="behind real and generated images, numbers in 0..1; auto: the preset's colour, else random with masks "
           "and white without"),
    option("--cond", type=bool, default=True, callback=_only_true, expose_value=False,
           help="the discriminator is told the cameras; nothing else is legal"),
)

REPORTS = group(
    "Run folder and reports",
    option("--outdir", default=DEFAULT_OUTDIR, metavar="DIR", help="where run folders are made"),
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
    option("--preset", metavar="NAME", show_default="by the images' resolution", help=", ".join(presets.presets()),
           words=presets.presets()),
    field("--freezed", "freeze_d", type=FROM_0,
          help="layers of the discriminator, from the image on, that do not learn"),
    option("--init-from", metavar="PKL",
           help="start from this checkpoint's weights, as far as names and shapes fit, without the blur of a start"),
    option("--init-share", type=FloatRange(0, 1), default=LEAST_SHARE,
           help="refuse it if a network finds a smaller share of its values there"),
)

OPTIMISATION = group(
    "Optimisation",
    field("--kimg", "total_kimg", type=float, help="length in thousands of real images; fractions are allowed"),
    option("--minutes", type=FloatRange(min=0, min_open=True), help="end the run after this time"),
    field("--batch", "batch", type=COUNT, help="samples a step, over all processes"),
    field("--batch-gpu", "batch_gpu", type=COUNT,
          help="samples that a process holds at once; unless given, at most its share of --batch, on GPUs by memory"),
    field("--glr", "g_lr", type=float, help="learning rate of the generator"),
    field("--dlr", "d_lr", type=float, help="learning rate of the discriminator"),
    field("--cooldown-kimg", "cooldown_kimg", type=float,
          help="thousands of images at the end of --kimg over which both learning rates fall to 0"),
    field("--disc-c-noise", "label_noise", type=float,
          help="noise on the cameras that the discriminator is told, in standard deviations of the labels"),
    field("--ema", "ema_kimg", metavar="LIST", callback=_lengths,
          help="also keep moving averages of G with these half-lives in kimg, for calc_metrics.py --ema"),
    field("--seed", "seed", type=SEED, help="everything random follows from it"),
)

RESUMING = group(
    "Resuming and safety",
    option("--resume", metavar="latest|PKL",
           help="latest: go on with the newest run of this --desc, in its folder; PKL: in a new folder from this file"),
    option("--resume-kimg", type=FloatRange(min=0), show_default="what the file says",
           help="thousands of images that published weights count as; a checkpoint of ours knows them"),
    option("--state-minutes", "state_minutes", type=FloatRange(min=0), default=STATE_MINUTES,
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
    field("--precision", "precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
          help="of the convolutions and large products"),
    field("--compile", "compile", is_flag=False, flag_value=True, type=bool,
          help="let PyTorch compile G and D, which takes minutes once and rounds otherwise"),
    option("--workers", type=FROM_0, default=LOADER_WORKERS, help="threads that read images ahead"),
    option("--nobench", "bench", is_flag=False, flag_value=True, type=bool, default=False, callback=_inverted,
           help="do not let cuDNN try out its algorithms"),
)

TRYING_OUT = group(
    "Trying out",
    option("--dry-run", is_flag=True,
           help="print the resolved configuration as JSON and the size of the networks, and do nothing else"),
    option("--measure", is_flag=True,
           help="with --dry-run: run three steps and a batch of each metric, and print memory, speed and days"),
    option("--set", "settings", multiple=True, metavar="NAME=VALUE", callback=read_settings,
           help="set a value of the networks, losses or schedule that --dry-run prints, and beat its option: "
           "objective.knn_weight=0; may be repeated"),
)
# fmt: on


# ---------------------------------------------------------------- the four verbs


def print_config(plan: Plan) -> None:
    """Prints the resolved configuration as JSON, and on the error stream what its networks cost."""
    if plan.request.init_from:  # refused here if it would be refused by the run
        read_weights(plan.request.init_from, plan.config, plan.loop["init_share"])
    resumed, geometry = plan.start.state is not None, plan.dataset.geometry
    click.echo("\n".join(cost_lines(plan.config, geometry, plan.given, resumed)), err=True)
    click.echo(json.dumps(plan.config.to_dict(), indent=2))


def measure(plan: Plan) -> None:
    """Prints what the run would cost."""
    request = plan.request
    if request.init_from:
        read_weights(request.init_from, plan.config, plan.loop["init_share"])
    found = measure_run(plan.config, request.device, request.gpus, plan.loop["workers"], "metrics.measuring")
    click.echo(report(found, plan.config, request.gpus))


def launch_ranks(plan: Plan) -> None:
    """Starts the processes of --gpus, and ends with their exit code."""
    if plan.request.validate:
        _say(launch.validate_data(plan.request.data, plan.dataset))
    arguments = [os.path.abspath(__file__), *sys.argv[1:], "--no-validate"]
    sys.exit(launcher.launch(plan.request.gpus, arguments, plan.request.max_restarts))


def _say(notes: list[str]) -> None:
    """Prints what checking the data has shown, once."""
    if distributed.rank() == 0:
        for note in notes:
            click.echo(f"Note        {note}")


def train_rank(plan: Plan) -> None:
    """Trains this process's part of the run. Everything that can be checked is, before a folder is made."""
    request, config, dataset, start, device = plan.request, plan.config, plan.dataset, plan.start, plan.device
    assert device is not None
    if request.validate:
        _say(distributed.on_main(lambda: launch.validate_data(request.data, dataset)))
    rank_check.require_equal_runs(config, dataset, device)
    share = plan.loop["init_share"]
    weights = read_weights(request.init_from, config, share) if request.init_from else None
    launch.check_machine(config, device)
    left_out = metrics.check_detectors(config.metrics, config.detector, config.detector_vgg)
    run_dir = start.run_dir or distributed.on_main(
        lambda: launch.make_run_dir(Path(request.outdir), request.desc or config.preset, request.job_id)
    )
    evaluate = metrics.Evaluator(config, dataset, device, run_dir)
    options = Options(run_dir, device, start, evaluate, init_from=weights, **plan.loop)
    with open_run(run_dir, start) if distributed.rank() == 0 else contextlib.nullcontext():
        if left_out and distributed.rank() == 0:
            click.echo("\n".join(left_out))
        train(config, options, dataset)


def chosen_verb(plan: Plan) -> Callable[[Plan], None]:
    """Returns what is to be done with a plan."""
    if plan.request.measure:
        return measure
    if plan.request.dry_run:
        return print_config
    if nothing_left(plan.start, plan.config):
        return say_nothing_left
    return train_rank if plan.request.trains else launch_ranks


def say_nothing_left(plan: Plan) -> None:
    """Prints that the run to be resumed is complete."""
    if distributed.rank() == 0:
        click.echo(nothing_left(plan.start, plan.config))


@click.command(cls=TrainCommand, context_settings=CONTEXT)
@DATA
@REPORTS
@NETWORKS
@OPTIMISATION
@RESUMING
@MACHINE
@TRYING_OUT
@version
@refuse(THEIRS)
def main(settings: dict[str, Any], **choices: Any) -> None:
    """Train a 3D GAN on posed images.

    Underscores and dashes are alike in options. The options of the network's family stand under its name; --help shows
    those of the family of --preset. A default that differs between presets is given for the largest ones, then for the
    others by name.

    \b
    python train.py --data=datasets/heads/64 --outdir=training-runs
    python train.py --data=/data/FFHQC/512 --gpus=4 --gamma=1
    """
    # A parameter is named after the field that it sets: of the request, of the loop's options, or of the configuration.
    request = Request(**{f.name: choices.pop(f.name) for f in dataclasses.fields(Request)})
    loop = {f.name: choices.pop(f.name) for f in dataclasses.fields(Options) if f.name in choices}
    fields = {name.replace("__", "."): value for name, value in choices.items()} | settings
    try:
        plan = make_plan(request, loop, fields)
        chosen_verb(plan)(plan)
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


if __name__ == "__main__":
    main()
