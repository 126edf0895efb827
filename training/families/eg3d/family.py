"""Presents EG3D's field as a family: tri-planes rendered at the resolution of the field, without superresolution.

It opens published networks as far as their field goes, and is a baseline that trains like the others.
"""

from __future__ import annotations

from training.families.adversarial import AdversarialObjective
from training.families.adversarial_config import ADVERSARIAL_OPTIONS, AdversarialConfig
from training.families.base import Family, Option, Preset, RunFields
from training.families.eg3d.config import GeneratorConfig
from training.families.eg3d.generator import Generator
from training.families.eg3d.published import PUBLISHED
from training.families.options import PENALTY_CURVE, STYLEGAN2_DISCRIMINATOR
from training.networks.discriminator import Discriminator, DiscriminatorConfig

RESOLUTION = 128  # of published fields, in the end

# fmt: off
OPTIONS = (
    Option(("--plane-resolution",), "generator.plane_resolution", "texels along an edge of the planes", least=4),
    Option(("--map-depth",), "generator.map_depth", "layers of the generator's mapping network", least=1),
    Option(("--gen-pose-cond",), "generator.pose_conditioning", "tell the generator a camera"),
    *STYLEGAN2_DISCRIMINATOR,
    *ADVERSARIAL_OPTIONS,
)
# fmt: on

FAMILY = Family(
    name="eg3d",
    title="the field of EG3D (Chan et al. 2022)",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=AdversarialConfig,
    objective=AdversarialObjective,
    presets={
        "eg3d-field128": Preset(
            GeneratorConfig(RESOLUTION),
            DiscriminatorConfig.sized(RESOLUTION, channel_base=32768, channel_max=512, mapping_depth=8),
            AdversarialConfig(),
            RunFields(background="white", total_kimg=25_000, batch=32, batch_gpu=8, g_lr=0.0025, d_lr=0.002),
        )
    },
    options=OPTIONS,
    curves=(
        PENALTY_CURVE,
        ("Opacity of the field", ("Field/opacity", "Field/opaque")),
    ),
    published=PUBLISHED,
)
