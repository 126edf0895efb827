"""Presents CGS-GAN as a family: its networks, objective, presets, and what it adds to the scripts."""

from __future__ import annotations

from training.families.adversarial import ADVERSARIAL_OPTIONS
from training.families.base import Alarm, Family, Option
from training.families.cgs.generator import Generator, GeneratorConfig
from training.families.cgs.objective import CgsObjective, CgsObjectiveConfig
from training.families.cgs.presets import PRESETS
from training.families.cgs.published import PUBLISHED
from training.families.inspection import inspect_hierarchy
from training.families.options import STYLEGAN2_DISCRIMINATOR
from training.networks.discriminator import Discriminator, DiscriminatorConfig

# fmt: off
OPTIONS = (
    Option(("--gaussian-num-pts",), "generator.num_points", "points of the coarsest level", least=2),
    Option(("--map-depth",), "generator.map_depth", "layers of the generator's mapping network", least=1),
    *STYLEGAN2_DISCRIMINATOR,
    *ADVERSARIAL_OPTIONS,
    Option(("--use-multiview-reg", "--use-multivew-reg"), "objective.multiview", "several views of each scene a step"),
    Option(("--num-multiview",), "objective.num_views", "how many", least=1),
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
        "the splats lie in a plane; check that the data's cameras differ, keep --use-multiview-reg on",
        {"Gaussians/flatness": (0.97, 1.0)},
    ),
)

CURVES = (
    ("Regularisers of G", ("Loss/G/center", "Loss/G/knn")),
    ("R1 penalty, and R2", ("Loss/D/r1_penalty", "Loss/D/r2_penalty")),
    ("Shares of the splats, and flatness", ("Gaussians/visible", "Gaussians/near_transparent", "Gaussians/flatness")),
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
