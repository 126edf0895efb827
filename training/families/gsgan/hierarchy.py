"""Turns the raw outputs of the heads into anchors and splats: the coarse-to-fine rule of GSGAN.

Everything here is a pure function. Tensors are laid out [A, rows, M]: A splats per first point (a splat's children are
consecutive), the numbers of a splat, and the M first points of all scenes.

Source: Hyun and Heo 2024 (GSGAN); constants as published.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.ops import add_product
from training.networks.start import PUBLISHED_OPACITY_LOGIT, initial_appearance

POSITION_SCALE = 0.1  # of a coarse anchor's raw position, before the tanh
MIN_SPLIT_LOG_SCALE = -100.0

HEADS = (("xyz", 3, 1.0), ("scale", 3, 0.1), ("rotation", 4, 0.1), ("color", 3, 1.0), ("opacity", 1, 1.0))
# of name, rows and factor of the initial weights; the last three make up the appearance, which obeys one rule
ROWS = (3, 3, 8)  # of Attributes


class Attributes(NamedTuple):
    """Holds the numbers of anchors or splats, or the raw outputs of their heads."""

    xyz: Tensor  # [A, 3, M] world units
    log_scales: Tensor  # [A, 3, M] ln of world units
    appearance: Tensor  # [A, 8, M] quaternion wxyz, colour (SH degree 0), opacity logit


class ScaleRule(NamedTuple):
    """Says how splats shrink from level to level; logarithms of world units."""

    smallest: float  # an anchor this small or smaller is not divided further
    split: float  # ln of the ratio by which a child is smaller than its parent
    clamp: tuple[float, float]  # of the children's log scales


def rotation_matrices(quats: Tensor) -> Tensor:
    """Returns rotations [A, 3, 3, M] of quats [A, 4, M] wxyz of any length but 0."""
    norm = (quats.square().sum(dim=1, keepdim=True) + 1e-24).sqrt()  # a zero quaternion gets the gradient 0
    w, x, y, z = (quats / norm).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([entry for row in rows for entry in row], dim=1).unflatten(1, (3, 3))


class Frame(NamedTuple):
    """Holds what the children of an anchor start from."""

    xyz: Tensor  # [A, 3, M] the anchor's centre, world units
    axes: Tensor  # [A, 3 (world), 3 (own axes), M]: rotation times scale
    largest: Tensor  # [A, 3, M] upper bound of the children's log scales
    appearance: Tensor  # [A, 8, M] the anchor's, which the children's outputs are added to


def frame_of(anchors: Attributes, rule: ScaleRule) -> Frame:
    """Returns what the children of these anchors share. Anchors at the smallest scale pass it on undivided."""
    scale = anchors.log_scales
    divided = (scale - rule.split).clamp(MIN_SPLIT_LOG_SCALE, 0.0)
    is_smallest = scale.detach().amax(dim=1, keepdim=True) <= rule.smallest
    rotation = rotation_matrices(anchors.appearance.narrow(1, 0, 4))
    return Frame(
        anchors.xyz, rotation * scale.exp()[:, None], torch.where(is_smallest, scale, divided), anchors.appearance
    )


def _by_parent(x: Tensor, frame: Frame) -> Tensor:
    return x.unflatten(0, (len(frame.xyz), -1))  # [A, r, rows, M]


def placed(raw_xyz: Tensor, frame: Frame) -> Tensor:
    """Puts centres into the anchors' ellipsoids, r on each: raw [A r, 3, M], result [A r, 3, M]."""
    xyz = frame.xyz[:, None]
    offsets = _by_parent(torch.tanh(raw_xyz), frame).split(1, dim=2)
    for axis, offset in zip(frame.axes[:, None].unbind(3), offsets, strict=True):
        xyz = add_product(xyz, axis, offset)
    return xyz.flatten(0, 1)


def first_anchors(
    raw: Attributes,
    largest: float,
    origins: Tensor | None = None,  # [3, M] world units, from which anchors are displaced; the world's if None
    opacity_logit: float = PUBLISHED_OPACITY_LOGIT,
) -> Attributes:
    """Makes the anchors of level 0 from their heads' outputs, A = 1."""
    displaced = torch.tanh(POSITION_SCALE * raw.xyz)
    return first_splats(raw, largest, displaced if origins is None else origins + displaced, opacity_logit)


def first_splats(
    raw: Attributes, largest: float, xyz: Tensor, opacity_logit: float = PUBLISHED_OPACITY_LOGIT
) -> Attributes:
    """Makes splats that no other level bounds, at xyz [1, 3, M]; largest: upper bound of the ln of their scales."""
    start = initial_appearance(opacity_logit, raw.appearance.dtype, raw.appearance.device)
    scale = largest + F.logsigmoid(raw.log_scales)  # t - softplus(t - (t + raw)), a smooth minimum with the bound t
    return Attributes(xyz, scale, start + raw.appearance)


def children(raw: Attributes, frame: Frame, rule: ScaleRule) -> Attributes:
    """Hangs anchors or splats on anchors, r on each: raw [A r, rows, M], frame [A, rows, M], result [A r, rows, M]."""
    scale = frame.largest[:, None] + F.logsigmoid(_by_parent(raw.log_scales, frame))
    appearance = frame.appearance[:, None] + _by_parent(raw.appearance, frame)
    return Attributes(placed(raw.xyz, frame), scale.clamp(*rule.clamp).flatten(0, 1), appearance.flatten(0, 1))
