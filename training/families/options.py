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

MOST_LEVELS = 8  # of a hierarchy that has alarms of its own

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


def level_alarms(kind: str, share: float, name: str, meaning: str) -> tuple[Alarm, ...]:
    """Returns an alarm for each level, for more than a share of splats of one kind; `name` names it for people."""
    return tuple(
        Alarm(f"level {level} {name}", meaning, {f"Gaussians/level{level}/{kind}": (share, 1.0)})
        for level in range(MOST_LEVELS)
    )


LEVELS_BLACK = level_alarms(
    "black",
    0.5,
    "black",
    "most of its splats are black; where the colours' rule is the published one they can only fade; lower --glr",
)
LEVELS_TRANSPARENT = level_alarms(
    "near_transparent",
    0.95,
    "transparent",
    "nearly all of its splats hardly show, and the other levels draw the picture alone; lower --glr",
)

PENALTY_CURVE = ("R1 penalty, and R2", ("Loss/D/r1_penalty", "Loss/D/r2_penalty"))
DENSITY_CURVE = ("Splats over a pixel, by their opacity", ("Gaussians/per_pixel",))
SPLAT_CURVE = (
    "Shares of the splats, and flatness",
    ("Gaussians/visible", "Gaussians/near_transparent", "Gaussians/flatness"),
)
