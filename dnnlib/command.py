"""Command lines with many options: groups under headings in --help, and options that are refused by name.

Not imported by `dnnlib` itself, so that the packages below the scripts run without click.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.types import OptionHelpExtra

CONTEXT = {
    "token_normalize_func": lambda token: token.replace("_", "-"),  # --batch_gpu is --batch-gpu
    "show_default": True,
    "max_content_width": 120,
}


class GroupedOption(click.Option):
    """An option that stands under a heading; a default that `show_default` puts into words is shown as it is."""

    heading = "Options"

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Called by click for --help."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


class GroupedCommand(click.Command):
    """Lists its options under their headings, in the order in which they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click for --help."""
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
    """Comma-separated words of a closed set, as a tuple in the order given."""

    name = "list"

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Called by click."""
        chosen = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        for word in chosen:
            if word not in self.words:
                self.fail(f"{word!r} is not one of {', '.join(self.words)}", param, ctx)
        return chosen


def option(*declarations: str, **attributes: Any) -> Callable:
    """`click.option` for a `group`. Name the parameter after the field it sets: `option("--kimg", "total_kimg")`."""
    return click.option(*declarations, cls=GroupedOption, **attributes)


def group(heading: str, *options: Callable) -> Callable:
    """Decorator that declares `options`, made by `option`, under one heading of --help, in the order given."""

    def declare(function: Callable) -> Callable:
        for decorate in reversed(options):  # decorators nearest to the function come first for click
            function = decorate(function)
            function.__click_params__[-1].heading = heading  # type: ignore[attr-defined]
        return function

    return declare


def refuse(reasons: Mapping[str, str]) -> Callable:
    """Decorator for options of other programs that mean nothing here: "--name" -> why. Given one, the command ends."""

    def declare(function: Callable) -> Callable:
        for name, reason in reasons.items():
            function = click.option(
                name, hidden=True, expose_value=False, metavar="ANY", callback=_refusal(name, reason)
            )(function)
        return function

    return declare


def _refusal(name: str, reason: str) -> Callable:
    def callback(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{name} is refused: {reason}", ctx)

    return callback
