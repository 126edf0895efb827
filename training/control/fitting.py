"""Trains a regressor on renders whose coefficients are known, and measures what it explains of held-out ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras
from torch_utils.random import normal, permutation, uniform
from training.control.regressor import Regressor, RegressorConfig
from training.data.synthetic import expressions
from training.data.synthetic.synthesize import sample_cameras
from training.morphable.head import procedural_head
from training.morphable.model import MODEL_BLOCKS, MorphableModel, lit, vertex_normals
from training.morphable.rasterize import interpolate, rasterize

HELD_OUT = 2**20  # number of the first held-out picture
CHECKED = 512  # held-out pictures
AT_ONCE = 16
RATE = 1e-3

Pictures = tuple[Tensor, Tensor, Tensor]  # images uint8 [N, 3, R, R], masks uint8 [N, 1, R, R], z [N, outputs]
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


def draw_pictures(config: RegressorConfig, model: MorphableModel, indices: range, progress: Progress) -> Pictures:
    """Renders the pictures `indices` of the seed, each a function of its number, and returns their coefficients."""
    parts: list[Pictures] = []
    for start in range(indices.start, indices.stop, AT_ONCE):
        some = range(start, min(start + AT_ONCE, indices.stop))
        cameras = sample_cameras(config.seed, some)
        if model.key == procedural_head().key:
            looks = expressions.sample_looks(config.seed, some)
            images, masks, _ = expressions.render(looks, cameras, config.resolution, 2)
            z = torch.cat([model.whitened(block, getattr(looks, block)) for block in MODEL_BLOCKS], dim=1)
        else:
            images, masks, z = faces(config, model, some, cameras)
        parts.append(((255 * images).round().byte(), (255 * masks).round().byte(), z))
        progress("pictures", some.stop - indices.start, len(indices))
    images, masks, z = (torch.cat(column) for column in zip(*parts, strict=True))
    return images, masks, z


def faces(config: RegressorConfig, model: MorphableModel, indices: range, cameras: Cameras) -> Pictures:
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


def shown(pictures: Pictures, rows: Tensor, config: RegressorConfig, step: int) -> Tensor:
    """Returns images [N, 3, R, R] in -1..1 over backgrounds of one colour; every other one as coarse as 32 px."""
    images, masks, _ = (part[rows] for part in pictures)
    colour = uniform(config.seed, "regressor/background", range(step * len(rows), (step + 1) * len(rows)), (3,))
    mask = masks / 255
    images = mask * (images / 255) + (1 - mask) * colour[:, :, None, None]
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    coarse = (torch.arange(len(rows)) % 2 == 1)[:, None, None, None]
    return 2 * torch.where(coarse, half, images) - 1


def fit(config: RegressorConfig, model: MorphableModel, progress: Progress) -> Regressor:
    """Trains a regressor: Adam, a rate that warms up and falls to 0, mean squared error of whitened coefficients."""
    torch.manual_seed(config.seed)
    regressor = Regressor(config)
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
            warm = min(1.0, (step + 1) / 100)
            group["lr"] = RATE * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        loss = (regressor(shown(pictures, rows, config, step)) - pictures[2][rows]).square().mean()
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
        rows = torch.arange(start, min(start + config.batch, count))
        found.append(regressor(shown(pictures, rows, config, HELD_OUT + start)))
    z = pictures[2]
    share = 1 - (torch.cat(found) - z).square().mean(0) / z.var(0, correction=0)
    parts = share.split(list(regressor.sizes.values()))
    return {block: part.tolist() for block, part in zip(regressor.sizes, parts, strict=True)}
