"""Lists what several families add to the scripts: options of train.py, alarms, charts of report.py."""

from __future__ import annotations

from training.families.base import Alarm, Option

STYLEGAN2_DISCRIMINATOR = (
    Option(
        ("--cbase",),
        "discriminator.channel_base",
        "the discriminator has so many channels / pixels of an edge,",
        least=1,
    ),
    Option(("--cmax",), "discriminator.channel_max", "and at most so many", least=1),
    Option(
        ("--mbstd-group",),
        "discriminator.minibatch_std_group",
        "samples that share a minibatch standard deviation; 1 switches it off",
        least=1,
    ),
    Option(
        ("--d-num-fp16-res",),
        "discriminator.num_fp16_blocks",
        "blocks of the discriminator that fp16 covers; 0 also lifts the clamp that it needs, more set it",
        least=0,
    ),
)

SPLATS_TRANSPARENT = Alarm(
    "splats transparent",
    "nearly all splats hardly show, and what does not show does not learn; lower --glr",
    {"Gaussians/near_transparent": (0.95, 1.0)},
)


def splats_off_screen(remedy: str) -> Alarm:
    """Returns the alarm for splats that the cameras do not see."""
    meaning = f"most splats are outside of the image; check the labels, {remedy}"
    return Alarm("splats off-screen", meaning, {"Gaussians/visible": (0.0, 0.1)})


def depth_flat(remedy: str) -> Alarm:
    """Returns the alarm for scenes without depth."""
    meaning = f"the splats lie in a plane; check that the data's cameras differ, {remedy}"
    return Alarm("depth flat", meaning, {"Gaussians/flatness": (0.97, 1.0)})


PENALTY_CURVE = ("R1 penalty, and R2", ("Loss/D/r1_penalty", "Loss/D/r2_penalty"))
SPLAT_CURVE = (
    "Shares of the splats, and flatness",
    ("Gaussians/visible", "Gaussians/near_transparent", "Gaussians/flatness"),
)
