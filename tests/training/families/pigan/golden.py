"""Golden numbers of pi-GAN: what the published classes gave in float64 for known weights and inputs, and how."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib import ROOT
from tests.training.families.hashes import noise, uniform
from training.families.pigan.config import GeneratorConfig
from training.families.pigan.discriminator import Discriminator, DiscriminatorConfig
from training.families.pigan.generator import Generator
from training.fields.marching import RayDraws

WHOLE: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "golden_pigan.json").read_text())
GOLDEN: dict[str, Any] = WHOLE["pigan"]
EXACT = 1e-6  # absolute, in float64; the numbers are rounded to 9 digits
SIZE, SAMPLES = 16, 12

POSES = {"spatial": (math.pi / 2 + 0.3, math.pi / 2 - 0.15), "tall": (2.1, 1.0)}  # theta, phi
MEMBERS = {
    "spatial": GeneratorConfig(SIZE, grid="corners"),
    "tall": GeneratorConfig(SIZE, variant="tall", near=0.7, far=1.3, grid="corners"),
}
FOV = {"spatial": 12.0, "tall": 30.0}
DISCRIMINATORS = {
    "CCSEncoderDiscriminator": DiscriminatorConfig(),
    "StridedDiscriminator": DiscriminatorConfig("strided", latent=0),
    "ProgressiveEncoderDiscriminator": DiscriminatorConfig.progressive(),
}


def fill(module: nn.Module) -> nn.Module:
    """Overwrites every parameter in float64, scaled so that all branches matter."""
    keys = sorted(module.state_dict())
    module.double()
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            values = noise(parameter.shape, keys.index(key))
            if key.endswith("bias"):
                parameter.copy_(values * torch.tensor(0.1))
            else:
                parameter.copy_(values * torch.tensor(_scale(key) / math.sqrt(math.prod(parameter.shape[1:]))))
    return module


def _scale(key: str) -> float:
    if key == "siren.mapping_network.network.6.weight":
        return 0.35
    if key.startswith("siren.mapping_network"):
        return 1.4
    if key.startswith("siren"):
        known = {"siren.network.0.layer.weight": 1 / 3, "siren.final_layer.weight": 20.0}
        return known.get(key, 2.0 if key == "siren.color_layer_linear.0.weight" else math.sqrt(2) / 25)
    return 1.4 if ".network." in key else 1.0


@functools.cache
def generator(name: str, **changes: Any) -> Generator:
    """A member with known weights; not to be changed."""
    G = Generator(MEMBERS[name].changed(unit=1.0, **changes))
    fill(G)
    return G


@functools.cache
def discriminator(name: str) -> Discriminator:
    """One with known weights; not to be changed."""
    D = Discriminator(DISCRIMINATORS[name])
    fill(D)
    return D


def check(value: Tensor, golden: Any, tolerance: float = EXACT, relative: bool = False) -> None:
    """Compares with a list of all numbers, or with samples, extremes and moments.

    relative: to the entry's largest value.
    """
    value = value.detach().double()
    if not isinstance(golden, dict):
        expected = torch.tensor(golden, dtype=torch.float64)
        actual = value.reshape(expected.shape)
    else:
        value = value.flatten()
        assert value.numel() == golden["numel"]
        moments = torch.stack([value.mean(), value.abs().mean(), value.std(correction=0), value.min(), value.max()])
        numbers = golden["values"] + [golden[key] for key in ("mean", "mean_abs", "std_pop", "min", "max")]
        expected = torch.tensor(numbers, dtype=torch.float64)
        actual = torch.cat([value[golden["flat_index"]], moments])
    bound = tolerance * (float(expected.abs().max()) if relative else 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


class Hashed:
    """The hashed draws of a call, in the order of the published code, counted from the given numbers on."""

    def __init__(self, uniforms: int = 0, normals: int = 0):
        self.uniforms, self.normals = uniforms, normals

    def uniform(self, *shape: int) -> Tensor:
        self.uniforms += 1
        return uniform(shape, 5000 + self.uniforms - 1).double()

    def normal(self, *shape: int) -> Tensor:
        self.normals += 1
        return noise(shape, 6000 + self.normals - 1).double()

    def image(self, batch: int, size: int, samples: int, noise_std: float, gaussian: bool = True) -> Any:
        """Draws of the angles (theta, phi), each [b], and numbers of the rays, of one call of the generator."""
        rays, draw = size * size, self.normal if gaussian else self.uniform
        jitter = self.uniform(batch, rays, samples, 1)[..., 0]
        angles = draw(batch, 1)[:, 0], draw(batch, 1)[:, 0]
        first = self.normal(batch, rays, samples, 1)[..., 0] * noise_std
        fine = self.uniform(batch * rays, samples).view(batch, rays, samples)
        last = self.normal(batch, rays, 2 * samples, 1)[..., 0] * noise_std
        return angles, RayDraws(jitter, fine, first, last)


def latents(batch: int, tensor_id: int) -> Tensor:
    return noise((batch, 256), tensor_id).double()
