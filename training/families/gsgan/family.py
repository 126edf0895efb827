"""Presents GSGAN as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.adversarial import ADVERSARIAL_OPTIONS
from training.families.base import Alarm, Family, Option
from training.families.gsgan.discriminator import Discriminator, DiscriminatorConfig
from training.families.gsgan.generator import Generator, GeneratorConfig
from training.families.gsgan.objective import GsganObjective, GsganObjectiveConfig
from training.families.gsgan.presets import PRESETS
from training.families.gsgan.published import PUBLISHED
from training.families.inspection import inspect_hierarchy
from training.families.options import STYLEGAN2_DISCRIMINATOR

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
    Option(("--center-dists",), "objective.center_weight", "weight of the centre term"),
    Option(("--knn-dists",), "objective.knn_weight", "weight of the nearest-neighbour term"),
    Option(("--knn-num-ks",), "objective.knn_neighbours", "its number of neighbours", least=1),
    Option(("--blur-fade-kimg",), "objective.blur_fade_kimg", "kimg over which the initial blur fades"),
    Option(("--resume-blur",), "objective.blurred", "the initial blur fades by the images seen; False: no blur at all"),
)

ALARMS = (
    Alarm(
        "splats transparent",
        "nearly all splats hardly show, and what does not show does not learn; lower --glr",
        {"Gaussians/near_transparent": (0.95, 1.0)},
    ),
    Alarm(
        "splats off-screen",
        "most splats are outside of the image; check the labels, raise --center-dists",
        {"Gaussians/visible": (0.0, 0.1)},
    ),
    Alarm(
        "depth flat",
        "the splats lie in a plane; check that the data's cameras differ, raise --contrastive",
        {"Gaussians/flatness": (0.97, 1.0)},
    ),
)

CURVES = (
    ("Regularisers of G", ("Loss/G/center", "Loss/G/knn")),
    ("Contrast of images with cameras", ("Loss/G/contrastive", "Loss/D/contrastive")),
    ("R1 penalty, and R2", ("Loss/D/r1_penalty", "Loss/D/r2_penalty")),
    ("Shares of the splats, and flatness", ("Gaussians/visible", "Gaussians/near_transparent", "Gaussians/flatness")),
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
