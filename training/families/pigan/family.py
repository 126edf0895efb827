"""Presents pi-GAN as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.base import Alarm, Family, Option
from training.families.pigan.discriminator import Discriminator, DiscriminatorConfig
from training.families.pigan.generator import Generator, GeneratorConfig
from training.families.pigan.objective import PiganObjective, PiganObjectiveConfig
from training.families.pigan.presets import PRESETS
from training.families.pigan.published import PUBLISHED
from training.families.pigan.siren import inspect_field
from training.families.posed import POSE_OPTIONS

# fmt: off
OPTIONS = (
    *POSE_OPTIONS,
    Option(("--ray-start",), "generator.near", "where samples along a ray begin, for a camera at a distance of 1,"),
    Option(("--ray-end",), "generator.far", "and where they end"),
    Option(("--num-steps",), "generator.samples", "samples along a ray in the first pass", least=3),
    Option(("--fine-steps",), "generator.fine_samples", "in the second, where the first found something", least=0),
    Option(("--last-back",), "generator.last_back", "the last sample takes all light that is left"),
    Option(("--gamma", "--r1-lambda"), "objective.gamma", "weight of R1, the gradient penalty at real images"),
    Option(("--z-lambda",), "objective.latent_weight", "weight of the discriminator's guess of the latent"),
    Option(("--pos-lambda",), "objective.pose_weight", "weight of its guess of the camera's angles"),
    Option(("--fade-steps",), "objective.fade_steps", "steps over which the entry of a new size fades in", least=0),
    Option(("--topk-interval",), "objective.topk_interval", "steps after which 0.99 times as many images count",
           least=1),
    Option(("--topk-v",), "objective.topk_least", "share of the images at which that ends"),
)

ALARMS = (
    Alarm(
        "field empty",
        "the field is transparent nearly everywhere, and what is transparent does not learn; lower --glr, begin anew",
        {"Field/opacity": (0.0, 1e-5)},
    ),
)

CURVES = (
    ("Guesses of latent and pose", ("Loss/D/latent", "Loss/D/pose", "Loss/G/latent", "Loss/G/pose")),
    ("R1 penalty", ("Loss/D/r1_penalty",)),
    ("Opacity of the field, and what is opaque", ("Field/opacity", "Field/opaque")),
)
# fmt: on

FAMILY = Family(
    name="pigan",
    title="pi-GAN (Chan et al. 2021)",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=PiganObjectiveConfig,
    objective=PiganObjective,
    presets=PRESETS,
    options=OPTIONS,
    inspect=inspect_field,
    alarms=ALARMS,
    curves=CURVES,
    published=PUBLISHED,
)
