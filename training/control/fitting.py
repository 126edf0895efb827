"""Trains a regressor on renders whose coefficients are known, and measures what it explains of held-out ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, SceneRecord
from torch_utils import precision
from torch_utils.random import normal, permutation, uniform
from training.control.regressor import Regressor, RegressorConfig
from training.data.synthetic import expressions
from training.data.synthetic.synthesize import sample_cameras
from training.data.synthetic.traits import CameraSpread
from training.morphable.head import mirrored_signs, procedural_head
from training.morphable.model import MODEL_BLOCKS, SHAPE_BLOCKS, MorphableModel
from training.morphable.rasterize import paint, rasterize

HELD_OUT = 2**20  # number of the first held-out picture
CHECKED = 512  # held-out pictures
AT_ONCE = 16
RATE = 2e-3
WARM_UP = 0.03  # of the steps, in which the rate grows
DECAY = 0.02  # of weights
SHAPE = 0.6  # weight of identity and expression; colours and light have the rest
ROUGH = 0.5  # weight of landmarks at first sight, beside that of landmarks that were looked at closely
ANGLES = 10.0  # weight of the camera's angles
PIXELS = 32.0  # in half an image, in which landmarks are compared: those of 64

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
Errors = dict[str, dict[str, list[float]]]  # kind of pictures -> block -> share of the variance of every number


@dataclass(frozen=True)
class Pictures(SceneRecord):
    """Holds N renders, and what is known of them."""

    images: Tensor  # uint8 [N, 3, R, R]
    masks: Tensor  # uint8 [N, 1, R, R]
    z: Tensor  # [N, outputs] whitened coefficients
    landmarks: Tensor  # [N, 2, L, 2] places, 0 the middle of the image and -1 and 1 its edges; and those if mirrored
    angles: Tensor  # [N, 2] yaw and pitch of the camera, radians


def draw_pictures(config: RegressorConfig, model: MorphableModel, indices: range, progress: Progress) -> Pictures:
    """Renders the pictures `indices` of the seed, and returns their coefficients.

    A picture is a function of its number, and so is what is known of it, to rounding.
    """
    parts: list[tuple[Tensor, ...]] = []
    signs = _signs(model)
    for start in range(indices.start, indices.stop, AT_ONCE):
        some = range(start, min(start + AT_ONCE, indices.stop))
        cameras = sample_cameras(config.seed, some)
        if model.key == procedural_head().key:
            looks = expressions.sample_looks(config.seed, some)
            images, masks, _ = expressions.render(looks, cameras, config.resolution, 2)
            z = torch.cat([model.whitened(block, getattr(looks, block)) for block in MODEL_BLOCKS], dim=1)
        else:
            images, masks, z = faces(config, model, some, cameras)
        places = [_landmarks(model, z, cameras)]
        if signs is not None:
            places.append(_landmarks(model, z * signs, cameras.mirror()))
        x, y, depth = cameras.positions.unbind(-1)
        angles = torch.stack([torch.atan2(x, depth), torch.atan2(y, torch.hypot(x, depth))], dim=-1)
        parts.append(
            ((255 * images).round().byte(), (255 * masks).round().byte(), z, torch.stack(places, dim=1), angles)
        )
        progress("pictures", some.stop - indices.start, len(indices))
    return Pictures(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _signs(model: MorphableModel) -> Tensor | None:
    """Returns what becomes of whitened coefficients as a head is mirrored, where that is known."""
    return mirrored_signs() if model.key == procedural_head().key else None


def _landmarks(model: MorphableModel, z: Tensor, cameras: Cameras) -> Tensor:
    """Returns where the landmarks of z [N, outputs] are seen, [N, L, 2]: see `Pictures.landmarks`."""
    parts = dict(zip(model.sizes, z.split(list(model.sizes.values()), dim=1), strict=True))
    bare = {name: getattr(model, name)[..., model.landmarks, :] for name in ("shape", *SHAPE_BLOCKS)}
    points = dataclasses.replace(model, **bare).vertices(*(model.coefficients(b, parts[b]) for b in SHAPE_BLOCKS))
    return 2 * cameras.project(points)[0] - 1


def faces(
    config: RegressorConfig, model: MorphableModel, indices: range, cameras: Cameras
) -> tuple[Tensor, Tensor, Tensor]:
    """Renders bare surfaces of any model: images [N, 3, R, R] and masks in 0..1, and z [N, outputs]."""
    z = normal(config.seed, "regressor/z", indices, (sum(model.sizes.values()),))
    parts = dict(zip(model.sizes, z.split(list(model.sizes.values()), dim=1), strict=True))
    known = {block: model.coefficients(block, part) for block, part in parts.items()}
    vertices = model.vertices(known["identity"], known["expression"])
    colours = model.looks(vertices, known["texture"], known["illumination"])
    found = paint(rasterize(vertices, model.triangles, cameras, 2 * config.resolution), model.triangles, colours, 2)
    mask = found.share[:, None]
    return torch.where(mask > 0, found.values.clamp(0, 1), 1.0), mask, z


def shown(pictures: Pictures, config: RegressorConfig, step: int, coarse: Tensor) -> Tensor:
    """Returns images [N, 3, R, R] in 0..1 over one colour each; where coarse [N] holds, with half the pixels."""
    count = len(pictures.z)
    colour = uniform(config.seed, "regressor/background", range(step * count, (step + 1) * count), (3,))
    mask = pictures.masks / 255
    images = mask * (pictures.images / 255) + (1 - mask) * colour[:, :, None, None]
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    return torch.where(coarse[:, None, None, None], half, images)


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

    def chosen(mirrored: Tensor, plain: Tensor) -> Tensor:
        return torch.where(flip.view(-1, *[1] * (plain.dim() - 1)), mirrored, plain)

    return Pictures(
        images=chosen(pictures.images.flip(3), pictures.images),
        masks=chosen(pictures.masks.flip(3), pictures.masks),
        z=chosen(pictures.z * signs, pictures.z),
        landmarks=chosen(pictures.landmarks.flip(1), pictures.landmarks),
        angles=chosen(pictures.angles * pictures.angles.new_tensor([-1.0, 1.0]), pictures.angles),
    )


def loss_of(regressor: Regressor, pictures: Pictures, step: int, signs: Tensor | None) -> Tensor:
    """Returns the mean squared error of coefficients, with what landmarks and angles are off by."""
    config, count = regressor.config, len(pictures.z)
    if signs is not None:
        flip = uniform(config.seed, "regressor/mirror", range(step * count, (step + 1) * count)) < 0.5
        pictures = turned(pictures, signs, flip)
    every_other = torch.arange(count) % 2 == 1
    images, plain = tinted(shown(pictures, config, step, every_other), config, step)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.cpu_has_bfloat16()):
        found = regressor.read((2 * images - 1).contiguous(memory_format=torch.channels_last))
    numbers = regressor.numbers
    error = (found.z - pictures.z).square()
    told = plain[:, None].float().expand(-1, error.shape[1] - numbers)
    colours = (error[:, numbers:] * told).sum() / told.sum().clamp(min=1)
    asked = PIXELS * pictures.landmarks[:, 0]
    close, rough = (F.smooth_l1_loss(PIXELS * places, asked) for places in (found.landmarks, found.rough))
    turn = F.mse_loss(found.angles, pictures.angles)
    return SHAPE * error[:, :numbers].mean() + (1 - SHAPE) * colours + close + ROUGH * rough + ANGLES * turn


def fit(config: RegressorConfig, model: MorphableModel, progress: Progress) -> Regressor:
    """Trains a regressor: AdamW, a rate that warms up and falls to 0.

    Where a processor multiplies matrices of bfloat16, convolutions are computed in it.
    """
    torch.manual_seed(config.seed)
    regressor = Regressor(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spread = CameraSpread()
    regressor.fit.describe(model, spread.radius, spread.focal)
    signs = _signs(model)
    pictures = draw_pictures(config, model, range(config.pictures), progress)
    optimizer = torch.optim.AdamW(regressor.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
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
def explained(regressor: Regressor, model: MorphableModel, count: int | None = None) -> Errors:
    """Returns the share of the variance of every coefficient that is explained on held-out renders, by block.

    Once of pictures as large as the regressor reads them ("sharp"), and once of the same with half the pixels
    ("coarse"). count: pictures; CHECKED if None.
    """
    config, count = regressor.config, count or CHECKED
    pictures = draw_pictures(config, model, range(HELD_OUT, HELD_OUT + count), lambda *_: None)
    parts = [pictures.map(itemgetter(slice(i, i + config.batch))) for i in range(0, count, config.batch)]
    result = {}
    for name, coarse in (("sharp", False), ("coarse", True)):
        found = [
            regressor(2 * shown(part, config, HELD_OUT + i, torch.full((len(part.z),), coarse)) - 1)
            for i, part in enumerate(parts)
        ]
        share = 1 - (torch.cat(found) - pictures.z).square().mean(0) / pictures.z.var(0, correction=0)
        blocks = share.split(list(regressor.sizes.values()))
        result[name] = {block: part.tolist() for block, part in zip(regressor.sizes, blocks, strict=True)}
    return result
