"""Turns a latent into three planes of features, and renders them along rays: the generator of EpiGRAF.

Source: Skorokhodov et al. 2022. A published name `synthesis.X` is `network.X` here, and `mapping.X` is `mapper.X`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaussian import Cameras, Rendering
from torch_utils import random
from torch_utils.precision import exact_float32
from training.families import base
from training.families.base import AT_REST, StepContext
from training.families.epigraf import backdrop, patches, poses
from training.families.epigraf.config import GeneratorConfig
from training.families.epigraf.scene import Decoder, TriPlanes
from training.fields.marching import KEYS, March, RayDraws, draw, render_field, two_passes
from training.fields.rays import Rays, camera_rays
from training.networks.layers import MappingNetwork
from training.networks.stylegan2 import SynthesisNetwork, channel_counts

__all__ = ["Generator", "GeneratorConfig"]

NOISE_KEYS = 2**31  # of the noise of a sample
CLAMP = 256.0  # of activations
CLASS_SAMPLES = 256  # latents whose mean w stands for a class


class Network(nn.Module):
    """Holds what makes a scene of ws, and what reads it."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        channels = channel_counts(config.plane_resolution, config.channel_base, config.channel_max)
        self.tri_plane_decoder = SynthesisNetwork(
            config.w_dim, config.plane_resolution, config.plane_channels, channels, clamp=CLAMP,
            use_noise=config.use_noise, filter_keys=config.published_keys,
        )  # fmt: skip
        self.tri_plane_mlp = Decoder(config.feature_dim, config.hidden_dim)
        if config.backdrop == "sphere":
            self.bg_model = backdrop.Sphere(config)


