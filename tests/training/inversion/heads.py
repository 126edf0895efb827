"""A network whose heads can be seen, untrained: splats are opaque and large, and follow the latent a little."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from gaussian import Geometry
from tests.training.gan import awaken
from torch_utils import random
from training import presets
from training.checkpoint import save_checkpoint
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator


def write_network(folder: Path, geometry: Geometry) -> Path:
    """Writes a checkpoint of the 32 px member and returns its path."""
    torch.manual_seed(0)
    config = presets.resolve("micro", data="unused")
    soft = config.generator.changed(low_pass=0.3)  # soft splats, so that the tests' few steps find where things are
    config = dataclasses.replace(
        config, generator=soft, discriminator=config.discriminator.changed(direction_octaves=0)
    )
    G, D = Generator(config.generator), Discriminator(config.discriminator)
    awaken(G, std=0.05)
    with torch.no_grad():
        for name, more in (("scale", 3.0), ("opacity", 2.0)):
            for head in G.point_gen.gaussians[name]:
                head.bias += more
        G.update_average(G.mapping(torch.randn(64, G.z_dim)).mean(0), batch=10**6)
    state = {
        "config": config.to_dict(),
        "geometry": geometry.to_dict(),
        "progress": {"nimg": 0, "step": 0, "tick": 0},
        "G": G.state_dict(),
        "D": D.state_dict(),
        "G_ema": G.state_dict(),
        "opt": {"G": {}, "D": {}},
        "grid": {
            "z": random.normal(0, "grid/z", range(4), (G.z_dim,)),
            "labels": geometry.orbit(torch.linspace(-0.6, 0.5, 5)).labels,
        },
        "best": {},
    }
    save_checkpoint(folder / "network-snapshot-000000.pkl", state)
    return folder / "network-snapshot-000000.pkl"
