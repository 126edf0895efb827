"""Turns a latent of named blocks into a radiance field whose surface is a morphable model's: the generator of CGOF.

Source: Sun et al. 2022 (CGOF), on pi-GAN. Parameters carry the names of the published checkpoints. A scene keeps the
blocks of its shape, so that whoever renders it can be guided by the mesh; ws carry them behind the field's numbers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussian import Cameras, Rendering
from torch_utils.precision import exact_float32
from training.control.blocks import Blocks
from training.control.surface import Surface
from training.families.base import AT_REST, StepContext
from training.families.cgof.config import GeneratorConfig
from training.families.cgof.sampling import Guide, Guided, GuidedDraws, axial, draw, guided
from training.families.pigan import generator as pigan
from training.families.pigan.siren import FilmField
from training.fields.marching import March
from training.fields.rays import Rays, camera_rays
from training.morphable.rasterize import close_holes

__all__ = ["Generator", "GeneratorConfig", "GuidedField", "Traced"]


@dataclass(frozen=True)
class GuidedField(FilmField):
    """Holds B scenes: fields, and the latents of the surface that guides their samples."""

    shape: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 0))  # [B, I + E] identity, expression


@dataclass(frozen=True)
class Traced:
    """Holds what one view of B scenes shows, and all that the losses look at."""

    field: GuidedField
    rays: Rays  # axial, [B, R]
    guide: Guide | None
    guided: Guided
    march: March

    @property
    def depth(self) -> Tensor:
        """Camera z [B, R] in units of the field; light that nothing stops counts as at the far end."""
        result = self.guided.result
        return result.distance + (1 - result.alpha) * self.march.far


class Generator(pigan.Generator):
    """Maps latents of named blocks to fields. No call changes the module."""

    def __init__(self, config: GeneratorConfig):
        super().__init__(config)
        self.config: GeneratorConfig = config
        self.blocks: Blocks = config.blocks()
        self.surface = Surface(config.model(), self.blocks)
        self.surface.bind(self)
        self.film_dim = 2 * config.modulations
        self.w_dim = self.film_dim + self.surface.size

    def mean_ws(self) -> Tensor:
        """Returns the mean ws [1, w_dim], the truncation centre; the mean of the shape's blocks is 0."""
        mean = super().mean_ws()
        return torch.nn.functional.pad(mean, (0, self.w_dim - self.film_dim))

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Maps latents z [B, z_dim] to ws [B, 1, w_dim], pulled towards their mean by psi (0: the mean itself).

        ws: raw frequencies and phases, then the blocks of the shape. No camera is listened to.
        """
        film = super().mapping(z)
        ws = torch.cat([film, self.surface.shape(z).to(film)[:, None]], dim=2)
        return ws if psi == 1 else self.mean_ws().lerp(ws, psi)

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> GuidedField:
        """Makes fields from ws [B, 1, w_dim]. Raises ValueError for another shape."""
        if ws.ndim != 3 or ws.shape[1:] != (1, self.w_dim):
            raise ValueError(f"ws must have shape [B, 1, {self.w_dim}] as mapping() returns it, got {list(ws.shape)}")
        film = self.field_of(ws[..., : self.film_dim])
        return GuidedField(**vars(film), shape=ws[:, 0, self.film_dim :])

    def share(self, nimg: int | None) -> float:
        """Returns how far guided samples have come to the surface after nimg images of a run; 1 at rest."""
        fade = self.config.guide_kimg * 1000
        return 1.0 if nimg is None or nimg >= fade else nimg / fade

    @torch.no_grad()
    def guide(self, scene: GuidedField, cameras: Cameras, size: tuple[int, int]) -> Guide | None:
        """Returns what cameras [B, V] see of the scenes' surfaces at size (height, width); None without guidance."""
        if not self.config.guided:
            return None
        batch, views = cameras.shape
        vertices = self.surface.vertices(scene.shape).repeat_interleave(views, dim=0)
        found = self.surface.drawn(vertices, cameras.reshape(batch * views), size)
        depth, mask = close_holes(found.depth * self.config.unit, found.mask)
        return Guide(depth.view(batch, -1), mask.view(batch, -1))

    def trace(self, scene: GuidedField, cameras: Cameras, size: tuple[int, int], at: StepContext) -> Traced:
        """Renders scenes from cameras [B, V] with all that the losses look at."""
        numbers = GuidedDraws()
        if at.draws is not None:
            rays = cameras.shape[1] * size[0] * size[1]
            numbers = draw(at.draws, "rays", rays, self.config.samples, self.noise_std(at.nimg))
        return self.trace_with(scene, cameras, size, numbers, self.share(at.nimg))

    def trace_with(
        self, scene: GuidedField, cameras: Cameras, size: tuple[int, int], numbers: GuidedDraws, share: float
    ) -> Traced:
        """Renders scenes from cameras [B, V] by given random numbers, `share` of the way to their surfaces."""
        with torch.autocast(scene.device.type, enabled=False), exact_float32():
            cameras = cameras.to(dtype=scene.frequencies.dtype)
            rays = axial(camera_rays(cameras, size, self.config.grid))
            rays = dataclasses.replace(rays, origins=rays.origins * self.config.unit)
            guide, march = self.guide(scene, cameras, size), self.config.march()
            found = self._marched(scene, rays, march, numbers, guide, share)
        return Traced(scene, rays, guide, found, march)

    def _marched(
        self,
        scene: GuidedField,
        rays: Rays,
        march: March,
        numbers: GuidedDraws,
        guide: Guide | None,
        share: float,
    ) -> Guided:
        """Renders all rays; without a gradient to keep in parts, so that memory does not grow with the images."""
        batch, count = rays.cosines.shape
        step = count if torch.is_grad_enabled() else max(1, march.points // (batch * 2 * march.samples))
        parts = []
        for start in range(0, count, step):
            rows = slice(start, start + step)
            asked, aim = numbers.part(rows), None if guide is None else guide.part(rows)
            parts.append(guided(scene, rays.part(rows), march, asked, aim, share, self.config.legacy_depths))
        return parts[0] if len(parts) == 1 else Guided.joined(parts)

    def rendering(self, traced: Traced, views: int, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """Returns the images of traced scenes over a background that broadcasts to [B, V, 3]; None is white."""
        result = traced.guided.result
        shape = (len(result.alpha), views, *size)
        behind = result.features.new_ones(()) if background is None else background.to(result.features)
        behind = behind.expand(*shape[:2], 3)[:, :, None, None]
        alpha = result.alpha.view(*shape)
        rgb = result.features.view(*shape, 3) + (1 - alpha[..., None]) * behind
        depth = (result.distance / self.config.unit).view(*shape)
        return Rendering(rgb.permute(0, 1, 4, 2, 3).contiguous(), alpha[:, :, None], depth[:, :, None])

    def render(
        self,
        scene: GuidedField,  # type: ignore[override]
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,
    ) -> Rendering:
        """Renders fields, guided by their surfaces. At rest nothing is random, and guidance is whole."""
        size = resolution or self.resolution
        size = (size, size) if isinstance(size, int) else size
        return self.rendering(self.trace(scene, cameras, size, at), cameras.shape[1], size, background)