class Generator(base.Generator):
    """Maps latents to radiance fields. No call changes the module; only `update_average` does."""

    w_avg_buffer, w_avg_batch = "mapper.w_avg", 64  # a published step
    makes_splats = False

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim, self.resolution = config.z_dim, config.w_dim, config.resolution
        self.num_classes, self.mapping_follows_camera = config.num_classes, config.camera_conditioning
        self.network = Network(config)
        self.num_ws = self.network.tri_plane_decoder.num_ws + (backdrop.NUM_WS if config.backdrop == "sphere" else 0)
        self.mapper = MappingNetwork(
            config.z_dim, config.condition_dim, config.w_dim, config.map_depth, keep_average=True
        )
        self.mapper.register_buffer("mean_camera_pose", torch.tensor([*poses.FRONT, 0.0]))  # yaw, pitch, roll

    # ------------------------------------------------------------ latents

    def mapping(
        self,
        z: Tensor,
        cameras: Cameras | None = None,
        psi: float = 1.0,
        classes: Tensor | None = None,  # [B] int64; None: those that `classes_of` finds in the latents
    ) -> Tensor:
        """Maps latents z [B, z_dim] to ws [B, num_ws, w_dim], pulled towards the mean w by psi (0: the mean itself).

        cameras: [B]; None stands for `mean_camera_pose`, which is the data's in published networks, and the front in
            ours. The mean w is that of the class, if there are classes.
        """
        code = None
        if self.config.camera_conditioning:
            angles = self.mapper.get_buffer("mean_camera_pose")[:2].expand(len(z), 2)
            code = poses.camera_code(angles if cameras is None else poses.angles_of(cameras.positions.to(angles)))
        return self.mapped(z, code, psi, classes)

    def mapped(self, z: Tensor, code: Tensor | None, psi: float = 1.0, classes: Tensor | None = None) -> Tensor:
        """Maps as `mapping` does, for codes [B, 2] of cameras as `poses.camera_code` has them."""
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [B, {self.z_dim}], got {list(z.shape)}")
        z = z.to(self.w_avg.dtype)
        told = self._condition(z, code, classes)
        w = self.mapper(z, told)
        if psi != 1:
            w = torch.lerp(self._centre(told), w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def classes_of(self, z: Tensor) -> Tensor:
        """Returns classes int64 [B] of latents z [B, z_dim]: equally often, a function of the last bits of each."""
        bits = z[:, 0].float().contiguous().view(torch.int32).long() & 0xFFFFFF
        return (bits * 2654435761 & 0xFFFFFFFF) % self.config.num_classes

    def _condition(self, z: Tensor, code: Tensor | None, classes: Tensor | None) -> Tensor | None:
        """Returns what the mapping network is told [B, C], or None."""
        parts = []
        if classes is not None and not self.config.num_classes:
            raise ValueError("this generator knows no classes")
        if self.config.num_classes:
            classes = self.classes_of(z) if classes is None else classes
            parts.append(F.one_hot(classes, self.config.num_classes).to(z))
        if code is not None:
            parts.append(code.to(z))
        return torch.cat(parts, dim=1) if parts else None

    def _centre(self, told: Tensor | None) -> Tensor:
        """Returns what ws are pulled to: w_avg [w_dim], or the mean w of each sample's class and camera [B, w_dim]."""
        if not self.config.num_classes:
            return self.w_avg
        assert told is not None
        z = random.normal(0, "mean of a class", range(CLASS_SAMPLES), (self.z_dim,)).to(told)
        different, which = told.unique(dim=0, return_inverse=True)
        means = [self.mapper(z, row.expand(len(z), -1)).mean(0) for row in different]
        return torch.stack(means)[which]

    def style_weights(self) -> list[Tensor]:
        """Returns the matrices that make styles of w, for the planes and for a backdrop on a sphere."""
        sphere = getattr(self.network, "bg_model", None)
        behind = [] if sphere is None else [layer.affine.matrix() for layer in sphere.layers()]
        return self.network.tri_plane_decoder.style_weights() + behind

    # ------------------------------------------------------------ scenes

    def planes(self, ws: Tensor, at: StepContext = AT_REST) -> Tensor:
        """Returns the network's image [B, C, R, R] of ws: the planes, then a painted backdrop if there is one.

        Noise is random in training, a function of seed and sample, and constant at rest. All is float32, as published.
        """
        noise = "const" if at.draws is None else at.draws.integers("features/noise", NOISE_KEYS)
        decoder = self.network.tri_plane_decoder
        image: Tensor = decoder(ws[:, : decoder.num_ws], noise)
        return image

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> TriPlanes:
        """Makes scenes from ws [B, num_ws, w_dim]. Raises ValueError for another shape."""
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws must have shape [B, {self.num_ws}, {self.w_dim}] as mapping() returns it, got {list(ws.shape)}"
            )
        return self.scene(self.planes(ws, at), ws)

    def scene(self, image: Tensor, ws: Tensor) -> TriPlanes:
        """Makes scenes of the network's image [B, C, R, R]."""
        config = self.config
        features = 3 * config.feature_dim
        behind = {"none": None, "plane": image[:, features:], "sphere": ws[:, -backdrop.NUM_WS :]}[config.backdrop]
        return TriPlanes(
            half_width=config.cube_scale / config.unit,
            unit=config.unit,
            activation=config.density,
            shift=config.density_shift,
            cube_scale=config.cube_scale,
            gain=config.density_gain,
            planes=image[:, :features].unflatten(1, (3, -1)),
            decoder=self.network.tri_plane_mlp,
            backdrop=behind,
        )

    @property
    def scene_numbers(self) -> int:
        """Returns the texels of a scene's planes."""
        return 3 * self.config.plane_resolution**2

    def scene_size(self) -> str:
        """Says how large the planes of a scene are."""
        size = self.config.plane_resolution
        return f"3 planes of {size} x {size} with {self.config.feature_dim} features"

    # ------------------------------------------------------------ images

    @property
    def march(self) -> March:
        """Returns how rays are followed."""
        config = self.config
        return March(
            config.ray_start, config.ray_end, config.samples, config.samples, jitter="inside",
            last_delta=config.last_interval, distance=1.0,
        )  # fmt: skip

    def render(
        self,
        scene: TriPlanes,
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,  # in training samples are jittered, and raw densities have noise
        windows: Tensor | None = None,  # [B, 3] parts of the image that the cameras show; a painted backdrop asks
    ) -> Rendering:
        """Renders scenes in float32. Colours are not limited. A backdrop hides the background."""
        resolution = resolution or self.resolution
        size = (resolution, resolution) if isinstance(resolution, int) else resolution
        draws, moved = RayDraws(), None
        if at.draws is not None:
            assert at.nimg is not None
            config, rays = self.config, cameras.shape[1] * size[0] * size[1]
            noise = patches.faded(at.nimg, config.density_noise, 0.0, config.noise_fade_kimg * 1000)
            draws = draw(at.draws, "rays", rays, self.march, noise)
            if config.backdrop == "sphere":
                keys = at.draws.integers("rays/backdrop", KEYS)
                moved = random.hashed_uniform(keys, (rays, config.backdrop_samples))
        dtype = self.w_avg.dtype
        return self.trace(scene.to(dtype=dtype), cameras.to(dtype=dtype), size, background, draws, moved, windows)

    def trace(
        self,
        scene: TriPlanes,
        cameras: Cameras,  # [B, V]
        size: tuple[int, int],
        background: Tensor | None,
        draws: RayDraws,
        moved: Tensor | None = None,  # [B, R, K] uniform draws of the samples outside of the sphere
        windows: Tensor | None = None,
    ) -> Rendering:
        """Renders with given random numbers of R = V H W rays; see `render`."""
        if scene.backdrop is None:
            return render_field(scene, cameras, size, self.march, background, draws)
        shown: list[tuple[Tensor, ...]] = []
        with torch.autocast(scene.device.type, enabled=False), exact_float32():
            rays = camera_rays(cameras, size)
            rays = dataclasses.replace(rays, origins=rays.origins * self.config.unit)
            painted = self._painted(scene.backdrop, cameras.shape[1], size, windows)
            count, step = rays.cosines.shape[1], rays.cosines.shape[1]
            if not torch.is_grad_enabled():
                step = max(1, self.march.points // (len(rays.cosines) * 2 * self.config.samples))
            for first in range(0, count, step):
                rows = slice(first, first + step)
                own = rays.part(rows)
                met = two_passes(scene, own, self.march, draws.part(rows))
                if painted is None:
                    behind = self._sphere(own, scene.backdrop, None if moved is None else moved[:, rows])
                else:
                    behind = painted[:, rows]
                # Behind the last, short interval the published blend leaves a grey share of what it hides.
                grey = (1 - met.alpha - met.through) / 2
                shown.append((met.features + met.through[..., None] * behind + grey[..., None], met.distance))
        rgb, distance = (torch.cat(parts, dim=1) for parts in zip(*shown, strict=True))
        shape = (*cameras.shape, *size)
        image = rgb.view(*shape, 3).permute(0, 1, 4, 2, 3).contiguous()
        depth = (distance * rays.cosines / self.config.unit).view(shape)[:, :, None]
        return Rendering(image, torch.ones_like(depth), depth)

    def _painted(self, image: Tensor, views: int, size: tuple[int, int], windows: Tensor | None) -> Tensor | None:
        """Returns a painted backdrop [B, 3, R, R] as the rays see it, [B, R, 3] RGB in 0..1; None for a sphere's ws."""
        if self.config.backdrop != "plane":
            return None
        if windows is not None:
            whole = F.interpolate(image, (self.resolution,) * 2, mode="bilinear", align_corners=True)
            image = patches.cut(whole, windows, size[0])
        image = F.interpolate(image, size, mode="bilinear", align_corners=True)
        return (image.flatten(2).transpose(1, 2).repeat(1, views, 1) + 1) / 2

    def _sphere(self, rays: Rays, ws: Tensor, moved: Tensor | None) -> Tensor:
        """Returns what rays see outside of the sphere, [B, R, 3] RGB in 0..1."""
        sphere: Any = self.network.bg_model
        inverse = backdrop.inverse_radii(self.config, moved, rays.cosines)
        return (sphere.rays(poses.to_field(rays.origins), poses.to_field(rays.directions), ws, inverse) + 1) / 2
