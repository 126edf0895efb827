"""Defines balls: a family whose scenes are no splats, as small as can be. docs/new-family.md shows this file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn

from gaussian import Cameras, Rendering
from training.families import base
from training.families.adversarial import AdversarialConfig, AdversarialObjective
from training.families.base import AT_REST, Conditioning, StepContext


@dataclass(frozen=True)
class Balls:
    """Holds B scenes of one soft ball each."""

    values: Tensor  # [B, 7] centre in world units, RGB before the sigmoid, ln of the radius

    @property
    def batch_size(self) -> int:
        return len(self.values)

    @property
    def device(self) -> torch.device:
        return self.values.device

    def map(self, fn: Callable[[Tensor], Tensor]) -> Balls:
        return Balls(fn(self.values))

    def statistics(self, cameras: Cameras) -> dict[str, Tensor]:
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
        self.z_dim, self.w_dim, self.num_ws, self.resolution = config.z_dim, 8, 1, config.resolution
        self.to_w = nn.Linear(config.z_dim, self.w_dim, bias=False)
        self.to_ball = nn.Linear(self.w_dim, 7)
        nn.init.constant_(self.to_ball.bias[6:], log(config.radius))

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        return psi * self.to_w(z)[:, None]  # [B, 1, w_dim]

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> Balls:
        return Balls(self.to_ball(ws[:, 0]))

    def render(
        self,
        scene: Balls,
        cameras: Cameras,
        resolution: int | tuple[int, int] | None = None,
        background: Tensor | None = None,
        at: StepContext = AT_REST,
    ) -> Rendering:
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

    def update_average(self, mean_ws: Tensor, batch: int) -> None:
        """Does nothing: the mean w stays 0."""


@dataclass(frozen=True)
class DiscriminatorConfig(base.DiscriminatorConfig):
    width: int = 16  # of its one hidden layer


class Discriminator(base.Discriminator):
    """Judges 8 x 8 pixels of an image, and its camera."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * 8 * 8 + 25, config.width), nn.GELU(), nn.Linear(config.width, 1))

    def outputs(
        self, images: Tensor, conditioning: Conditioning, num_groups: int | None = None
    ) -> base.DiscriminatorOutput:
        pixels = nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)  # [N, 192]
        return base.DiscriminatorOutput(self.layers(torch.cat([pixels, conditioning.labels], dim=1)))


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
            DiscriminatorConfig(),
            AdversarialConfig(gamma=0.0, ema_halflife_kimg=0.1),
            base.RunFields(total_kimg=20, batch=8, batch_gpu=4, metrics=("swd1k",)),
        )
    },
    options=[base.Option(("--radius",), "generator.radius", "of the first balls, in world units", least=0)],
    curves=[("Radius of the balls", ["Balls/radius"])],
)
