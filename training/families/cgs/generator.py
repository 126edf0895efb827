"""Turns a latent into a hierarchy of Gaussian splats through a point transformer: the generator of CGS-GAN.

Sources: Hyun and Heo 2024 (GSGAN), Barthel et al. 2025 (CGS-GAN). Modules and parameters carry the names of the
published checkpoints, so that published weights load as they are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gaussian import Cameras, Gaussians, Rendering, render
from training.control.surface import Surface
from training.families import base
from training.families.base import AT_REST, StepContext
from training.families.cgs.config import GeneratorConfig, published_constants
from training.families.cgs.hierarchy import Attributes
from training.families.cgs.point_generator import PointGenerator
from training.morphable.models import morphable_model
from training.networks import color
from training.networks.layers import CAMERA_DIM, MappingNetwork
from training.networks.start import initial_points

__all__ = ["Generator", "GeneratorConfig", "HierarchicalGaussians", "published_constants"]

POINT_RADIUS = 0.3  # rms coordinate of the published initial points, before the tanh
SCENE_HALF_WIDTH = 0.5  # splat centres are limited to this cube, world units


@dataclass(frozen=True, kw_only=True)
class HierarchicalGaussians(Gaussians):
    """Holds the splats of all levels, coarse first, with the anchors they hang on (level 0 first, one level fewer)."""

    anchors: Gaussians


class Generator(base.Generator):
    """Maps latents to hierarchies of splats. No call changes the module; w_avg moves through update_average only."""

    w_avg_buffer, w_avg_batch = "mapping_network.w_avg", 8

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim, self.num_ws, self.resolution = config.z_dim, config.w_dim, 1, config.resolution
        self.block_ws = config.first_blocks + config.num_levels - 1  # transformer blocks
        self._xyz = nn.Parameter(initial_points(config.start, config.num_points, POINT_RADIUS))
        self.point_gen = PointGenerator(config)
        self.mapping_network = MappingNetwork(
            config.z_dim,
            CAMERA_DIM if config.camera_embedding else 0,
            config.w_dim,
            config.map_depth,
            keep_average=True,
        )
        self.blocks = config.blocks
        self.surface = (
            Surface(morphable_model(config.controls, flag="--controls"), self.blocks)
            if self.blocks is not None
            else None
        )
        if self.surface is not None:
            self.surface.bind(self)
        if config.published_keys:  # published training stored it and never read it
            self.register_buffer("dataset_label_std", torch.zeros(CAMERA_DIM))

    @property
    def initial_points(self) -> Tensor:
        """Returns where the hierarchy starts, the same for every latent: [num_points, 3] in -1..1."""
        return torch.tanh(self._xyz)

    @property
    def scene_numbers(self) -> int:
        """Returns the splats of a scene."""
        return sum(self.config.level_sizes)

    def scene_size(self) -> str:
        """Says how many splats a scene has."""
        return f"{self.scene_numbers:,} splats"

    def style_weights(self) -> list[Tensor]:
        """Returns the matrices that make of w the norms and scales of the transformer's blocks."""
        return [layer.matrix() for layer in self.point_gen.transformer.modulation_layers()]

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Maps latents z [B, z_dim] to ws [B, num_ws, w_dim], pulled towards w_avg by psi (0: w_avg, 1: not at all).

        Cameras are ignored, as published: identity does not depend on the viewpoint.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [B, {self.z_dim}], got {list(z.shape)}")
        z = z.to(self._xyz.dtype)
        camera = z.new_zeros(len(z), CAMERA_DIM) if self.config.camera_embedding else None
        w = self.mapping_network(z, camera)
        if psi != 1:
            w = self.w_avg.lerp(w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> HierarchicalGaussians:
        """Makes scenes of sum(level_sizes) splats from ws [B, num_ws, w_dim]. No schedule depends on `at`.

        ws [B, block_ws, w_dim] give every block its own w, in the order in which they run; published weights fit too.
        Raises ValueError for a two-dimensional ws: latents and ws may be equally long, and a latent mapped twice or
        not at all would go unnoticed.
        """
        if ws.ndim != 3 or ws.shape[1] not in (self.num_ws, self.block_ws) or ws.shape[2] != self.w_dim:
            raise ValueError(
                f"ws must have shape [B, {self.num_ws}, {self.w_dim}] as mapping() returns it, "
                f"or [B, {self.block_ws}, {self.w_dim}], got {list(ws.shape)}"
            )
        w = ws[:, 0] if ws.shape[1] == self.num_ws else ws
        anchors, splats = self.point_gen(self.initial_points, w, self.low_dtype)
        raw = _as_gaussians(splats, len(ws))
        return HierarchicalGaussians(
            means=raw.means.clamp(-SCENE_HALF_WIDTH, SCENE_HALF_WIDTH),
            log_scales=raw.log_scales,
            quats=raw.quats,
            opacity_logits=raw.opacity_logits,
            sh=color.inward_floor(raw.sh) if self.config.color_rule == "inward" else raw.sh,
            level_sizes=raw.level_sizes,
            anchors=_as_gaussians(anchors, len(ws)),
        )

    def render(
        self,
        scene: Gaussians,
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,  # no schedule depends on it
    ) -> Rendering:
        """Renders scenes in float32; in training mode without depth, unless it is compared with a surface's."""
        scene = scene.to(dtype=torch.float32)
        # In training a non-finite gradient skips its step and is counted; a sample for somebody to look at is an error.
        size = resolution or self.resolution
        look_on = not self.training  # somebody looks at it
        with_depth = look_on or self.surface is not None
        return render(
            scene, cameras, size, background, with_depth=with_depth, check_finite=look_on, backend=self.rasterizer,
            low_pass=self.config.low_pass,
        )  # fmt: skip


def _as_gaussians(levels: list[Attributes], batch: int) -> Gaussians:
    """Joins levels (M = batch P) into one scene per sample."""

    def joined(parts: tuple[Tensor, ...]) -> Tensor:
        rows = parts[0].shape[1]  # of [A, rows, B P]
        return torch.cat([part.flatten(0, 1).t().reshape(batch, -1, rows) for part in parts], dim=1)

    means, log_scales, appearance = (joined(parts) for parts in zip(*levels, strict=True))
    quats, colors, opacity_logits = appearance.split((4, 3, 1), dim=-1)
    sizes = tuple(level.xyz.shape[0] * level.xyz.shape[2] // batch for level in levels)
    return Gaussians(means, log_scales, quats, opacity_logits, colors[:, :, None], sizes)
