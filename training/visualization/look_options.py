"""Declares the options that choose what of a scene is shown, which gen_videos.py and gen_samples.py share."""

from __future__ import annotations

import math

import click

import dnnlib
from dnnlib.command import group, option
from dnnlib.numbers import FloatRange

AT_LEAST_0 = click.IntRange(min=0)
ABOVE_0 = FloatRange(min=0, min_open=True)


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Parses whole numbers and ranges of them; called by click."""
    try:
        return None if value is None else tuple(dnnlib.parse_ints(value))
    except ValueError as error:
        raise click.UsageError(f"{parameter.opts[0]}={value}: {error}", ctx) from None


def _angles(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Parses a yaw, or a yaw and a pitch, in degrees; called by click."""
    if value is None:
        return None
    try:
        angles = tuple(float(part) for part in value.split(","))
    except ValueError:
        angles = ()
    if len(angles) not in (1, 2) or not all(map(math.isfinite, angles)):
        raise click.UsageError(
            f"{parameter.opts[0]}={value} is no yaw, or yaw and pitch, in degrees such as 30,10", ctx
        )
    return angles


# fmt: off
# Each option is named after the field of training.families.inspection.Inspection that it sets.
LOOKS = group(
    "What of the scenes is shown (networks refuse what they do not have)",
    option("--levels", metavar="LIST", callback=_numbers, show_default="all",
           help="only these levels of the hierarchy of splats, 0 the coarsest: 0-2,4"),
    option("--anchors", is_flag=True, help="the anchors that splats hang on, in place of the splats"),
    option("--point", metavar="LIST", callback=_numbers, show_default="all",
           help="only what descends from these initial points"),
    option("--nearest", type=AT_LEAST_0, default=0, metavar="K",
           help="and from the K initial points nearest to each of them"),
    option("--disable-background", is_flag=True, help="without the background that the network makes"),
    option("--opaque", is_flag=True, help="every opacity 1"),
    option("--scale", type=ABOVE_0, default=1, help="factor on the size of every splat"),
    option("--color-levels", is_flag=True, help="each level in a colour of its own"),
    option("--color-points", is_flag=True, help="each splat in a colour of the initial point that it descends from"),
    option("--colors-from", metavar="YAW[,PITCH]", callback=_angles, show_default="the camera of each picture",
           help="colours as a camera at these degrees sees them, from wherever the picture is taken; 0: the front"),
)
# fmt: on
