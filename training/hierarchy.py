"""From the raw outputs of the heads to anchors and splats: the coarse-to-fine rule of GSGAN and CGS-GAN.

Everything here is a pure function of channel-first tensors [B, 14, N]: the 14 numbers of a splat as rows, each row
contiguous along the points, which is the layout element-wise work is fast in. Rows: see XYZ to OPACITY.

Sources: Hyun and Heo 2024 (GSGAN, section 3.2), Barthel et al. 2025 (CGS-GAN); constants as published.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_ATTRIBUTES = 14
XYZ, SCALE, ROTATION, COLOR, OPACITY = slice(0, 3), slice(3, 6), slice(6, 10), slice(10, 13), slice(13, 14)
_APPEARANCE = slice(6, 14)  # rotation, color and opacity obey one rule

SQUASH_LIMIT = 20.0
COARSE_REACH = 0.2  # world units per unit of a coarse anchor's raw position
QUAT_EPS = 1e-3  # as published: a short quaternion turns less than it should
MIN_SPLIT_LOG_SCALE = -100.0
INITIAL_OPACITY_LOGIT = math.log(0.1 / 0.9)
INITIAL_APPEARANCE = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, INITIAL_OPACITY_LOGIT)  # unit quaternion, grey, 10 % opaque


@dataclass(frozen=True)
class ScaleRule:
    """How large splats start, may get, and shrink from level to level. All are ln of world units."""

    coarse: float  # where the scale of a coarse anchor starts
    largest: float  # soft upper bound of a coarse anchor's scale
    smallest: float  # an anchor no larger than this is not divided further
    split: float  # ln of the ratio by which a child is smaller than its parent


def squash(x: Tensor) -> Tensor:
    """Soft limit to +-20."""
    return torch.tanh(x * (1 / SQUASH_LIMIT)) * SQUASH_LIMIT


def rotation_rows(quats: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Nine entries [B, N] of the rotation matrices of quats [B, 4, N] (w, x, y, z), normalised with QUAT_EPS."""
    w, x, y, z = (quats / (torch.linalg.vector_norm(quats, dim=1, keepdim=True) + QUAT_EPS)).unbind(1)
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def coarse_anchors(raw: Tensor, rule: ScaleRule) -> Tensor:
    """Level-0 anchors from their heads' outputs; raw and result [B, 14, N]."""
    xyz = COARSE_REACH * raw[:, XYZ]
    scale = rule.largest - F.softplus(rule.largest - rule.coarse - raw[:, SCALE])  # smooth minimum with the bound
    start = raw.new_tensor(INITIAL_APPEARANCE)[:, None]
    return torch.cat([xyz, squash(torch.cat([scale, start + raw[:, _APPEARANCE]], dim=1))], dim=1)


def children(raw: Tensor, parents: Tensor, ratio: int, rule: ScaleRule) -> Tensor:
    """Splats or anchors that hang on anchors, `ratio` (r) on each.

    raw [B, S, 14, N r] for S sets that share the parents [B, 14, N] -> [B, S, 14, N r]; the r children of a parent are
    consecutive. Positions are offsets in the parent's ellipsoid frame; the scale is at most the parent's, divided by
    the split ratio unless the parent is already at the smallest scale; the other attributes are added to the parent's.
    """
    raw = raw.unflatten(-1, (-1, ratio))  # [B, S, 14, N, r]
    scales = parents[:, SCALE].exp()

    # Columns of R diag(scales), so that the children need three multiply-adds per coordinate.
    rows = torch.stack([torch.stack(row, dim=1) for row in rotation_rows(parents[:, ROTATION])], dim=1)  # [B, 3, 3, N]
    frame = (rows * scales[:, None])[:, None, ..., None]  # [B, 1, 3, 3, N, 1]
    offset = torch.tanh(raw[:, :, XYZ])
    xyz = parents[:, None, XYZ, :, None]
    for axis in range(3):
        xyz = torch.addcmul(xyz, frame[:, :, :, axis], offset[:, :, axis : axis + 1])

    log_scale = parents[:, SCALE]
    divided = (log_scale - rule.split).clamp(MIN_SPLIT_LOG_SCALE, 0)
    final = log_scale.amax(dim=1, keepdim=True) <= rule.smallest
    bound = torch.where(final, log_scale, divided)[:, None, ..., None]
    scale = bound - F.softplus(-raw[:, :, SCALE])

    appearance = parents[:, None, _APPEARANCE, :, None] + raw[:, :, _APPEARANCE]
    return torch.cat([xyz, squash(torch.cat([scale, appearance], dim=2))], dim=2).flatten(3)
