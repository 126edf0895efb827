"""Turns a latent into a map over the surface of a template head, and the map into splats: the generator of GGHead.

Source: Kirschstein et al. 2024. Modules and parameters carry the names of the published checkpoints, so that published
weights load as they are.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaussian import Cameras, Rendering, render
from training.families import base
from training.families.base import AT_REST, StepContext
from training.families.gghead.config import GeneratorConfig
from training.families.gghead.decoding import UvGaussians, decode, opacities, with_backdrop
from training.networks.layers import CAMERA_DIM, MappingNetwork
from training.networks.stylegan2 import SynthesisNetwork, channel_counts

__all__ = ["Generator", "GeneratorConfig"]

NOISE_KEYS = 2**31  # of the noise of a sample


class Backbone(nn.Module):
    """Holds the mapping network and the network that makes the maps."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        channels = channel_counts(config.plane_resolution, config.channel_base, config.channel_max)
        self.synthesis = SynthesisNetwork(
            config.w_dim,
            config.plane_resolution,
            sum(config.attributes) + config.background_channels,
            channels,
            use_noise=config.use_noise,
            filter_keys=config.published_keys,
        )
        for block in self.synthesis.blocks():
            with torch.no_grad():
                block.torgb.weight.mul_(config.initial_maps)
        self.mapping = MappingNetwork(config.z_dim, CAMERA_DIM, config.w_dim, config.map_depth, keep_average=True)


