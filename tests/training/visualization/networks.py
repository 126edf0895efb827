"""Makes small members of all families."""

from __future__ import annotations

import torch

from gaussian import Geometry
from tests.families.small_cgof import GENERATOR as SMALL_CGOF
from tests.training.families.epigraf import small as epigraf
from tests.training.families.gghead.file_writer import small_generator
from tests.training.families.gsgan import small as gsgan
from training.families import FAMILIES
from training.families.base import CheckpointInfo, Generator
from training.families.eg3d.generator import GeneratorConfig as Eg3dConfig
from training.presets import resolve

CONFIGS = {
    "cgs": lambda: resolve("micro", data="").generator,
    "gsgan": gsgan.generator_config,
    "gghead": lambda: small_generator(template="plane", published_keys=False),
    "epigraf": lambda: epigraf.generator_config(backdrop="sphere"),
    "eg3d": lambda: Eg3dConfig(16, plane_resolution=16, channel_base=128, channel_max=8, samples=4, fine_samples=4),
    "pigan": lambda: (
        FAMILIES["pigan"]
        .presets["pigan-tiny"]
        .generator.changed(z_dim=6, width=12, layers=2, map_depth=1, samples=4, fine_samples=4)
    ),
    "cgof": lambda: SMALL_CGOF,
}


def network(name: str, geometry: Geometry) -> Generator:
    """Returns a small member of a family, none of whose parameters is 0."""
    torch.manual_seed(0)
    G = FAMILIES[name].generator(CONFIGS[name]())
    with torch.no_grad():
        for parameter in G.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    G.info = CheckpointInfo({"family": name}, geometry, (-0.6, 0.5), "white")
    return G.requires_grad_(False).eval()
