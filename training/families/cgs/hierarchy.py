"""Turns the raw outputs of the heads into anchors and splats: the coarse-to-fine rule of GSGAN and CGS-GAN.

Everything here is a pure function. Tensors are laid out [A, rows, M]: A splats per transformer point (a splat's
children are consecutive), the numbers of a splat, and the M points of all scenes. With the points last, element-wise
work with operands of different A runs over long contiguous stretches.

Sources: Hyun and Heo 2024 (GSGAN), Barthel et al. 2025 (CGS-GAN); constants as published.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_utils.ops import add_product
from training.networks.start import PUBLISHED_OPACITY_LOGIT, initial_appearance

SQUASH_LIMIT = 20.0
COARSE_REACH = 0.2  # world units per unit of a coarse anchor's raw position
QUAT_EPS = 1e-3  # as published: a short quaternion turns less than it should
MIN_SPLIT_LOG_SCALE = -100.0

ATTRIBUTE_ROWS = (3, 3, 8)  # of Attributes


class Attributes(NamedTuple):
    """Holds the numbers of anchors or splats, or the raw outputs of their heads."""

    xyz: Tensor  # [A, 3, M] world units
    log_scales: Tensor  # [A, 3, M] ln of world units
    appearance: Tensor  # [A, 8, M] quaternion wxyz, colour (SH degree 0), opacity logit: they obey one rule


class Frame(NamedTuple):
    """Holds what the children of an anchor start from."""

    xyz: Tensor  # [A, 3, M] the anchor's centre, world units
    axes: Tensor  # [A, 3 (world), 3 (own axes), M]: rotation times scale
    largest: Tensor  # [A, 3, M] upper bound of the children's log scales
    appearance: Tensor  # [A, 8, M] the anchor's, which the children's outputs are added to


@dataclass(frozen=True)
class ScaleRule:
    """Says how large splats start, may get, and shrink from level to level."""

    coarse: float  # ln of the scale that a coarse anchor starts with, world units
    largest: float  # ln of the soft upper bound of a coarse anchor's scale, world units
    smallest: float  # ln of the scale from which down an anchor is not divided further, world units
    split: float  # ln of the ratio by which a child is smaller than its parent


def squash_reference(x: Tensor) -> Tensor:
    """Limits x softly to +-20. The slow twin of squash."""
    return SQUASH_LIMIT * torch.tanh(x / SQUASH_LIMIT)


class _Squash(torch.autograd.Function):
    """Computes squash_reference in one buffer forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (x / SQUASH_LIMIT).tanh_().mul_(SQUASH_LIMIT)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.addcmul(grad, grad, y.square(), value=-(SQUASH_LIMIT**-2))


def squash(x: Tensor) -> Tensor:
    """Limits x softly to +-20; differentiable once."""
    return _Squash.apply(x)


def rotation_matrices_reference(quats: Tensor) -> Tensor:
    """Returns rotations [A, 3, 3, M] of quats [A, 4, M] wxyz, which are divided by (their norm + QUAT_EPS)."""
    w, x, y, z = _normalized(quats).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([entry for row in rows for entry in row], dim=1).unflatten(1, (3, 3))


def rotation_matrices(quats: Tensor) -> Tensor:
    """Computes rotation_matrices_reference, on GPUs in a third of its 40 kernels: three entries at a time."""
    if quats.device.type == "cpu":  # the same values, but the sums of gradients would round differently
        return rotation_matrices_reference(quats)
    return rotation_matrices_by_threes(quats)


def rotation_matrices_by_threes(quats: Tensor) -> Tensor:
    """Computes rotation_matrices_reference from xyz, yzx and zxy."""
    w, xyz = _normalized(quats).split((1, 3), dim=1)
    x, y, z = xyz.split(1, dim=1)
    yzx, zxy = torch.cat((y, z, x), dim=1), torch.cat((z, x, y), dim=1)
    diagonal = 1 - 2 * (yzx.square() + zxy.square())
    symmetric, other = xyz * yzx, w * zxy  # (xy, yz, zx) and (wz, wx, wy)
    a, b, c = (2 * (symmetric - other)).unbind(1)  # entries 01, 12, 20
    d, e, f = (2 * (symmetric + other)).unbind(1)  # entries 10, 21, 02
    p, q, r = diagonal.unbind(1)
    return torch.stack((p, a, f, d, q, b, c, e, r), dim=1).unflatten(1, (3, 3))


def _normalized(quats: Tensor) -> Tensor:
    norm = (quats.square().sum(dim=1, keepdim=True) + 1e-24).sqrt()  # a zero quaternion gets the gradient 0
    return quats / (norm + QUAT_EPS)


def coarse_anchors(
    raw: Attributes,
    rule: ScaleRule,
    origins: Tensor | None = None,  # [3, M] world units, from which anchors are displaced; the world's if None
    opacity_logit: float = PUBLISHED_OPACITY_LOGIT,
) -> Attributes:
    """Makes the anchors of level 0 from their heads' outputs, A = 1."""
    bounded = rule.largest - F.softplus(rule.largest - rule.coarse - raw.log_scales)  # smooth minimum with the bound
    start = initial_appearance(opacity_logit, raw.appearance.dtype, raw.appearance.device)
    xyz = COARSE_REACH * raw.xyz if origins is None else torch.add(origins, raw.xyz, alpha=COARSE_REACH)
    return Attributes(xyz, squash(bounded), squash(start + raw.appearance))


def frame_of(anchors: Attributes, rule: ScaleRule) -> Frame:
    """Returns what the children of these anchors share. Anchors at the smallest scale pass it on undivided."""
    scale = anchors.log_scales
    divided = (scale - rule.split).clamp(MIN_SPLIT_LOG_SCALE, 0.0)
    is_smallest = scale.detach().amax(dim=1, keepdim=True) <= rule.smallest
    rotation = rotation_matrices(anchors.appearance.narrow(1, 0, 4))
    return Frame(
        anchors.xyz, rotation * scale.exp()[:, None], torch.where(is_smallest, scale, divided), anchors.appearance
    )


def children(raw: Attributes, frame: Frame) -> Attributes:
    """Hangs anchors or splats on anchors, r on each: raw [A r, rows, M], frame [A, rows, M], result [A r, rows, M].

    Positions are offsets in the parent's ellipsoid, scales at most the frame's; the other attributes are added to the
    parent's.
    """

    def by_parent(x: Tensor) -> Tensor:
        return x.unflatten(0, (len(frame.xyz), -1))  # [A, r, rows, M]

    xyz = frame.xyz[:, None]
    offsets = by_parent(torch.tanh(raw.xyz)).split(1, dim=2)
    for axis, offset in zip(frame.axes[:, None].unbind(3), offsets, strict=True):
        xyz = add_product(xyz, axis, offset)
    scale = squash(frame.largest[:, None] + F.logsigmoid(by_parent(raw.log_scales)))
    appearance = squash(frame.appearance[:, None] + by_parent(raw.appearance))
    return Attributes(xyz.flatten(0, 1), scale.flatten(0, 1), appearance.flatten(0, 1))
