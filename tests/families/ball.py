"""Defines balls: a family whose scenes are no splats, as small as can be. docs/new-family.md shows this file."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from gaussian import Cameras, Rendering, SceneRecord
from training.families import base
from training.families.adversarial import AdversarialObjective
from training.families.adversarial_config import AdversarialConfig
from training.networks.discriminator import Discriminator, DiscriminatorConfig


@dataclass(frozen=True)
class Balls(SceneRecord):
    """Holds B scenes of one soft ball each."""

    values: Tensor  # [B, 7] centre in world units, RGB before the sigmoid, ln of the radius

    def statistics(self, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
        return {"Balls/radius": self.values[:, 6].exp()}


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    resolution: int = 32
    z_dim: int = 8
    radius: float = 0.2  # of the first balls, world units


class Generator(base.Generator):
    """Maps a latent to a w, and a w to a ball, by one matrix each. The mean w is 0."""

    makes_splats = False

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.z_dim, self.w_dim, self.resolution = config.z_dim, 8, config.resolution
        self.to_w = nn.Linear(config.z_dim, self.w_dim, bias=False)
        self.to_ball = nn.Linear(self.w_dim, 7)
        nn.init.constant_(self.to_ball.bias[6:], log(config.radius))

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        return psi * self.to_w(z)[:, None]  # [B, 1, w_dim]

    def synthesis(self, ws: Tensor, at: base.StepContext = base.AT_REST) -> Balls:
        return Balls(self.to_ball(ws[:, 0]))

    def render(self, scene: Balls, cameras: Cameras, resolution: Any = None, background: Any = None,
               at: base.StepContext = base.AT_REST) -> Rendering:  # fmt: skip
        size = resolution or self.resolution
        height, width = (size, size) if isinstance(size, int) else size
        centre, color, log_radius = scene.values[:, None].split([3, 3, 1], dim=-1)  # [B, 1, 3], [B, 1, 3], [B, 1, 1]
        xy, z = cameras.project(centre[:, None])  # [B, V, 1, 2] in units of the image, [B, V, 1]
        radius = cameras.intrinsics[..., 0, 0, None] * log_radius.exp() / z  # [B, V, 1]
        u, v = (torch.arange(n, device=z.device).add(0.5) / n for n in (width, height))
        distance = torch.hypot(u - xy[..., 0, None], v[:, None] - xy[..., 1, None])  # [B, V, H, W]
        alpha = ((radius[..., None] - distance) * height).sigmoid()[:, :, None]  # [B, V, 1, H, W]: soft over a pixel
        behind = torch.ones(3, device=z.device) if background is None else background
        behind = behind.expand(*cameras.shape, 3)[..., None, None]  # [B, V, 3, 1, 1]
        rgb = alpha * color.sigmoid()[..., None, None] + (1 - alpha) * behind
        return Rendering(rgb, alpha, alpha * z[..., None, None])


FAMILY = base.Family(
    name="balls",
    title="one soft ball a scene",
    generator_config=GeneratorConfig,
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=AdversarialConfig,
    objective=AdversarialObjective,
    presets={
        "ball": base.Preset(
            GeneratorConfig(),
            DiscriminatorConfig.sized(32, channel_base=256, channel_max=16, mapping_depth=1),
            AdversarialConfig(gamma=0.0, ema_halflife_kimg=0.1),
            base.RunFields(total_kimg=20, batch=8, batch_gpu=4, metrics=("swd1k",)),
        )
    },
    options=[base.Option(("--radius",), "generator.radius", "of the first balls, in world units", least=0)],
    curves=[("Radius of the balls", ["Balls/radius"])],
)
