"""Marches along the rays of cameras through a radiance field in two passes, in bounded memory: `render_field`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gaussian import Cameras, Rendering
from torch_utils.precision import exact_float32
from torch_utils.random import Draws, hashed_normal, hashed_uniform
from training.fields.field import RadianceField
from training.fields.rays import Rays, camera_rays, even_draws, importance, stratified
from training.fields.volume import ENDLESS, Composite, absorption, composite, ray_weights

KEYS = 2**31  # of the random numbers of a sample's rays


@dataclass(frozen=True)
class March:
    """Says how rays are sampled and added up."""

    near: float  # units of the field along the ray at which the samples begin,
    far: float  # and end
    samples: int  # of the first pass along a ray
    fine_samples: int  # of the second pass, placed by the first; 0: there is none
    jitter: str = "centred"  # how the first are moved, see `rays.stratified`
    grid: str = "centres"  # where in a pixel the ray goes through, see `rays.camera_rays`
    last_delta: float = ENDLESS  # units of the field that the last sample stands for
    last_back: bool = False  # the last sample takes all light that is left
    distance: float | None = None  # of cameras from the origin, units of the field, for which near and far are meant;
    # for others they move along. None: they hold for all
    points: int = 2**17  # of all scenes together that are asked for at once where no gradient is kept
    recompute: bool = False  # the same where one is kept: what a part needs to go back is then computed twice

    def __post_init__(self) -> None:
        if not 0 <= self.near < self.far:
            raise ValueError(f"near={self.near} and far={self.far}: near must be 0 or more, and less than far")
        least = 3 if self.fine_samples else 2
        if self.samples < least or self.fine_samples < 0:
            raise ValueError(
                f"samples={self.samples} and fine_samples={self.fine_samples}: there must be {least} and 0, or more"
            )
        if self.points < 1:
            raise ValueError(f"points={self.points} must be 1 or more")


@dataclass(frozen=True)
class RayDraws:
    """Holds the random numbers of R rays of B scenes; None where nothing is random."""

    jitter: Tensor | None = None  # [B, R, S] uniform in 0..1, moves the samples of the first pass
    fine: Tensor | None = None  # [B, R, F] uniform in 0..1, places those of the second; None: evenly over the weight
    first_noise: Tensor | None = None  # [B, R, S] added to the raw densities, for the choice of the second samples
    noise: Tensor | None = None  # [B, R, S + F] the same for the image, in the order of the distances

    def part(self, rows: slice) -> RayDraws:
        """Returns the numbers of some of the rays."""
        values = (getattr(self, field.name) for field in fields(self))
        return RayDraws(*(None if value is None else value[:, rows] for value in values))


def draw(draws: Draws, stream: str, rays: int, march: March, noise_std: float = 0.0) -> RayDraws:
    """Draws the numbers of all rays of samples: functions of (seed, stream, sample, ray), drawn on their device.

    noise_std: of the normal noise on the raw densities; 0 draws none.
    """
    first, both = (rays, march.samples), (rays, march.samples + march.fine_samples)

    def keys(part: str) -> Tensor:
        return draws.integers(f"{stream}/{part}", KEYS)

    fine = hashed_uniform(keys("fine"), (rays, march.fine_samples)) if march.fine_samples else None
    jitter = hashed_uniform(keys("jitter"), first)
    if noise_std == 0:
        return RayDraws(jitter, fine)
    early = hashed_normal(keys("first noise"), first) * noise_std if march.fine_samples else None
    return RayDraws(jitter, fine, early, hashed_normal(keys("noise"), both) * noise_std)


def render_field(
    field: RadianceField,  # B scenes
    cameras: Cameras,  # [B, V]
    resolution: int | tuple[int, int],  # pixels: one number for a square, or (height, width)
    march: March,
    background: Tensor | None = None,  # features that broadcast to [B, V, C], behind what is not opaque; None is white
    draws: RayDraws | None = None,  # of R = V H W rays; None: nothing is random
) -> Rendering:
    """Renders B fields from V cameras each in float32 exactly (or in the cameras' type). C is the field's.

    `field.unit` says how many of its units, which `march` counts in, make a world unit of the cameras and the depth.
    Differentiable in the field and the background, not in cameras and distances. Without a gradient to keep, or with
    `march.recompute`, memory beyond the images does not grow with their size. Raises ValueError for a wrong shape.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if cameras.shape[:1] != (field.batch_size,):
        raise ValueError(f"cameras must have leading shape [{field.batch_size}, V], got {list(cameras.shape)}")
    with torch.autocast(field.device.type, enabled=False), exact_float32():
        rays = camera_rays(cameras, (height, width), march.grid)
        rays = dataclasses.replace(rays, origins=rays.origins * field.unit)
        features, distance, alpha = march_rays(field, rays, march, draws or RayDraws())
    views = cameras.shape[1]
    shape = (len(features), views, height, width)
    features = features.view(*shape, -1)
    behind = features.new_ones(()) if background is None else background.to(features)
    behind = behind.expand(len(features), views, features.shape[-1])[:, :, None, None]
    rgb = features + (1 - alpha.view(*shape, 1)) * behind
    depth = (distance * rays.cosines / field.unit).view(len(features), views, 1, height, width)
    return Rendering(rgb.permute(0, 1, 4, 2, 3).contiguous(), alpha.view_as(depth), depth)


def march_rays(field: RadianceField, rays: Rays, march: March, draws: RayDraws) -> tuple[Tensor, Tensor, Tensor]:
    """Returns premultiplied features [B, R, C], distances times alpha, and alpha, [B, R], of all rays, in parts."""
    batch, count = rays.cosines.shape
    keeps = torch.is_grad_enabled()
    size = count
    if march.recompute or not keeps:
        size = max(1, march.points // (batch * (march.samples + march.fine_samples)))
    results = []
    for start in range(0, count, size):
        part = slice(start, start + size)
        arguments = field, rays.part(part), march, draws.part(part)
        if keeps and size < count:
            results.append(checkpoint(_march, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            results.append(_march(*arguments))
    features, distance, alpha = (torch.cat(tensors, dim=1) for tensors in zip(*results, strict=True))
    return features, distance, alpha


def _march(field: RadianceField, rays: Rays, march: March, draws: RayDraws) -> tuple[Tensor, Tensor, Tensor]:
    result = two_passes(field, rays, march, draws)
    return result.features, result.distance, result.alpha


def two_passes(field: RadianceField, rays: Rays, march: March, draws: RayDraws) -> Composite:
    """Adds up what rays meet at samples of a first pass and, where there are any, of a second one placed by it.

    All samples count in the sum. The gradient flows through the values of both passes, never through their places.
    """
    near: float | Tensor = march.near
    far: float | Tensor = march.far
    if march.distance is not None:
        away = rays.origins.norm(dim=-1, keepdim=True) - march.distance  # [B, R, 1]
        near, far = near + away, far + away
    t = stratified(near, far, march.samples, draws.jitter, march.jitter, like=rays.cosines)
    t = t.expand(*rays.cosines.shape, -1)  # [B, R, S]
    features, sigma = _sample(field, rays, t)
    order = None
    if march.fine_samples:
        with torch.no_grad():
            first = absorption(sigma, field.activation, field.shift, draws.first_noise)
            weights, _ = ray_weights(first, t, march.last_delta)
            u = draws.fine
            if u is None:
                u = even_draws(march.fine_samples, t).expand(*t.shape[:2], -1)
            second = importance(t, weights, u)
        fine_features, fine_sigma = _sample(field, rays, second)
        t, order = torch.cat([second, t], dim=-1).sort(dim=-1)
        sigma = torch.cat([fine_sigma, sigma], dim=-1).gather(-1, order)
        features = torch.cat([fine_features, features], dim=-2)
    density = absorption(sigma, field.activation, field.shift, draws.noise)
    return composite(features, density, t, march.last_delta, march.last_back, order)


def _sample(field: RadianceField, rays: Rays, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns features [B, R, S, C] and raw densities [B, R, S] at t [B, R, S]."""
    directions = rays.directions[:, :, None].expand(*t.shape, 3)
    points = rays.origins[:, :, None] + t[..., None] * directions
    features, sigma = field.sample(points.flatten(1, 2), directions.flatten(1, 2))
    return features.unflatten(1, t.shape[1:]), sigma.unflatten(1, t.shape[1:])
