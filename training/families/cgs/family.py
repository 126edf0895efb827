"""Presents CGS-GAN as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.adversarial_config import ADVERSARIAL_OPTIONS
from training.families.anchored import ANCHOR_OPTIONS
from training.families.base import Family, Option
from training.families.blurred import BLUR_OPTIONS
from training.families.cgs.generator import Generator, GeneratorConfig
from training.families.cgs.objective import CgsObjective, CgsObjectiveConfig
from training.families.cgs.presets import PRESETS
from training.families.cgs.published import PUBLISHED
from training.families.inspection import inspect_hierarchy
from training.families.options import (
    DENSITY_CURVE,
    LEVELS_BLACK,
    LEVELS_TRANSPARENT,
    PENALTY_CURVE,
    SPLAT_CURVE,
    SPLATS_TRANSPARENT,
    STYLEGAN2_DISCRIMINATOR,
    depth_flat,
    splats_off_screen,
)
from training.networks.discriminator import Discriminator, DiscriminatorConfig

# fmt: off
OPTIONS = (
    Option(("--gaussian-num-pts",), "generator.num_points", "points of the coarsest level", least=2),
    Option(("--map-depth",), "generator.map_depth", "layers of the mapping network; 0: w is the latent", least=0),
    *STYLEGAN2_DISCRIMINATOR,
    *ADVERSARIAL_OPTIONS,
    Option(("--use-multiview-reg", "--use-multivew-reg"), "objective.multiview", "several views of each scene a step"),
    Option(("--num-multiview",), "objective.num_views", "how many", least=1),
    *ANCHOR_OPTIONS,
    *BLUR_OPTIONS,
    Option(("--controls",), "generator.controls", "model that gives a latent named blocks: procedural, or an .npz"),
    Option(("--recon",), "objective.recon_weight", "weight of the difference of its coefficients asked and found"),
    Option(("--recon-from-kimg",), "objective.recon_from_kimg", "thousands of images after which that weight grows"),
    Option(("--surface",), "objective.surface_weight", "weight of the distance of what is seen from its surface"),
    Option(("--photo",), "objective.photo_weight", "weight of the difference of its colours from those of the surface"),
    Option(("--regressor",), "objective.regressor", "network that reads coefficients, of fit_regressor.py"),
)

ALARMS = (
    SPLATS_TRANSPARENT,
    splats_off_screen("raise --center-dists"),
    depth_flat("keep --use-multiview-reg on"),
    *LEVELS_BLACK,
    *LEVELS_TRANSPARENT,
)

CURVES = (
    ("Regularisers of G", ("Loss/G/center", "Loss/G/knn")),
    ("Control", ("Loss/G/recon", "Loss/G/surface", "Loss/G/photo")),
    PENALTY_CURVE,
    SPLAT_CURVE,
    DENSITY_CURVE,
)
# fmt: on

FAMILY = Family(
    name="cgs",
    title="CGS-GAN (Barthel et al. 2025)",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=CgsObjectiveConfig,
    objective=CgsObjective,
    presets=PRESETS,
    options=OPTIONS,
    inspect=inspect_hierarchy,
    alarms=ALARMS,
    curves=CURVES,
    published=PUBLISHED,
)
