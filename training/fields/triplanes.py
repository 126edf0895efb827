"""Reads features of points off three planes, as EG3D (Chan et al. 2022) and its descendants do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.fields import native_fields

Axes = Sequence[tuple[int, int]]  # of every plane: the coordinate that runs along its columns, and along its rows

PROPER: Axes = ((0, 1), (0, 2), (1, 2))
EG3D: Axes = ((0, 1), (0, 2), (2, 0))  # published: the third repeats the second's, y with z is on none


def plane_features(planes: Tensor, points: Tensor, axes: Axes = PROPER, align_corners: bool = True) -> Tensor:
    """Returns the mean over three planes of their bilinear samples: [B, P, F].

    planes: [B, 3, F, R, R]; points: [B, P, 3], -1..1 across the planes. align_corners: -1 and 1 are the middles of
    the outermost texels, else their outer edges. Outside of a plane its features are 0.
    """
    if native_fields.usable(points, planes):
        return native_fields.read_planes(planes, points, axes, align_corners)
    batch, count, features = planes.shape[:3]
    across = [torch.stack([points[..., column], points[..., row]], dim=-1) for column, row in axes]  # [B, P, 2] each
    where = torch.stack(across, dim=1).flatten(0, 1)[:, None]  # [3 B, 1, P, 2]
    read = F.grid_sample(planes.flatten(0, 1), where, mode="bilinear", align_corners=align_corners)
    return read.view(batch, count, features, -1).mean(1).transpose(1, 2)


def plane_features_reference(planes: Tensor, points: Tensor, axes: Axes = PROPER, align_corners: bool = True) -> Tensor:
    """Computes `plane_features` texel by texel: each of four neighbours has the weight that its nearness gives it."""
    batch, _, features, size, _ = planes.shape
    total = points.new_zeros(batch, points.shape[1], features)
    scenes = torch.arange(batch)[:, None]
    for plane, (column_axis, row_axis) in enumerate(axes):
        at = [points[..., axis] for axis in (column_axis, row_axis)]  # each [B, P]
        at = [(v + 1) / 2 * (size - 1) if align_corners else ((v + 1) * size - 1) / 2 for v in at]
        for column in (at[0].floor(), at[0].floor() + 1):
            for row in (at[1].floor(), at[1].floor() + 1):
                weight = (1 - (at[0] - column).abs()) * (1 - (at[1] - row).abs())
                inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
                x, y = (v.clamp(0, size - 1).long() for v in (column, row))
                texels = planes[scenes, plane, :, y, x]  # [B, P, F]
                total = total + torch.where(inside, weight, 0)[..., None] * texels
    return total / len(axes)
