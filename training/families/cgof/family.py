"""Presents CGOF as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.base import Family, Option
from training.families.cgof.config import GeneratorConfig
from training.families.cgof.generator import Generator
from training.families.cgof.objective import CgofObjective, CgofObjectiveConfig
from training.families.cgof.presets import PRESETS
from training.families.pigan.discriminator import Discriminator, DiscriminatorConfig
from training.families.pigan.family import ALARMS, CURVES
from training.families.pigan.family import OPTIONS as PIGAN_OPTIONS
from training.families.pigan.siren import inspect_field

# fmt: off
OPTIONS = (
    Option(("--morphable",), "generator.morphable", "model that guides: procedural, or an .npz (docs/control.md)"),
    Option(("--regressor",), "objective.regressor", "network that reads coefficients, of fit_regressor.py"),
    Option(("--recon",), "objective.recon_weight", "weight of the difference of coefficients asked and found"),
    Option(("--dist-depr",), "objective.distance_weight", "weight of light from elsewhere than the surface"),
    Option(("--bg-depr",), "objective.background_weight", "weight of light before the face, beside it"),
    Option(("--norm-reg",), "objective.normal_weight", "weight of differences between close normals"),
    Option(("--geo-reg",), "objective.depth_weight", "weight of steps in the depth map"),
    Option(("--lm3d",), "objective.landmark_weight", "weight of landmarks away from the surface's"),
    Option(("--exp-warping",), "objective.warp_weight", "weight of what changes besides the expression"),
    Option(("--recon-from-kimg",), "objective.recon_from_kimg", "thousands of images after which these weights grow"),
    Option(("--photo",), "objective.photo_weight", "weight, from the start, of colours that are not the surface's"),
    *(option for option in PIGAN_OPTIONS if option.flags[0] != "--fine-steps"),
)

CURVES_OF_CONTROL = (
    ("Surface", ("Loss/G/distance", "Loss/G/background", "Loss/G/normal", "Loss/G/depth")),
    ("Coefficients", ("Loss/G/recon", "Loss/G/landmarks", "Loss/G/warp", "Loss/G/photo")),
)
# fmt: on

FAMILY = Family(
    name="cgof",
    title="CGOF (Sun et al. 2022)",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=CgofObjectiveConfig,
    objective=CgofObjective,
    presets=PRESETS,
    options=OPTIONS,
    inspect=inspect_field,
    alarms=ALARMS,
    curves=(*CURVES_OF_CONTROL, *CURVES),
)
