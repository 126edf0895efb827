"""Structures command lines with many options: headings in --help, and options that are refused with a reason.

Not imported by `dnnlib` itself, so that the packages below the scripts run without click.
"""

import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from click.types import OptionHelpExtra

from dnnlib.version import __version__

Command = Callable[..., Any]  # a function that click turns into a command
Decorator = Callable[[Command], Command]

CONTEXT = {
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --batch_gpu is --batch-gpu
    "show_default": True,
    "max_content_width": 120,
}


_FILES = frozenset({"DIR", "FILE", "JSON", "PATH", "PKL", "ZIP"})  # parts of a metavar that are names of files


class GroupedOption(click.Option):
    """Stands under a heading of --help; a default that `show_default` puts into words is shown without parentheses."""

    heading = "Options"

    def __init__(self, *arguments: Any, words: Iterable[str] = (), **attributes: Any):
        """Takes what click.Option takes. words: values that shells complete, for options whose type lists none."""
        super().__init__(*arguments, **attributes)
        kinds = re.split(r"[|,.]+", self.metavar or "")
        self.words = (*words, *(kind for kind in kinds if len(kind) > 1 and kind.islower()))
        self.names_files = not _FILES.isdisjoint(kinds)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes names of files where the metavar promises one, and words; called by click for a shell."""
        found = [CompletionItem(incomplete, type="file")] if self.names_files else []
        found += [CompletionItem(word) for word in self.words if word.startswith(incomplete)]
        return found or super().shell_complete(ctx, incomplete)

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Puts a default given in words into --help; called by click."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


class GroupedCommand(click.Command):
    """Lists its options under their headings, in the order in which they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options' part of --help; called by click."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = parameter.heading if isinstance(parameter, GroupedOption) else "Other"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class ChoiceList(click.ParamType):
    """Parses comma-separated words of a closed set, as a tuple in the order given."""

    name = "list"

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parses and checks the words; called by click."""
        chosen = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        for word in chosen:
            if word not in self.words:
                self.fail(f"{word!r} is not one of {', '.join(self.words)}", param, ctx)
        return chosen


def in_a_folder(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuses a file to be written into a folder that is not there, before any work. A callback of options."""
    if value is not None and not Path(value).parent.is_dir():
        raise click.BadParameter(f"{str(value)!r}: the folder {Path(value).parent} does not exist", ctx, parameter)
    return value


def option(*declarations: str, **attributes: Any) -> Decorator:
    """Declares an option of a `group`, named after the field it sets: `option("--kimg", "total_kimg")`."""
    return click.option(*declarations, cls=GroupedOption, **attributes)


def group(heading: str, *options: Decorator) -> Decorator:
    """Returns a decorator that declares `options`, made by `option`, under one heading of --help, in their order."""

    def declare(function: Command) -> Command:
        for decorate in reversed(options):  # decorators nearest to the function come first for click
            function = decorate(function)
            function.__click_params__[-1].heading = heading  # type: ignore[attr-defined]
        return function

    return declare


def version(function: Command) -> Command:
    """Declares --version, which prints the versions that a report of a fault should name, and ends."""
    asked = option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
        help="Show the versions of SplatGAN, PyTorch and Python and exit.",
    )  # fmt: skip
    return group("Other", asked)(function)


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    try:
        torch = f"PyTorch {metadata.version('torch')}"  # of the installed files: importing it takes seconds
    except metadata.PackageNotFoundError:
        torch = "no PyTorch"
    click.echo(f"SplatGAN {__version__}, {torch}, Python {platform.python_version()}")
    ctx.exit()


def refuse(theirs: Mapping[str, tuple[str, str | None]]) -> Decorator:
    """Returns a decorator that refuses options of other programs with a usage error.

    theirs: "--name" -> what to do instead, and the value that asks for nothing else, which is taken, or None.
    """

    def declare(function: Command) -> Command:
        for name, (instead, same) in theirs.items():
            refusal = _refusal(name, instead, same)
            function = click.option(name, hidden=True, expose_value=False, metavar="ANY", callback=refusal)(function)
        return function

    return declare


def _refusal(name: str, instead: str, same: str | None) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is None or (same is not None and _equal(value, same)):
            return
        besides = "" if same is None else f"={value}"
        raise click.UsageError(f"{name}{besides} is refused: {instead}", ctx)

    return callback


def _equal(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one.casefold() == other.casefold()
