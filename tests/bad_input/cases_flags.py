"""Every flag of every script: a value of the wrong type, and one out of its range.

The cases come from the options that the scripts declare, so a new flag has its lines here at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click

from dnnlib.numbers import FINITE, FloatRange
from tests.bad_input.case import Case
from training.families import DEFAULT_FAMILY, FAMILIES
from training.runs.train_command import TrainCommand

SCRIPTS = {  # what each needs besides, so that only the flag in question is wrong
    "train": ("--data={DATA}", "--outdir={TMP}/out", "--device=cpu"),
    "calc_metrics": ("--network={NETWORK}", "--data={DATA}"),
    "gen_samples": ("--network={NETWORK}", "--outdir={TMP}/out"),
    "gen_videos": ("--network={NETWORK}", "--outdir={TMP}/out"),
    "view": ("--network={NETWORK}", "--static={TMP}/heads.html"),
}
TYPED = (click.types.IntParamType, click.types.FloatParamType, click.types.BoolParamType, click.Choice)


def _of_type(script: str, option: click.Option, flag: str) -> Iterator[Case]:
    needed = tuple(a for a in SCRIPTS[script] if not a.startswith(f"{flag}="))
    if isinstance(option.type, TYPED) and not option.is_flag and not option.multiple:
        yield Case(
            f"{script}: {flag} of words",
            script,
            (*needed, f"{flag}=banana"),
            rf"'{flag}'( / '[^']+')?: 'banana' is not (one of|a valid) ",
        )
    if isinstance(option.type, FloatRange | type(FINITE)):
        yield Case(
            f"{script}: {flag} is NaN",
            script,
            (*needed, f"{flag}=nan"),
            rf"'{flag}'( / '[^']+')?: nan is not a finite number",
        )
    low = getattr(option.type, "min", None)
    if low is not None:
        below = low - (1 if isinstance(option.type, click.types.IntParamType) else 0.5)
        yield Case(
            f"{script}: {flag} too small",
            script,
            (*needed, f"{flag}={below}"),
            rf"'{flag}'( / '[^']+')?: {below}(\.0)? is not in the range",
        )
    high = getattr(option.type, "max", None)
    if high is not None:
        above = high + 1
        yield Case(
            f"{script}: {flag} too large",
            script,
            (*needed, f"{flag}={above}"),
            rf"'{flag}'( / '[^']+')?: {above}(\.0)? is not in the range",
        )


def _all() -> Iterator[Case]:
    for script in SCRIPTS:
        command = importlib.import_module(script).main
        if isinstance(command, TrainCommand):
            command = command.of(FAMILIES[DEFAULT_FAMILY])
        for option in command.params:
            if isinstance(option, click.Option):
                yield from _of_type(script, option, max(option.opts, key=len).replace("_", "-"))


CASES = list(_all())
