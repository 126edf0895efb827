"""Golden numbers of CGOF: what the published classes gave in float64 with a stand-in for the mesh, and how."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras
from tests.training.families.hashes import noise, uniform
from tests.training.families.pigan.golden import WHOLE, fill
from training.data.poses import orbit
from training.families.cgof.sampling import Guide, GuidedDraws
from training.families.pigan.config import GeneratorConfig
from training.families.pigan.generator import Generator

GOLDEN: dict[str, Any] = WHOLE["cgof"]
EXACT = 1e-6  # absolute, and relative for losses and norms, in float64; the numbers are rounded to 9 digits
SIZE, SAMPLES, FOV = 16, 12, 12.0
STD = (0.3, 0.155)  # of theta and phi about pi / 2
CONFIG = GeneratorConfig(SIZE, z_dim=411, grid="corners", unit=1.0, last_back=True)


@functools.cache
def generator() -> Generator:
    """The published generator with known weights; not to be changed."""
    G = Generator(CONFIG)
    fill(G)
    return G


def cameras(yaw: Tensor, pitch: Tensor) -> Cameras:
    """Cameras [b, 1] of standardised angles [b]."""
    f = 1 / (2 * math.tan(math.radians(FOV) / 2))
    intrinsics = torch.tensor([[f, 0, 0.5], [0, f, 0.5], [0, 0, 1]], dtype=torch.float64)
    return orbit(math.pi / 2 + STD[0] * yaw, math.pi / 2 + STD[1] * pitch, 1.0, intrinsics).reshape(-1, 1)


def grid(size: int) -> tuple[Tensor, Tensor]:
    """x [1, size] to the right and y [size, 1] upwards, -1 to 1."""
    places = torch.linspace(-1, 1, size, dtype=torch.float64)
    return places[None], -places[:, None]


def stand_in(size: int, b: int = 0, axes: tuple[float, float] = (0.7, 0.8)) -> tuple[Tensor, Tensor]:
    """Depth and mask [size, size] of a face that is an ellipse."""
    x, y = grid(size)
    rho = (x / axes[0]) ** 2 + (y / axes[1]) ** 2
    mask = rho < 1
    depth = 1 - 0.06 * (1 - rho).clamp(min=0).sqrt() - 0.01 * b
    return torch.where(mask, depth, 0.0), mask


def guide(size: int, batch: int) -> Guide:
    depths, masks = zip(*(stand_in(size, b) for b in range(batch)), strict=True)
    return Guide(torch.stack(depths).flatten(1), torch.stack(masks).flatten(1))


def draws(batch: int, size: int, first_id: int = 5000) -> GuidedDraws:
    rays = size * size
    jitter = uniform((batch, rays, SAMPLES, 1), first_id).double()[..., 0]
    places = [uniform((batch * rays, SAMPLES), first_id + i).double().view(batch, rays, -1) for i in (1, 2)]
    return GuidedDraws(jitter, *places)


def latents() -> Tensor:
    return noise((2, 411), 2200).double()
