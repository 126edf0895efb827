"""Lists options of train.py that several families share."""

from __future__ import annotations

from training.families.base import Option

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
