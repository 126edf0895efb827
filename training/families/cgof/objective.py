"""Plays pi-GAN's game, and asks the field to have the surface, the expression and the identity that a latent names.

Source: Sun et al. 2022 (CGOF), section 3.4; weights of the released curriculum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras
from torch_utils.random import hashed_uniform
from training.control.regressor import Regressor, regressor_for
from training.families.base import Discriminator, Loss, StepContext
from training.families.cgof import losses, warp
from training.families.cgof.generator import Generator, GuidedField, Traced
from training.families.cgof.sampling import draw
from training.families.pigan.objective import PiganObjective, PiganObjectiveConfig
from training.fields.marching import KEYS
from training.fields.rays import camera_rays
from training.losses import late_share, off_colour
from training.morphable.rasterize import interpolate
from training.samples import MicroBatch, RunConfig

OTHERWISE = "name one with --regressor=FILE, or do without it: --recon=0 --lm3d=0"
LANDMARK_UNITS = 255.0  # across the image, of landmarks in it


@dataclass(frozen=True)
class CgofObjectiveConfig(PiganObjectiveConfig):
    """Sets losses, optimisers and the law of cameras. Defaults are the released values."""

    regressor: str = ""  # file of the network that reads coefficients; "": the one that fit_regressor.py keeps
    recon_weight: float = 4.0  # of the difference of coefficients asked and found
    distance_weight: float = 10_000.0  # of light from elsewhere than the surface; grows with the guidance
    background_weight: float = 10_000.0  # of light before the face, beside it
    normal_weight: float = 1_000.0  # of differences between close normals
    depth_weight: float = 500.0  # of steps in the depth map
    landmark_weight: float = 10.0  # of landmarks that are elsewhere than the surface's
    warp_weight: float = 10.0  # of what changes besides the expression, along the surface
    recon_from_kimg: float = 0.0  # images, in thousands, after which all these weights grow, see `losses.late_share`
    photo_weight: float = 0.0  # of the difference of colours from those of the surface; of ours, acts from the start
    warp_every: int = 2  # samples, the first of which is seen with another expression too

    @property
    def weights(self) -> dict[str, float]:
        """Returns the weights of CGOF's own terms, by the options that set them."""
        return {
            "--recon": self.recon_weight,
            "--dist-depr": self.distance_weight,
            "--bg-depr": self.background_weight,
            "--norm-reg": self.normal_weight,
            "--geo-reg": self.depth_weight,
            "--lm3d": self.landmark_weight,
            "--exp-warping": self.warp_weight,
            "--photo": self.photo_weight,
        }

    @property
    def reads(self) -> bool:
        """Whether a regressor is needed."""
        return self.recon_weight > 0 or self.landmark_weight > 0

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        super().check(config)
        for flag, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{flag}={weight}: must be finite and 0 or greater")
        if not 0 <= self.recon_from_kimg < math.inf:
            raise ValueError(f"--recon-from-kimg={self.recon_from_kimg}: must be finite and 0 or greater")
        if self.warp_every < 1:
            raise ValueError(f"objective.warp_every={self.warp_every}: must be 1 or greater")
        starts = [0, *(stage.from_nimg for stage in config.stages)]
        for size in {config.stage_at(nimg).batch_gpu for nimg in starts}:
            if self.warp_weight and size % self.warp_every:
                raise ValueError(f"--batch-gpu={size} is not a multiple of objective.warp_every={self.warp_every}")
        if not config.generator.guided and (self.distance_weight or self.background_weight):
            raise ValueError("generator.guided=False: --dist-depr and --bg-depr need the surface; set both to 0")
        if self.reads:
            regressor_for(self.regressor, config.generator.model(), OTHERWISE)


