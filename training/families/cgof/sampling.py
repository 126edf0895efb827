"""Samples rays where the surface of a morphable model is, in three passes: the mesh-guided sampling of CGOF.

Source: Sun et al. 2022 (CGOF), section 3.3. Distances are counted along the optical axis: a point of a ray is
origin + t direction, and the direction's camera z is 1, so that t is the camera z of the point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaussian import SceneRecord
from torch_utils.random import Draws, hashed_normal, hashed_uniform
from training.fields.field import RadianceField
from training.fields.marching import KEYS, March
from training.fields.rays import Rays, even_draws, inverse_cdf, stratified
from training.fields.volume import Composite, absorption, composite, ray_weights

EVERYWHERE = 1e-5  # added to every weight, and to their sum
THICKNESS = 0.005  # of the layer around the surface that the guided samples fill in the end, in units of far - near


@dataclass(frozen=True)
class Guide(SceneRecord):
    """Holds what R rays meet of the surface of B morphable models."""

    depth: Tensor  # [B, R] camera z in units of the field; 0 beside the surface
    mask: Tensor  # [B, R] whether there is any

    def part(self, rows: slice) -> Guide:
        """Returns what some of the rays meet."""
        return self.map(lambda values: values[:, rows])


@dataclass(frozen=True)
class GuidedDraws(SceneRecord):
    """Holds the random numbers of R rays of B scenes; None where nothing is random."""

    jitter: Tensor | None = None  # [B, R, N] uniform in 0..1, moves the samples of the first pass
    second: Tensor | None = None  # [B, R, N] uniform in 0..1, places those of the second
    third: Tensor | None = None  # [B, R, N] and those of the third
    first_noise: Tensor | None = None  # [B, R, N] on the raw densities that place the second pass
    second_noise: Tensor | None = None  # [B, R, N] and the third
    noise: Tensor | None = None  # [B, R, 2 N] and on those of the image, in the order of the distances

    def part(self, rows: slice) -> GuidedDraws:
        """Returns the numbers of some of the rays."""
        return self.map(lambda values: values[:, rows])


@dataclass(frozen=True)
class Samples(SceneRecord):
    """Holds the samples of one pass."""

    t: Tensor  # [B, R, N] ascending, units of the field
    points: Tensor  # [B, R, N, 3] units of the field
    rgb: Tensor  # [B, R, N, 3] 0..1
    sigma: Tensor  # [B, R, N] raw densities


@dataclass(frozen=True)
class Guided:
    """Holds what rays show, and the samples that it is made of."""

    result: Composite  # of all samples
    t: Tensor  # [B, R, 2 N] ascending, of all samples, as distances between samples were measured
    second: Samples
    third: Samples

    @classmethod
    def joined(cls, parts: Sequence[Guided]) -> Guided:
        """Joins the rays of several parts."""

        def together(records: Sequence[Any]) -> Any:
            names = [field.name for field in dataclasses.fields(records[0])]
            return type(records[0])(*(torch.cat([getattr(r, name) for r in records], dim=1) for name in names))

        t = torch.cat([part.t for part in parts], dim=1)
        return cls(together([p.result for p in parts]), t, *(together([getattr(p, n) for p in parts]) for n in PASSES))


PASSES = ("second", "third")


def axial(rays: Rays) -> Rays:
    """Returns the same rays with directions whose camera z is 1, as published."""
    return Rays(rays.origins, rays.directions / rays.cosines[..., None], torch.ones_like(rays.cosines))


def draw(draws: Draws, stream: str, rays: int, samples: int, noise_std: float = 0.0) -> GuidedDraws:
    """Draws the numbers of all rays of samples: functions of (seed, stream, sample, ray), drawn on their device."""

    def keys(part: str) -> Tensor:
        return draws.integers(f"{stream}/{part}", KEYS)

    uniforms = [hashed_uniform(keys(part), (rays, samples)) for part in ("jitter", "second", "third")]
    if noise_std == 0:
        return GuidedDraws(*uniforms)
    sizes = {"first noise": samples, "second noise": samples, "noise": 2 * samples}
    return GuidedDraws(*uniforms, *(hashed_normal(keys(part), (rays, n)) * noise_std for part, n in sizes.items()))


def take(field: RadianceField, rays: Rays, t: Tensor, points: Tensor | None = None) -> Samples:
    """Asks a field at t [B, R, N] of axial rays, or at points [B, R, N, 3] that lie there or elsewhere."""
    directions = rays.directions[:, :, None].expand(*t.shape, 3)
    if points is None:
        points = rays.origins[:, :, None] + t[..., None] * directions
    rgb, sigma = field.sample(points.flatten(1, 2), directions.flatten(1, 2))
    return Samples(t, points, rgb.unflatten(1, t.shape[1:]), sigma.unflatten(1, t.shape[1:]))


@torch.no_grad()
def placed(field: RadianceField, samples: Samples, march: March, noise: Tensor | None, u: Tensor | None) -> Tensor:
    """Returns ascending distances [B, R, N] where the samples of a pass have weight."""
    density = absorption(samples.sigma, field.activation, field.shift, noise)
    weights, _ = ray_weights(density, samples.t, march.last_delta)
    t, inner = samples.t, weights[..., 1:-1] + EVERYWHERE
    if u is None:
        u = even_draws(t.shape[-1], t).expand_as(t)
    return inverse_cdf((t[..., 1:] + t[..., :-1]) / 2, inner, u, spare=EVERYWHERE).sort(dim=-1).values


def layer(guide: Guide, march: March, samples: int) -> Tensor:
    """Returns distances [B, R, N] that fill a thin layer around the surface evenly; without meaning beside it."""
    thickness = THICKNESS * (march.far - march.near)
    offsets = torch.linspace(-0.5, 0.5, samples, dtype=guide.depth.dtype, device=guide.depth.device)
    return guide.depth[..., None] + thickness * offsets


def guided(
    field: RadianceField,
    rays: Rays,  # axial, [B, R]
    march: March,
    draws: GuidedDraws,
    guide: Guide | None,  # None: nothing is guided, and the first pass counts in the image in place of the third
    share: float = 1.0,  # 0..1, how far the third pass has moved from where weight is to the surface
    legacy_depths: bool = False,
) -> Guided:
    """Renders rays in passes: even, where the first found something, and where the second did, drawn to the surface.

    The first pass has no gradient, and only places the second. Gradients flow through the values of the other two,
    never through their places. legacy_depths: as published, samples at the surface keep the distances that they had
    before they were moved there, in the sum and for all losses.
    """
    first = evenly(field, rays, march, draws.jitter)
    t = placed(field, first, march, draws.first_noise, draws.second)
    second = take(field, rays, t)
    if guide is None:
        return joined(field, second, first, march, draws.noise)
    t = placed(field, second, march, draws.second_noise, draws.third)
    on_face = guide.mask[..., None]
    moved = torch.where(on_face, torch.lerp(t, layer(guide, march, march.samples), share), t)
    if legacy_depths:
        third = take(field, rays, t, rays.origins[:, :, None] + moved[..., None] * rays.directions[:, :, None])
    else:
        third = take(field, rays, moved.sort(dim=-1).values)
    return joined(field, second, third, march, draws.noise)


@torch.no_grad()
def evenly(field: RadianceField, rays: Rays, march: March, jitter: Tensor | None) -> Samples:
    """Asks a field at jittered even distances, between near and far of cameras at the march's distance."""
    near: float | Tensor = march.near
    far: float | Tensor = march.far
    if march.distance is not None:
        away = rays.origins.norm(dim=-1, keepdim=True) - march.distance  # [B, R, 1]
        near, far = near + away, far + away
    t = stratified(near, far, march.samples, jitter, march.jitter, like=rays.cosines)
    return take(field, rays, t.expand(*rays.cosines.shape, -1))


def joined(field: RadianceField, second: Samples, third: Samples, march: March, noise: Tensor | None) -> Guided:
    """Adds up the samples of two passes in the order of their distances."""
    t, order = torch.cat([second.t, third.t], dim=-1).sort(dim=-1)
    sigma = torch.cat([second.sigma, third.sigma], dim=-1).gather(-1, order)
    rgb = torch.cat([second.rgb, third.rgb], dim=-2)
    rgb = rgb.gather(-2, order[..., None].expand_as(rgb))
    density = absorption(sigma, field.activation, field.shift, noise)
    return Guided(composite(rgb, density, t, march.last_delta, march.last_back), t, second, third)