class Generator(base.Generator):
    """Maps latents to splats on a template. No call changes the module; the two methods that do say so."""

    w_avg_buffer, w_avg_batch = "backbone.mapping.w_avg", 32  # published, one GPU and its batch

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim, self.resolution = config.z_dim, config.w_dim, config.resolution
        self.has_background, self.colors_follow_view = bool(config.background_channels), config.sh_degree > 0
        self.mapping_follows_camera = config.pose_conditioning
        self.backbone = Backbone(config)
        self.num_ws = self.backbone.synthesis.num_ws
        self._zero_conv_position = nn.Conv2d(3, 3, 1)  # every splat starts on its anchor
        for parameter in self._zero_conv_position.parameters():
            nn.init.zeros_(parameter)
        grids = _grids(config)
        self.register_buffer("_uv_grid", grids[-1][2][None, :, None])
        self.register_buffer("_uv_position_map", grids[-1][0])
        self.register_buffer("_flame_vertices", grids[-1][1][None])
        if config.first_samples:
            self.register_buffer("_first_uv_grid", grids[0][2][None, :, None])
            self.register_buffer("_first_flame_vertices", grids[0][1][None])
            self.register_buffer("_refined", torch.tensor(False))
        if config.published_keys:  # published training stored it and never read it
            self.register_buffer("dataset_label_std", torch.zeros(CAMERA_DIM))

    def note_progress(self, nimg: int) -> None:
        """Remembers, for when the network is at rest, which grid a run uses after nimg images."""
        if self.config.first_samples:
            self.get_buffer("_refined").fill_(nimg >= self.config.refined_nimg)

    def grid(self, at: StepContext = AT_REST) -> tuple[Tensor, Tensor]:
        """Returns anchors [N, 3] and their (u, v) [N, 2] in the map: the first grid of a run, or its last one."""
        refined = True
        if self.config.first_samples and at.nimg is not None:
            refined = at.nimg >= self.config.refined_nimg
        elif self.config.first_samples and self.device.type != "meta":  # where no flag has a value
            refined = bool(self.get_buffer("_refined"))
        prefix = "" if refined else "_first"
        return self.get_buffer(f"{prefix}_flame_vertices")[0], self.get_buffer(f"{prefix}_uv_grid")[0, :, 0]

    @property
    def scene_numbers(self) -> int:
        """Returns the splats of a scene."""
        return len(self.grid()[0])

    def scene_size(self) -> str:
        """Says how many splats a scene has."""
        return f"{self.scene_numbers:,} splats"

    def style_weights(self) -> list[Tensor]:
        """Returns the matrices that make styles of w."""
        return self.backbone.synthesis.style_weights()

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Maps latents z [B, z_dim] to ws [B, num_ws, w_dim], pulled towards w_avg by psi (0: w_avg, 1: not at all).

        cameras: [B], those that scenes are to be seen from; None takes the frontal one of the data.
        Raises ValueError without cameras if the network comes from no run.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [B, {self.z_dim}], got {list(z.shape)}")
        z = z.to(self.w_avg.dtype)
        if not self.config.pose_conditioning:
            labels = z.new_zeros(len(z), CAMERA_DIM)
        else:
            labels = (cameras or self.geometry.frontal().reshape(1).expand(len(z))).labels.to(z)
        w = self.backbone.mapping(z, labels)
        if psi != 1:
            w = self.w_avg.lerp(w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def planes(self, ws: Tensor, at: StepContext = AT_REST) -> Tensor:
        """Returns the maps [B, C, R, R] of ws [B, num_ws, w_dim]: attributes, then the backdrop if there is any.

        Noise is random in training, a function of seed and sample, and constant at rest.
        """
        noise = "const" if at.draws is None else at.draws.integers("features/noise", NOISE_KEYS)
        return self.backbone.synthesis(ws, noise, self.low_dtype)

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> UvGaussians:
        """Makes scenes from ws [B, num_ws, w_dim]. Raises ValueError for another shape."""
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws must have shape [B, {self.num_ws}, {self.w_dim}] as mapping() returns it, got {list(ws.shape)}"
            )
        return self.splats(self.planes(ws, at), at)

    def splats(self, planes: Tensor, at: StepContext = AT_REST) -> UvGaussians:
        """Reads the splats off maps [B, C, R, R], bilinearly at the coordinates of the grid."""
        attributes = sum(self.config.attributes)
        anchors, uv = self.grid(at)
        position = self._zero_conv_position(planes[:, :3])
        maps = torch.cat([position, planes[:, 3:attributes]], dim=1)
        where = uv[None, :, None].expand(len(maps), -1, -1, -1)  # [B, N, 1, 2]
        raw = F.grid_sample(maps, where, align_corners=False)[..., 0].transpose(1, 2)  # [B, N, C]
        backdrop = planes[:, attributes:] if self.config.background_channels else None
        return decode(raw, anchors, uv, self.config, backdrop)

    def render(
        self,
        scene: UvGaussians,
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,  # no schedule depends on it
    ) -> Rendering:
        """Renders scenes in float32. Where the network makes a backdrop, that is the background."""
        scene = scene.to(dtype=torch.float32)
        # In training a non-finite gradient skips its step and is counted; a sample for somebody to look at is an error.
        finite, size = not self.training, resolution or self.resolution
        backdrop = getattr(scene, "backdrop", None)
        behind = background if backdrop is None else None
        rendering = render(
            scene, cameras, size, behind, check_finite=finite, backend=self.rasterizer, low_pass=self.config.low_pass
        )
        return rendering if backdrop is None else with_backdrop(rendering, backdrop, self.config.exact_backdrop)

    def render_uv(self, scene: UvGaussians, cameras: Cameras, resolution: int, opaque: bool = False) -> Tensor:
        """Renders (u, v, -1) in place of RGB, over 1: [B, V, 3, H, W]. Coordinates are constants, all else learns.

        opaque: every raw opacity is 1 (an opacity of 0.73), as the published option has it.
        """
        if opaque:
            scene = dataclasses.replace(scene, opacity_logits=opacities(torch.ones_like(scene.opacity_logits)).logit())
        values = torch.cat([scene.uv, -torch.ones_like(scene.uv[..., :1])], dim=-1).float().contiguous()
        white = values.new_ones(3)
        scene = scene.to(dtype=torch.float32)
        finite = not self.training
        return render(
            scene, cameras, resolution, white, colors=values, check_finite=finite, backend=self.rasterizer,
            low_pass=self.config.low_pass,
        ).rgb  # fmt: skip


def _grids(config: GeneratorConfig) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns what `template.anchors` has for each of the configuration's grids.

    A file that is gone, or has changed, leaves its splats NaN: they come with the checkpoint, or else nothing renders.
    """
    return [_grid(config, i) for i in range(len(config.sample_counts))]


def _grid(config: GeneratorConfig, i: int) -> tuple[Tensor, Tensor, Tensor]:
    count = config.splats[i] if config.splats else None
    try:
        positions, anchors, uv = config.anchors(i)
        if count in (None, len(anchors)):
            device = torch.get_default_device()  # "meta" where a network is built without memory
            return positions.clone().to(device), anchors.clone().to(device), uv.clone().to(device)
    except ValueError:
        if count is None:
            raise
    assert count is not None
    shapes = (3, config.plane_resolution, config.plane_resolution), (count, 3), (count, 2)
    positions, anchors, uv = (torch.full(shape, torch.nan) for shape in shapes)
    return positions, anchors, uv