class CgofObjective(PiganObjective):
    """Runs the phases D and G, in this order, over the networks of a run."""

    settings: CgofObjectiveConfig
    G: Generator

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator):
        super().__init__(config, G, D)
        self.regressor: Regressor | None = None
        if self.settings.reads:
            self.regressor = regressor_for(self.settings.regressor, G.surface.morphable, OTHERWISE).to(G.device)

    def generator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Learns from D, as pi-GAN does, and from the surface and the coefficients that were asked for."""
        scene = self.G.synthesis(self.G.mapping(micro.g_z), at)
        size = (micro.resolution, micro.resolution)
        traced = self.G.trace(scene, micro.g_cameras, size, at)
        images = self.G.rendering(traced, 1, size, micro.g_background).image[:, 0]
        total, report = self.judged(images, micro, at)
        share = late_share(at.nimg, 1000 * self.settings.recon_from_kimg)
        with torch.set_grad_enabled(share > 0 and torch.is_grad_enabled()):
            terms = self.terms(traced, images, micro, at)
        for name, (weight, values) in terms.items():
            total, report[f"Loss/G/{name}"] = total + share * weight * values, values
        if self.settings.photo_weight:
            values = self.off_colour(images, micro)
            total, report["Loss/G/photo"] = total + self.settings.photo_weight * values, values
        if micro.first:
            report |= scene.statistics(micro.g_cameras, micro.resolution)
        yield Loss(total, report)
        if share * self.settings.warp_weight:
            values = self.warp_values(micro, at)
            yield Loss(share * self.settings.warp_weight * values, {"Loss/G/warp": values[:: self.settings.warp_every]})

    def terms(
        self, traced: Traced, images: Tensor, micro: MicroBatch, at: StepContext
    ) -> dict[str, tuple[float, Tensor]]:
        """Returns CGOF's own terms of a rendering by name: a weight, and values [b]."""
        settings, size = self.settings, micro.resolution
        found: dict[str, tuple[float, Tensor]] = {}
        if settings.normal_weight:
            found["normal"] = settings.normal_weight, self._normals(traced, at)
        if traced.guide is not None:
            found |= self._surface_terms(traced, at)
        if settings.depth_weight:
            mask = torch.zeros_like(traced.depth, dtype=torch.bool) if traced.guide is None else traced.guide.mask
            depth, mask = (values.unflatten(1, (size, size)) for values in (traced.depth, mask))
            found["depth"] = settings.depth_weight, losses.depth_smoothness(depth, mask)
        if self.regressor is not None:
            found |= self._read_terms(self.regressor, traced, images, micro)
        return {name: (weight, values) for name, (weight, values) in found.items() if weight > 0}

    def off_colour(self, images: Tensor, micro: MicroBatch) -> Tensor:
        """Returns how much the colours of images [b, 3, R, R] differ from those of the surface asked for, [b]."""
        with torch.no_grad():
            found = self.G.surface.painted(micro.g_z, micro.g_cameras, (micro.resolution, micro.resolution))
        return off_colour(images, found.values, found.share)

    def _normals(self, traced: Traced, at: StepContext) -> Tensor:
        assert at.draws is not None
        points = traced.rays.origins + traced.depth[..., None] * traced.rays.directions
        q = hashed_uniform(at.draws.integers("normals", KEYS), tuple(points.shape[1:]))
        return losses.normal_smoothness(traced.field, points, q.to(points))

    def _surface_terms(self, traced: Traced, at: StepContext) -> dict[str, tuple[float, Tensor]]:
        settings, guide, march, rays = self.settings, traced.guide, traced.march, traced.rays
        assert guide is not None
        weights, t, share = traced.guided.result.weights, traced.guided.t, self.G.share(at.nimg)
        z = rays.origins[..., 2:] + t * rays.directions[..., 2:]
        near = march.near + rays.origins[:, :1].norm(dim=-1, keepdim=True) - (march.distance or 1.0)  # [b, 1, 1]
        away = losses.distance(weights, t, guide.depth, guide.mask, march.far - march.near, share)
        beside = losses.background(weights, t, z, guide.depth, guide.mask, near)
        return {
            "distance": (settings.distance_weight * share, away),
            "background": (settings.background_weight, beside),
        }

    def _read_terms(
        self, regressor: Regressor, traced: Traced, images: Tensor, micro: MicroBatch
    ) -> dict[str, tuple[float, Tensor]]:
        """Returns the terms that ask what the regressor reads off the images."""
        blocks, z = self.G.blocks, micro.g_z
        read = regressor.blocks(images)
        recon = sum(((values - blocks.take(z, name)).abs().mean(1) for name, values in read.items()), z.new_zeros(()))
        terms: dict[str, tuple[float, Tensor]] = {"recon": (self.settings.recon_weight, recon)}
        if self.settings.landmark_weight:
            shape = torch.cat([read[name] for name in ("identity", "expression")], dim=1)
            asked = self.G.surface.landmarks(traced.field.shape)
            values = self._landmarks(traced, micro.g_cameras[:, 0], self.G.surface.landmarks(shape), asked)
            terms["landmarks"] = self.settings.landmark_weight, values
        return terms

    def _landmarks(self, traced: Traced, cameras: Cameras, found: Tensor, asked: Tensor) -> Tensor:
        """Compares landmarks [b, L, 3] that were read with those asked for, in the image and at the image's depth."""
        unit, pixels = self.G.config.unit, math.isqrt(traced.depth.shape[1])
        cameras = cameras.to(dtype=asked.dtype)
        flat = [cameras.project(points)[0] * LANDMARK_UNITS for points in (found, asked)]
        at, depth = losses.lift_landmarks(flat[0], traced.depth.unflatten(1, (pixels, pixels)), LANDMARK_UNITS)
        focal = cameras.intrinsics[:, 0, 0, None, None] * pixels
        local = losses.unproject(at, depth, focal, pixels)  # right, down, towards the camera from one unit before it
        right, down, ahead = (cameras.cam2world[:, None, :3, i] for i in range(3))
        middle = unit * cameras.positions[:, None] + ahead
        lifted = middle + local[..., :1] * right + local[..., 1:2] * down - local[..., 2:] * ahead
        inner = slice(self.G.surface.morphable.outline, None)
        return losses.landmarks(flat[0], flat[1], lifted, unit * asked, inner, LANDMARK_UNITS)

    def warp_values(self, micro: MicroBatch, at: StepContext) -> Tensor:
        """Returns what the volume warp finds of every `warp_every`th sample, [b]: so many times, and 0 of the others.

        The published code takes one sample of a micro-batch, and draws its pair from a generator that it seeds anew.
        """
        every, blocks = self.settings.warp_every, self.G.blocks
        size = (micro.resolution, micro.resolution)
        assert at.draws is not None
        part = blocks["expression"]
        other = at.draws.normal("warp/expression", (part.stop - part.start,)).to(micro.g_z)[::every]
        z, cameras = micro.g_z[::every], micro.g_cameras[::every]
        fields = [self.G.synthesis(self.G.mapping(latents)) for latents in (z, blocks.put(z, "expression", other))]
        values = self._warped(fields, cameras, size, at)
        return torch.stack([every * values, *[torch.zeros_like(values)] * (every - 1)], dim=1).flatten()

    def _warped(self, fields: list[GuidedField], cameras: Cameras, size: tuple[int, int], at: StepContext) -> Tensor:
        every, G = self.settings.warp_every, self.G
        before, after = fields
        numbers: Any = at.draws
        rays = camera_rays(cameras, size, G.config.grid).cosines.shape[1]
        chosen = draw(numbers, "warp", rays, G.config.samples).map(lambda t: t[::every])
        traced = G.trace_with(after, cameras, size, chosen, G.share(at.nimg))
        with torch.no_grad():
            vertices = [G.surface.vertices(field.shape) for field in fields]
            found = G.surface.drawn(vertices[1], cameras[:, 0], size)
            flow = interpolate(
                found, G.surface.model(vertices[0]).triangles, (vertices[0] - vertices[1]) * G.config.unit
            )
            masks = [G.surface.drawn(vertices[0], cameras[:, 0], size).mask, found.mask]
        moved = warp.carried_image(before, traced.rays, traced.march, traced.guided, flow.flatten(2).transpose(1, 2))
        return warp.volume_warp(moved, traced.guided, warp.compared(*masks))
