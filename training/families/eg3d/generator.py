"""Turns a latent into three planes of features, and renders the first three: EG3D without its superresolution.

Source: Chan et al. 2022. Modules and parameters carry the names of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gaussian import Cameras, Rendering
from torch_utils.precision import exact_float32
from training.families import base
from training.families.base import AT_REST, StepContext
from training.families.eg3d.config import GeneratorConfig
from training.families.eg3d.marching import SHIFT, composite_intervals, interval_weights, place_fine
from training.fields.field import RadianceField
from training.fields.marching import March, RayDraws, draw
from training.fields.rays import Rays, camera_rays, even_draws, stratified
from training.fields.triplanes import EG3D, plane_features
from training.fields.volume import Composite
from training.networks.layers import CAMERA_DIM, FullyConnected, MappingNetwork
from training.networks.stylegan2 import SynthesisNetwork, channel_counts

NOISE_KEYS = 2**31  # of the noise of a sample
OVERSHOOT = 0.001  # of colours beyond 0..1, so that these are reached


class Backbone(nn.Module):
    """Holds the mapping network and the network that makes the planes."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        channels = channel_counts(config.plane_resolution, config.channel_base, config.channel_max)
        self.synthesis = SynthesisNetwork(
            config.w_dim, config.plane_resolution, 3 * config.feature_dim, channels, use_noise=config.use_noise,
            filter_keys=config.published_keys,
        )  # fmt: skip
        self.mapping = MappingNetwork(config.z_dim, CAMERA_DIM, config.w_dim, config.map_depth, keep_average=True)


class Decoder(nn.Module):
    """Makes a raw density, and features in 0..1, of the features of the planes."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(FullyConnected(features, hidden), nn.Softplus(), FullyConnected(hidden, 1 + features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features [..., F] and raw densities [...] for x [..., F]."""
        y = self.net(x)
        return y[..., 1:].sigmoid() * (1 + 2 * OVERSHOOT) - OVERSHOOT, y[..., 0]


