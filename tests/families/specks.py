"""Defines specks: a family whose scenes are a few splats, with a truncation centre and the objective of R3GAN."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gaussian import Cameras, Gaussians, Rendering, render
from tests.families import ball
from training.families import base
from training.families.adversarial_config import AdversarialConfig
from training.families.base import AT_REST, StepContext


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    resolution: int = 32
    z_dim: int = 4
    num_splats: int = 6


class Generator(base.Generator):
    """Maps a latent to a w of equal length, and a w to splats by one matrix."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.z_dim, self.w_dim, self.num_ws, self.resolution = config.z_dim, 4, 1, config.resolution
        self.num_splats = config.num_splats
        self.to_w = nn.Linear(config.z_dim, self.w_dim)
        self.to_splats = nn.Linear(self.w_dim, 6 * config.num_splats)
        self.register_buffer("w_avg", torch.zeros(self.w_dim))

    @property
    def scene_numbers(self) -> int:
        return self.num_splats

    def scene_size(self) -> str:
        return f"{self.num_splats} splats"

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        return self.get_buffer("w_avg").lerp(self.to_w(z), psi)[:, None]

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> Gaussians:
        means, colors = self.to_splats(ws[:, 0]).unflatten(1, (self.num_splats, 6)).split(3, dim=-1)  # [B, N, 3] each
        quats = means.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(*means.shape[:2], 4)
        return Gaussians(
            0.3 * means, torch.full_like(means, -2.5), quats, torch.ones_like(means[..., :1]), colors[:, :, None]
        )

    def render(
        self,
        scene: Gaussians,
        cameras: Cameras,
        resolution: int | tuple[int, int] | None = None,
        background: Tensor | None = None,
        at: StepContext = AT_REST,
    ) -> Rendering:
        return render(scene, cameras, resolution or self.resolution, background, backend=self.rasterizer)

    @torch.no_grad()
    def update_average(self, mean_ws: Tensor, batch: int) -> None:
        self.get_buffer("w_avg").lerp_(mean_ws[0], 0.1)


FAMILY = dataclasses.replace(
    ball.FAMILY,
    name="specks",
    title="a few splats a scene",
    generator_config=GeneratorConfig,
    generator=Generator,
    presets={
        "speck": base.Preset(
            GeneratorConfig(),
            ball.FAMILY.presets["ball"].discriminator,
            AdversarialConfig(gamma=0.5, r1_interval=2, ema_halflife_kimg=0.1, loss="relativistic", r2_gamma=0.5),
            base.RunFields(batch=8, batch_gpu=4),
        )
    },
    options=[base.Option(("--specks",), "generator.num_splats", "splats of a scene", least=1)],
    curves=(),
)
