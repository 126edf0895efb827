"""Presents GGHead as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.adversarial_config import ADVERSARIAL_OPTIONS
from training.families.base import Family, Option
from training.families.blurred import BLUR_OPTIONS
from training.families.gghead.discriminator import Discriminator, DiscriminatorConfig
from training.families.gghead.generator import Generator, GeneratorConfig
from training.families.gghead.objective import GgHeadObjective, GgHeadObjectiveConfig
from training.families.gghead.presets import PRESETS
from training.families.gghead.published import PUBLISHED
from training.families.options import (
    DENSITY_CURVE,
    LEVELS_BLACK,
    PENALTY_CURVE,
    SPLAT_CURVE,
    SPLATS_TRANSPARENT,
    STYLEGAN2_DISCRIMINATOR,
    splats_off_screen,
)

# fmt: off
OPTIONS = (
    Option(("--gghead-template",), "generator.template", "head, sphere, plane, or a mesh in FLAME's frame: FILE.obj"),
    Option(("--plane-resolution",), "generator.plane_resolution", "texels along an edge of the maps", least=4),
    Option(("--n-uniform-flame-vertices",), "generator.samples", "samples of the template along an edge", least=2),
    Option(("--position-range",), "generator.position_range", "how far splats move off the template, world units"),
    Option(("--map-depth",), "generator.map_depth", "layers of the generator's mapping network", least=1),
    Option(("--gen-pose-cond",), "generator.pose_conditioning", "tell the generator a camera"),
    Option(("--gpc-reg-prob",), "objective.swap_probability", "probability, in the end, that it is another sample's"),
    Option(("--swap-fade-kimg",), "objective.swap_fade_kimg", "kimg over which that falls from 1"),
    *STYLEGAN2_DISCRIMINATOR,
    Option(("--disc-pose-cond",), "discriminator.pose_conditioning", "tell the discriminator the camera"),
    *ADVERSARIAL_OPTIONS,
    Option(("--lambda-raw-position",), "objective.position_weight", "weight of the raw positions' norm"),
    Option(("--lambda-raw-scale",), "objective.scale_weight", "weight of the raw scales' norm"),
    Option(("--lambda-beta",), "objective.beta_weight", "weight of the term that draws opacities to 0 and 1"),
    Option(("--lambda-tv-uv",), "objective.tv_weight", "weight of the total variation of the rendered (u, v)"),
    *BLUR_OPTIONS,
    Option(("--grow-kimg",), "objective.grow_kimg", "kimg over which the discriminator's new block fades in"),
)

ALARMS = (SPLATS_TRANSPARENT, splats_off_screen("lower --position-range"), *LEVELS_BLACK)

CURVES = (
    ("Regularisers of G", ("Loss/G/position", "Loss/G/scale", "Loss/G/beta", "Loss/G/tv_uv")),
    PENALTY_CURVE,
    SPLAT_CURVE,
    DENSITY_CURVE,
)
# fmt: on

FAMILY = Family(
    name="gghead",
    title="GGHead (Kirschstein et al. 2024)",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=GgHeadObjectiveConfig,
    objective=GgHeadObjective,
    presets=PRESETS,
    options=OPTIONS,
    alarms=ALARMS,
    curves=CURVES,
    published=PUBLISHED,
)
