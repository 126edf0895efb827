"""Builds what train.py's command line is made of: options that families declare, --set, and the request they make."""

from __future__ import annotations

import contextlib
import copy
import itertools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dnnlib.command import GroupedCommand, GroupedOption
from dnnlib.numbers import FloatRange
from torch_utils import distributed
from training import presets
from training.checkpoint import read_config
from training.config import record_types, settable
from training.families import DEFAULT_FAMILY, FAMILIES, family
from training.families.base import Family, Option
from training.records import parse_value
from training.runs import launch
from training.runs.resume import LATEST, latest_config

DEFAULT_OUTDIR = "training-runs"  # the folder of run folders


class ConfigOption(GroupedOption):
    """Beats the value `target` of the configuration, and states the presets' values as its default."""

    def __init__(self, *arguments: Any, target: str, **attributes: Any):
        super().__init__(*arguments, **attributes)
        self.target = target


def field(declaration: str, target: str, **attributes: Any) -> Callable:
    """Declares an option that beats field `target` of the configuration."""
    return click.option(declaration, parameter_name(target), cls=ConfigOption, target=target, **attributes)


def parameter_name(target: str) -> str:
    """Returns the name of the click parameter that sets a value of the configuration."""
    return target.replace(".", "__")


class TrainCommand(GroupedCommand):
    """Adds the options of the family that is trained, under a heading of its own, and states its presets' defaults."""

    family: Family = FAMILIES[DEFAULT_FAMILY]

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Takes the options of the family that `args` are about. Called by click before it reads them."""
        command = self.of(_family_of(args))
        return super(TrainCommand, command).make_context(info_name, args, parent, **extra)

    def of(self, family: Family) -> TrainCommand:
        """Returns the command with the options of `family` behind those of the networks."""
        command = copy.copy(self)
        command.family = family
        own = [_family_option(family, added) for added in family.options]
        after = max(i for i, p in enumerate(self.params) if getattr(p, "heading", "") == "Networks") + 1
        command.params = [*self.params[:after], *own, *self.params[after:]]
        for parameter in command.params:
            if isinstance(parameter, ConfigOption):
                parameter.show_default = launch.stated_default(parameter.target, family)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Says which family an option belongs to that this one does not have. Called by click."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            for other in FAMILIES.values():
                if any(error.option_name in added.flags for added in other.options):
                    names = ", ".join(other.presets)
                    raise click.UsageError(
                        f"{error.option_name} is an option of the family {other.name}, and this run is of "
                        f"{self.family.name}; --preset chooses ({names})",
                        ctx,
                    ) from None
            raise


def _family_of(args: list[str]) -> Family:
    """Finds the family that a command line is about: that of --preset, or of the file to resume, or the default."""
    preset, resumed = (_value_of(args, flag) for flag in ("--preset", "--resume"))
    table = presets.presets()
    if preset in table:
        return table[preset][0]
    if preset is None and resumed == LATEST:
        outdir = Path(_value_of(args, "--outdir") or DEFAULT_OUTDIR)
        if config := latest_config(outdir, _value_of(args, "--desc")):
            return family(config.family)
    elif preset is None and resumed is not None:
        with contextlib.suppress(ValueError, OSError):  # which make_plan will tell
            return family(read_config(resumed).family)
    return FAMILIES[DEFAULT_FAMILY]


def _value_of(args: list[str], flag: str) -> str | None:
    """Returns the last value of `flag` among arguments, before click reads them."""
    value = None
    for argument, following in itertools.zip_longest(args, args[1:]):
        name, given, text = argument.partition("=")
        if name == flag:
            value = text if given else following
    return value


class _List(click.ParamType):
    """Reads comma-separated values of a field that is a tuple."""

    name = "list"

    def __init__(self, kind: Any):
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads and checks the values; called by click."""
        try:
            return parse_value(value, self.kind) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _family_option(of: Family, added: Option) -> click.Option:
    """Makes an option of the command line from what a family declares."""
    owner, _, name = added.target.rpartition(".")
    kind = record_types(of)[owner].field_types()[name]
    if typing.get_origin(kind) is tuple:
        kind = _List(kind)
    else:
        kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind)
    if added.least is not None:
        kind = click.IntRange(min=int(added.least)) if kind is int else FloatRange(min=added.least)
    names = [*added.flags, parameter_name(added.target)]
    made = ConfigOption(names, target=added.target, type=kind, help=added.help, words=added.words)
    made.heading = f"Family {of.name}, {of.title}"
    return made


def _legal_names(types: Mapping[str, Any], name: str) -> str:
    """Lists the values that `name` may have meant: those of its record, or else those of the run."""
    record = name.partition(".")[0]
    own = [n.removeprefix(f"{record}.") for n in types if n.startswith(f"{record}.")]
    if own:
        return f"legal in {record} are {', '.join(own)}"
    run = [n for n in types if "." not in n]
    return f"legal are {', '.join(run)}, and values of generator, discriminator and objective such as objective.beta2"


def read_settings(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """Reads --set, typed by the records of the configuration of the command's family."""
    assert isinstance(ctx.command, TrainCommand)
    types = settable(ctx.command.family)
    found = {}
    for text in value:
        name, equals, written = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set={text}: write NAME=VALUE", ctx)
        if name not in types:
            raise click.UsageError(f"--set={text}: there is no value {name!r}; {_legal_names(types, name)}", ctx)
        try:
            found[name] = parse_value(written, types[name])
        except ValueError as error:
            raise click.UsageError(f"--set={text}: {error}", ctx) from None
    return found


@dataclass(frozen=True)
class Request:
    """Holds what a command line asks for besides values of the configuration and of the loop."""

    data: str  # folder or archive of the images
    index_list: str | None  # file or name of an index list; None: the default
    validate: bool  # decode every image first
    outdir: str  # folder of run folders
    desc: str | None  # part of the run folder's name; None: the preset
    job_id: str  # further part of it
    preset: str | None  # name of the preset; None: by the images' resolution
    background: str  # what stands behind images, see launch.BACKGROUNDS
    resume: str | None  # "latest", a file, or None
    resume_kimg: float | None  # thousands of images that a published file counts as
    init_from: str | None  # checkpoint whose weights the run starts from
    device: str  # auto, cpu or cuda
    gpus: int  # processes on this machine
    max_restarts: int  # how often a crashed run goes on
    dry_run: bool  # print the configuration only
    measure: bool  # print what the run costs

    @property
    def trains(self) -> bool:
        """Whether this process trains, and starts no others that do."""
        return not self.dry_run and (self.gpus == 1 or distributed.is_launched())
