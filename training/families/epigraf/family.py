"""Presents EpiGRAF as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.adversarial_config import ADVERSARIAL_OPTIONS
from training.families.base import Alarm, Family, Option
from training.families.blurred import BLUR_OPTIONS
from training.families.epigraf.discriminator import Discriminator, DiscriminatorConfig
from training.families.epigraf.generator import Generator, GeneratorConfig
from training.families.epigraf.objective import EpigrafObjective, EpigrafObjectiveConfig
from training.families.epigraf.presets import PRESETS
from training.families.epigraf.published import PUBLISHED
from training.families.options import PENALTY_CURVE, STYLEGAN2_DISCRIMINATOR
from training.families.posed import POSE_OPTIONS

# fmt: off
OPTIONS = (
    Option(("--plane-resolution",), "generator.plane_resolution", "texels along an edge of the planes", least=4),
    Option(("--map-depth",), "generator.map_depth", "layers of the generator's mapping network", least=1),
    Option(("--num-ray-steps",), "generator.samples", "samples of a ray in each of two passes", least=4),
    Option(("--cube-scale",), "generator.cube_scale", "half the edge of the cube, in distances of the camera"),
    Option(("--ray-start",), "generator.ray_start", "where rays begin, in distances of the camera"),
    Option(("--ray-end",), "generator.ray_end", "and where they end"),
    Option(("--clamp-mode",), "generator.density", "what makes a raw density a density: softplus, relu"),
    Option(("--bg-model",), "generator.backdrop", "what is painted behind the cube: none, plane, sphere"),
    Option(("--camera-cond",), "generator.camera_conditioning", "tell the generator the camera"),
    Option(("--camera-cond-spoof-p",), "objective.swap_probability", "probability, in the end, that it is another's"),
    Option(("--swap-fade-kimg",), "objective.swap_fade_kimg", "kimg over which the probability goes there from 1"),
    *STYLEGAN2_DISCRIMINATOR,
    Option(("--patch-resolution",), "discriminator.patch_resolution", "pixels of a patch", least=8),
    Option(("--disc-camera",), "discriminator.camera", "what D is told of the camera: none, raw, fourier"),
    Option(("--disc-camera-dropout",), "discriminator.camera_dropout", "probability that a number of it is withheld"),
    *ADVERSARIAL_OPTIONS,
    Option(("--patch-law",), "objective.patch_law", "of windows: beta, uniform, discrete, whole"),
    Option(("--anneal-kimg",), "objective.anneal_kimg", "kimg over which windows go from whole images to small ones"),
    *BLUR_OPTIONS,
    *POSE_OPTIONS,
    Option(("--use-labels",), "objective.use_labels", "tell both networks the classes of images, if the data have any"),
)

ALARMS = (
    Alarm(
        "field empty",
        "next to nothing in the cube is opaque: only the last sample of a ray shows; lower --glr",
        {"Field/opacity": (0.0, 1e-4)},
    ),
)

CURVES = (
    PENALTY_CURVE,
    ("Opacity of the field", ("Field/opacity", "Field/opaque")),
    ("Width of the windows", ("Patch/scale",)),
)
# fmt: on

FAMILY = Family(
    name="epigraf",
    title="EpiGRAF (Skorokhodov et al. 2022)",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=EpigrafObjectiveConfig,
    objective=EpigrafObjective,
    presets=PRESETS,
    options=OPTIONS,
    alarms=ALARMS,
    curves=CURVES,
    published=PUBLISHED,
)
