"""Trains a regressor on renders whose coefficients are known, and measures what it explains of held-out ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, SceneRecord
from torch_utils.random import normal, permutation, uniform
from training.control.regressor import Regressor, RegressorConfig
from training.data.synthetic import expressions
from training.data.synthetic.synthesize import sample_cameras
from training.morphable.head import mirrored_signs, procedural_head
from training.morphable.model import MODEL_BLOCKS, SHAPE_BLOCKS, MorphableModel, lit, vertex_normals
from training.morphable.rasterize import interpolate, rasterize

HELD_OUT = 2**20  # number of the first held-out picture
CHECKED = 512  # held-out pictures
AT_ONCE = 16
RATE = 1e-3
WARM_UP = 0.05  # of the steps, in which the rate grows
ASIDE = 3.0  # weight of landmarks and angles

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Pictures(SceneRecord):
    """Holds N renders, and what is known of them."""

    images: Tensor  # uint8 [N, 3, R, R]
    masks: Tensor  # uint8 [N, 1, R, R]
    z: Tensor  # [N, outputs] whitened coefficients
    aside: Tensor  # [N, 2 L + 2] places of landmarks, the middle of the image being 0 and its edges -1 and 1; angles


def draw_pictures(config: RegressorConfig, model: MorphableModel, indices: range, progress: Progress) -> Pictures:
    """Renders the pictures `indices` of the seed, each a function of its number, and returns their coefficients."""
    parts: list[tuple[Tensor, ...]] = []
    for start in range(indices.start, indices.stop, AT_ONCE):
        some = range(start, min(start + AT_ONCE, indices.stop))
        cameras = sample_cameras(config.seed, some)
        if model.key == procedural_head().key:
            looks = expressions.sample_looks(config.seed, some)
            images, masks, _ = expressions.render(looks, cameras, config.resolution, 2)
            z = torch.cat([model.whitened(block, getattr(looks, block)) for block in MODEL_BLOCKS], dim=1)
        else:
            images, masks, z = faces(config, model, some, cameras)
        parts.append(((255 * images).round().byte(), (255 * masks).round().byte(), z, _aside(model, z, cameras)))
        progress("pictures", some.stop - indices.start, len(indices))
    return Pictures(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _aside(model: MorphableModel, z: Tensor, cameras: Cameras) -> Tensor:
    """Returns what else is known of renders of z [N, outputs]: see `Pictures.aside`."""
    parts = dict(zip(model.sizes, z.split(list(model.sizes.values()), dim=1), strict=True))
    shape = [model.coefficients(block, parts[block]) for block in SHAPE_BLOCKS]
    places, _ = cameras.project(model.vertices(*shape)[:, model.landmarks])
    x, y, depth = cameras.positions.unbind(-1)
    angles = torch.stack([torch.atan2(x, depth), torch.atan2(y, torch.hypot(x, depth))], dim=-1)
    return torch.cat([(2 * places - 1).flatten(1), angles], dim=1)


def faces(
    config: RegressorConfig, model: MorphableModel, indices: range, cameras: Cameras
) -> tuple[Tensor, Tensor, Tensor]:
    """Renders bare surfaces of any model: images [N, 3, R, R] and masks in 0..1, and z [N, outputs]."""
    z = normal(config.seed, "regressor/z", indices, (sum(model.sizes.values()),))
    parts = dict(zip(model.sizes, z.split(list(model.sizes.values()), dim=1), strict=True))
    known = {block: model.coefficients(block, part) for block, part in parts.items()}
    vertices = model.vertices(known["identity"], known["expression"])
    colours = lit(model.colours(known["texture"]), vertex_normals(vertices, model.triangles), known["illumination"])
    found = rasterize(vertices, model.triangles, cameras, 2 * config.resolution)
    mask = F.avg_pool2d(found.mask[:, None].float(), 2)
    images = F.avg_pool2d(interpolate(found, model.triangles, colours), 2) / mask.clamp(min=1e-6)
    return torch.where(mask > 0, images.clamp(0, 1), 1.0), mask, z


def shown(pictures: Pictures, config: RegressorConfig, step: int) -> Tensor:
    """Returns images [N, 3, R, R] in 0..1 over backgrounds of one colour; every other one as coarse as 32 px."""
    count = len(pictures.z)
    colour = uniform(config.seed, "regressor/background", range(step * count, (step + 1) * count), (3,))
    mask = pictures.masks / 255
    images = mask * (pictures.images / 255) + (1 - mask) * colour[:, :, None, None]
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    coarse = (torch.arange(count) % 2 == 1)[:, None, None, None]
    return torch.where(coarse, half, images)


def tinted(images: Tensor, config: RegressorConfig, step: int) -> tuple[Tensor, Tensor]:
    """Gives half of the images other colours and contrasts, from which shapes have to be told all the same.

    Returns the images, and which of them [N] have the colours that their coefficients stand for.
    """
    count = len(images)
    u = uniform(config.seed, "regressor/tint", range(step * count, (step + 1) * count), (7,))
    plain = u[:, 6] < 0.5
    gain, power = 0.6 + 0.8 * u[:, :3, None, None], 2 ** (2 * u[:, 3, None, None, None] - 1)
    grey = images.mean(1, keepdim=True)
    faded = torch.lerp(images, grey, u[:, 4, None, None, None])
    other = (gain * faded.clamp(min=1e-4) ** power).clamp(0, 1)
    return torch.where(plain[:, None, None, None], images, other), plain


def turned(pictures: Pictures, signs: Tensor, flip: Tensor) -> Pictures:
    """Mirrors the renders where flip [N] holds. signs: [outputs], what becomes of their coefficients."""

    def mirrored(images: Tensor) -> Tensor:
        return torch.where(flip[:, None, None, None], images.flip(3), images)

    z = torch.where(flip[:, None], pictures.z * signs, pictures.z)
    return Pictures(mirrored(pictures.images), mirrored(pictures.masks), z, pictures.aside)


def loss_of(regressor: Regressor, pictures: Pictures, step: int, signs: Tensor | None) -> Tensor:
    """Returns the mean squared error of coefficients, with that of landmarks and angles where these are known."""
    config, count = regressor.config, len(pictures.z)
    flip = torch.zeros(count, dtype=torch.bool)
    if signs is not None:
        flip = uniform(config.seed, "regressor/mirror", range(step * count, (step + 1) * count)) < 0.5
        pictures = turned(pictures, signs, flip)
    images, plain = tinted(shown(pictures, config, step), config, step)
    features = regressor.seen(2 * images - 1)
    shapes = sum(regressor.sizes[block] for block in SHAPE_BLOCKS)
    error = (regressor.head(features) - pictures.z).square()
    told = torch.ones(count, error.shape[1])
    told[:, shapes:] = plain[:, None].float()
    aside = (regressor.aside(features) - pictures.aside).square().mean(1)
    known = (~flip).float()  # landmarks of a mirrored face are others
    return (error * told).sum() / told.sum() + ASIDE * (aside * known).sum() / known.sum().clamp(min=1)


def fit(config: RegressorConfig, model: MorphableModel, progress: Progress) -> Regressor:
    """Trains a regressor: Adam, a rate that warms up and falls to 0, mean squared error of whitened coefficients."""
    torch.manual_seed(config.seed)
    regressor = Regressor(config)
    signs = mirrored_signs() if model.key == procedural_head().key else None
    pictures = draw_pictures(config, model, range(config.pictures), progress)
    optimizer = torch.optim.AdamW(regressor.parameters(), lr=RATE, weight_decay=0.02)
    per_epoch = config.pictures // config.batch
    order = torch.arange(0)
    for step in range(config.steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.from_numpy(permutation(config.seed, "regressor/order", epoch, config.pictures))
        rows = order[place * config.batch : (place + 1) * config.batch]
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / (WARM_UP * config.steps))
            group["lr"] = RATE * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        loss = loss_of(regressor, pictures.map(itemgetter(rows)), step, signs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress("steps", step + 1, config.steps)
    return regressor.eval().requires_grad_(False)


@torch.no_grad()
def explained(regressor: Regressor, model: MorphableModel, count: int = CHECKED) -> dict[str, list[float]]:
    """Returns the share of the variance of every coefficient that is explained on held-out renders, by block.

    Half of the pictures are as coarse as 32 px are, as in training.
    """
    config = regressor.config
    pictures = draw_pictures(config, model, range(HELD_OUT, HELD_OUT + count), lambda *_: None)
    found = []
    for start in range(0, count, config.batch):
        some = pictures.map(itemgetter(slice(start, start + config.batch)))
        found.append(regressor(2 * shown(some, config, HELD_OUT + start) - 1))
    z = pictures.z
    share = 1 - (torch.cat(found) - z).square().mean(0) / z.var(0, correction=0)
    parts = share.split(list(regressor.sizes.values()))
    return {block: part.tolist() for block, part in zip(regressor.sizes, parts, strict=True)}