@dataclass(frozen=True)
class TriPlanes(RadianceField):
    """Holds B fields."""

    planes: Tensor  # [B, 3, F, R, R]
    decoder: Decoder

    def sample(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns features [B, P, F], of which three are RGB in 0..1, and raw densities; directions do not matter."""
        inside = points / (self.half_width * self.unit)
        return self.decoder(plane_features(self.planes, inside, EG3D, align_corners=False))


class Generator(base.Generator):
    """Maps latents to radiance fields. No call changes the module; only `update_average` does."""

    w_avg_buffer, w_avg_batch = "backbone.mapping.w_avg", 4  # published, a GPU's share of a batch
    makes_splats = False

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim, self.resolution = config.z_dim, config.w_dim, config.resolution
        self.mapping_follows_camera = config.pose_conditioning
        self.backbone = Backbone(config)
        self.decoder = Decoder(config.feature_dim, config.hidden_dim)
        self.num_ws = self.backbone.synthesis.num_ws

    @property
    def scene_numbers(self) -> int:
        """Returns the texels of a scene's planes."""
        return 3 * self.config.plane_resolution**2

    def scene_size(self) -> str:
        """Says how large the planes of a scene are."""
        size = self.config.plane_resolution
        return f"3 planes of {size} x {size} with {self.config.feature_dim} features"

    def style_weights(self) -> list[Tensor]:
        """Returns the matrices that make styles of w."""
        return self.backbone.synthesis.style_weights()

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Maps latents z [B, z_dim] to ws [B, num_ws, w_dim], pulled towards w_avg by psi (0: w_avg, 1: not at all).

        cameras: [B], those that the network is told; None takes the frontal one of the data.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [B, {self.z_dim}], got {list(z.shape)}")
        z = z.to(self.w_avg.dtype)
        if not self.config.pose_conditioning:
            labels = z.new_zeros(len(z), CAMERA_DIM)
        else:
            cameras = cameras or self.geometry.frontal().reshape(1).expand(len(z))
            labels = self._in_field(cameras).labels.to(z)
        w = self.backbone.mapping(z, labels * self.config.pose_scale)
        if psi != 1:
            w = self.w_avg.lerp(w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def _in_field(self, cameras: Cameras) -> Cameras:
        """Returns cameras at places in units of the field."""
        cam2world = cameras.cam2world.clone()
        cam2world[..., :3, 3] *= self.config.unit
        return Cameras(cam2world, cameras.intrinsics)

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> TriPlanes:
        """Makes scenes from ws [B, num_ws, w_dim]. Raises ValueError for another shape."""
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws must have shape [B, {self.num_ws}, {self.w_dim}] as mapping() returns it, got {list(ws.shape)}"
            )
        noise = "const" if at.draws is None else at.draws.integers("features/noise", NOISE_KEYS)
        return self.scene(self.backbone.synthesis(ws, noise, self.low_dtype))

    def scene(self, image: Tensor) -> TriPlanes:
        """Makes scenes of the network's image [B, 3 F, R, R]."""
        return TriPlanes(
            half_width=self.config.box_warp / 2 / self.config.unit,
            unit=self.config.unit,
            activation="softplus",
            shift=SHIFT,
            planes=image.unflatten(1, (3, -1)),
            decoder=self.decoder,
        )

    @property
    def march(self) -> March:
        """Returns how rays are followed, but for what is added up: see `marching`."""
        config = self.config
        return March(
            config.ray_start, config.ray_end, config.samples, config.fine_samples, jitter="onward",
            distance=config.camera_distance,
        )  # fmt: skip

    def render(
        self,
        scene: TriPlanes,
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,  # in training samples are jittered
    ) -> Rendering:
        """Renders the first three features in float32."""
        resolution = resolution or self.resolution
        size = (resolution, resolution) if isinstance(resolution, int) else resolution
        rays = cameras.shape[1] * size[0] * size[1]
        draws = RayDraws() if at.draws is None else draw(at.draws, "rays", rays, self.march)
        dtype = self.w_avg.dtype
        features, alpha, depth = self.trace(scene.to(dtype=dtype), cameras.to(dtype=dtype), size, draws)
        rgb = features[:, :, :3]
        behind = rgb.new_ones(()) if background is None else background.to(rgb)
        behind = behind.expand(*cameras.shape, 3)[..., None, None]
        return Rendering(rgb + (1 - alpha) * behind, alpha, depth)

    def trace(
        self, scene: TriPlanes, cameras: Cameras, size: tuple[int, int], draws: RayDraws
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns premultiplied features [B, V, F, H, W], alpha and depth [B, V, 1, H, W] for given random numbers."""
        with torch.autocast(scene.device.type, enabled=False), exact_float32():
            rays = camera_rays(self._in_field(cameras), size)
            step = count = rays.cosines.shape[1]
            if not torch.is_grad_enabled():
                per_ray = len(rays.cosines) * (self.config.samples + self.config.fine_samples)
                step = max(1, self.march.points // per_ray)
            parts = [
                self._follow(scene, rays.part(rows), draws.part(rows))
                for rows in (slice(first, first + step) for first in range(0, count, step))
            ]
        features, distance, alpha = (
            torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("features", "distance", "alpha")
        )
        shape = (*cameras.shape, *size)
        image = features.view(*shape, -1).permute(0, 1, 4, 2, 3)
        depth = distance * rays.cosines / self.config.unit
        return image, alpha.view(shape)[:, :, None], depth.view(shape)[:, :, None]

    def _follow(self, scene: TriPlanes, rays: Rays, draws: RayDraws) -> Composite:
        """Adds up what rays meet at samples of a first pass and of a second one that it places."""
        march = self.march
        u = rays.cosines.new_full((march.samples,), 0.5) if draws.jitter is None else draws.jitter
        away = rays.origins.norm(dim=-1, keepdim=True) - self.config.camera_distance  # [B, R, 1]
        t = stratified(march.near + away, march.far + away, march.samples, u, march.jitter)
        t = t.expand(*rays.cosines.shape, -1)
        features, sigma = _sample(scene, rays, t)
        with torch.no_grad():
            weights, _ = interval_weights(sigma, t)
            fine = draws.fine
            if fine is None:
                fine = even_draws(march.fine_samples, t).expand(*t.shape[:2], -1)
            second = place_fine(t, weights, fine)
        fine_features, fine_sigma = _sample(scene, rays, second)
        t, order = torch.cat([t, second], dim=-1).sort(dim=-1)
        sigma = torch.cat([sigma, fine_sigma], dim=-1).gather(-1, order)
        features = torch.cat([features, fine_features], dim=-2)
        return composite_intervals(features, sigma, t, order)


def _sample(scene: TriPlanes, rays: Rays, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns features [B, R, S, F] and raw densities [B, R, S] at t [B, R, S]."""
    points = rays.origins[:, :, None] + t[..., None] * rays.directions[:, :, None]
    features, sigma = scene.sample(points.flatten(1, 2), None)
    return features.unflatten(1, t.shape[1:]), sigma.unflatten(1, t.shape[1:])
