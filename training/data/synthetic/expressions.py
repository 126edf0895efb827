"""Makes pictures of heads with expressions whose parameters are known: the morphable head of ours, with hair and neck.

Its light is fixed in the head's own frame, like that of the ray-cast heads, so that nothing is view-dependent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaussian import Cameras, SceneRecord
from training.data.synthetic.traits import Draws
from training.morphable.head import HAIR_COLOUR, SPREAD, UNIT, grid, procedural_head, smoothstep
from training.morphable.model import MODEL_BLOCKS, lit, vertex_normals
from training.morphable.rasterize import paint, rasterize

STREAM = 2  # of the random numbers; the ray-cast heads have 0 and 1
AT_ONCE = 16  # pictures
NECK = ((0.0, -0.23, -0.045), (0.075, 0.14, 0.075))  # centre and semi-axes, lengths as in `training.morphable.head`
SHOULDERS = ((0.0, -0.29, -0.04), (0.225, 0.07, 0.105))
_HAIR_COLOURS = np.array([[0.07, 0.06, 0.06], HAIR_COLOUR, [0.55, 0.36, 0.18], [0.75, 0.60, 0.40]])


@dataclass(frozen=True)
class Looks(SceneRecord):
    """Holds what N pictures depend on: coefficients of the model's blocks, and looks that no model describes."""

    identity: Tensor  # [N, 8]
    expression: Tensor  # [N, 8]
    texture: Tensor  # [N, 6]
    illumination: Tensor  # [N, 27]
    hair: Tensor  # [N, 2] volume and length, 0..1
    hair_colour: Tensor  # [N, 3] RGB
    shirt: Tensor  # [N, 3] RGB


def sample_looks(seed: int, indices: Sequence[int]) -> Looks:
    """Draws the looks of the pictures `indices` of the set `seed`: coefficients are normal, cut at 2 deviations."""
    model, rows = procedural_head(), []
    for index in indices:
        d = Draws(seed, STREAM, int(index))
        blocks = [[d.normal(0.0, 1 / SPREAD, 2.0) for _ in range(model.sizes[block])] for block in MODEL_BLOCKS]
        hair = [d.uniform(), d.uniform()]
        rows.append([*blocks, hair, d.palette(_HAIR_COLOURS, 0.1).tolist(), [d.uniform(0.1, 0.9) for _ in range(3)]])
    columns = [torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True)]
    for i, block in enumerate(MODEL_BLOCKS):
        columns[i] = model.coefficients(block, columns[i])
    return Looks(*columns)


def parameters(seed: int, indices: Sequence[int]) -> dict[str, Any]:
    """Returns what the set's list of labels keeps besides: the model's key, and the coefficients of every picture."""
    looks = sample_looks(seed, indices)
    return {
        "model": procedural_head().key,
        "coefficients": {block: getattr(looks, block).tolist() for block in MODEL_BLOCKS},
    }


@functools.cache
def _ball(columns: int = 24, rows: int = 16) -> tuple[Tensor, Tensor]:
    """Returns the vertices [V, 3] and triangles [F, 3] of a sphere of radius 1."""
    down = torch.linspace(math.pi / 2, -math.pi / 2, rows)
    around = torch.arange(columns) * (2 * math.pi / columns)
    lat, lon = torch.meshgrid(down, around, indexing="ij")
    points = torch.stack([lat.cos() * lon.sin(), lat.sin(), lat.cos() * lon.cos()], -1).flatten(0, 1)
    index = torch.arange(rows * columns).view(rows, columns)
    a, b = index[:-1], index[1:]
    c, d = a.roll(-1, 1), b.roll(-1, 1)
    return points, torch.cat([torch.stack([a, b, c], -1).flatten(0, 1), torch.stack([c, b, d], -1).flatten(0, 1)])


@functools.cache
def everything() -> Tensor:
    """Returns the triangles [F, 3] of head, neck and shoulders."""
    head, (points, ball) = grid(), _ball()
    first = len(head.points)
    return torch.cat([head.triangles, ball + first, ball + first + len(points)])


def _with_hair(looks: Looks, vertices: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Moves what is behind the hairline outwards, and gives it the hair's colour."""
    points, face = grid().points.float(), grid().face
    volume, length = looks.hair.unbind(1)  # [N]
    bottom = (0.02 - 0.22 * length)[:, None]
    grown = smoothstep((points[:, 1] - bottom) / 0.03) * (~face).float()  # [N, V]
    thick = (0.03 + 0.22 * volume[:, None]) * grown
    return vertices * (1 + thick[..., None]), torch.lerp(colours, looks.hair_colour[:, None], grown[..., None])


def surfaces(looks: Looks) -> tuple[Tensor, Tensor]:
    """Returns the vertices [N, V, 3], world units, and lit colours [N, V, 3] of whole heads: see `everything`."""
    model, (ball, _) = procedural_head(), _ball()
    head, colours = model.vertices(looks.identity, looks.expression), model.colours(looks.texture)
    skin = model.colours(looks.texture)[:, model.landmarks[29:30]]  # of the nose
    head, colours = _with_hair(looks, head, colours)
    parts = [UNIT * (ball.new_tensor(centre) + ball * ball.new_tensor(axes)) for centre, axes in (NECK, SHOULDERS)]
    vertices = torch.cat([head, *(part.expand(len(head), -1, -1) for part in parts)], dim=1)
    plain = [colour.expand(-1, len(ball), -1) for colour in (skin, looks.shirt[:, None])]
    colours = torch.cat([colours, *plain], dim=1)
    return vertices, lit(colours, vertex_normals(vertices, everything()), looks.illumination)


def render(looks: Looks, cameras: Cameras, resolution: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws N heads, each from its own camera [N], with samples x samples rays a pixel.

    Returns images [N, 3, R, R] in 0..1, not premultiplied and white where nothing is, masks [N, 1, R, R] in 0..1, and
    the mean camera z [N, 1, R, R] of what is covered.
    """
    vertices, colours = surfaces(looks)
    found = paint(rasterize(vertices, everything(), cameras, resolution * samples), everything(), colours, samples)
    mask = found.share[:, None]
    return torch.where(mask > 0, found.values.clamp(0, 1), 1.0), mask, found.depth[:, None]


def write_pictures(
    folder: Path, seed: int, indices: Sequence[int], labels: np.ndarray, resolution: int, samples: int
) -> int:
    """Renders into folder/<resolution>/ and folder/mask/, which exist, and returns the number of images."""
    for start in range(0, len(indices), AT_ONCE):
        some = indices[start : start + AT_ONCE]
        cameras = Cameras.from_labels(torch.from_numpy(labels[start : start + AT_ONCE]).float())
        images, masks, _ = render(sample_looks(seed, some), cameras, resolution, samples)
        for i, image, mask in zip(some, *((255 * t).round().byte().numpy() for t in (images, masks)), strict=True):
            picture = np.ascontiguousarray(image.transpose(1, 2, 0))
            Image.fromarray(picture).save(folder / str(resolution) / f"{i:05d}.png")
            Image.fromarray(mask[0]).save(folder / "mask" / f"{i:05d}.png")
    return len(indices)
