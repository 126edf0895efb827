"""Declares the options of `dataset_tool.py synthesize` that say where the cameras stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dnnlib.numbers import FINITE
from training.data.synthetic.car_traits import Hemisphere
from training.data.synthetic.traits import CameraSpread

_OPTIONS = {  # field of a spread -> what it says
    "yaw_std": "Spread of the cameras to the sides, radians (cut at two std).",
    "pitch_std": "Spread up and down, radians (cut at two std).",
    "roll_std": "Spread about the viewing axis, radians (cut at two std).",
    "radius": "Distance of the cameras from the middle of what they see, world units.",
    "focal": "Focal length in image widths.",
    "cx": "Principal point, in image widths from the left.",
    "cy": "Principal point, in image heights from the top.",
}


def spread_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declares the options, named after the fields that they set; those that are not given are None."""
    for name, text in reversed(_OPTIONS.items()):
        heads, cars = (getattr(spread(), name) for spread in (CameraSpread, Hemisphere))
        shown = str(heads) if heads == cars else f"{heads}; cars {cars}"
        shown = f"{heads}; cars have none" if name in ("yaw_std", "pitch_std") else shown
        command = click.option(f"--{name.replace('_', '-')}", type=FINITE, show_default=shown, help=text)(command)
    return command
