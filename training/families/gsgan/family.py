"""Presents GSGAN as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.adversarial_config import ADVERSARIAL_OPTIONS
from training.families.anchored import ANCHOR_OPTIONS
from training.families.base import Family, Option
from training.families.blurred import BLUR_OPTIONS
from training.families.gsgan.discriminator import Discriminator, DiscriminatorConfig
from training.families.gsgan.generator import Generator, GeneratorConfig
from training.families.gsgan.objective import GsganObjective, GsganObjectiveConfig
from training.families.gsgan.presets import PRESETS
from training.families.gsgan.published import PUBLISHED
from training.families.inspection import inspect_hierarchy
from training.families.options import (
    DENSITY_CURVE,
    LEVELS_BLACK,
    PENALTY_CURVE,
    SPLAT_CURVE,
    SPLATS_TRANSPARENT,
    STYLEGAN2_DISCRIMINATOR,
    depth_flat,
    splats_off_screen,
)

# fmt: off
OPTIONS = (
    Option(("--gaussian-num-pts",), "generator.num_points", "points of the coarsest level", least=2),
    Option(("--map-depth",), "generator.map_depth", "layers of the generator's mapping network", least=1),
    Option(("--gen-pose-cond",), "generator.pose_conditioned", "the generator's mapping is told a camera"),
    *STYLEGAN2_DISCRIMINATOR,
    *ADVERSARIAL_OPTIONS,
    Option(("--gpc-reg-prob",), "objective.swap_probability", "in the end, probability that it is another sample's"),
    Option(("--gpc-reg-fade-kimg",), "objective.swap_fade_kimg", "kimg over which the probability goes there from 1"),
    Option(("--prob-uniform",), "objective.uniform_poses", "share of generated images with poses of a wide range"),
    Option(("--style-mixing-prob",), "objective.style_mixing", "share of scenes with the later ws of another latent"),
    Option(("--contrastive",), "objective.contrastive_weight", "weight of the contrast of images with cameras"),
    *ANCHOR_OPTIONS,
    *BLUR_OPTIONS,
)

ALARMS = (
    SPLATS_TRANSPARENT,
    splats_off_screen("raise --center-dists"),
    depth_flat("raise --contrastive"),
    *LEVELS_BLACK,
)

CURVES = (
    ("Regularisers of G", ("Loss/G/center", "Loss/G/knn")),
    ("Contrast of images with cameras", ("Loss/G/contrastive", "Loss/D/contrastive")),
    PENALTY_CURVE,
    SPLAT_CURVE,
    DENSITY_CURVE,
)
# fmt: on

FAMILY = Family(
    name="gsgan",
    title="GSGAN (Hyun and Heo 2024)",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=GsganObjectiveConfig,
    objective=GsganObjective,
    presets=PRESETS,
    options=OPTIONS,
    inspect=inspect_hierarchy,
    alarms=ALARMS,
    curves=CURVES,
    published=PUBLISHED,
)
