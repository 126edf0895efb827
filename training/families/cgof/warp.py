"""Compares a head with itself at another expression, point by point along the flow of its surface: CGOF's volume warp.

Source: Sun et al. 2022 (CGOF), section 3.4, "expression warping".
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from training.families.cgof.losses import blurred, charbonnier
from training.families.cgof.sampling import Guided, Samples, joined, take
from training.fields.field import RadianceField
from training.fields.marching import March
from training.fields.rays import Rays


def carried(field: RadianceField, rays: Rays, samples: Samples, flow: Tensor) -> Samples:
    """Asks a field where the surface's flow [B, R, 3], units of the field, carries the samples of another: constants.

    The distances are those from the camera, as published.
    """
    points = (samples.points + flow[:, :, None]).detach()
    t = (points - rays.origins[:, :, None]).norm(dim=-1)
    asked = take(field, rays, t, points)
    return dataclasses.replace(asked, t=t)


def carried_image(field: RadianceField, rays: Rays, march: March, other: Guided, flow: Tensor) -> Guided:
    """Renders a field by the samples of another, carried along a flow; nothing is random."""
    second, third = (carried(field, rays, samples, flow) for samples in (other.second, other.third))
    return joined(field, second, third, march, None)


def compared(mask: Tensor, other: Tensor) -> Tensor:
    """Returns which pixels count: all but those that show the face before and not after. Masks of any one shape."""
    return ~mask | other


def volume_warp(before: Guided, after: Guided, counts: Tensor) -> Tensor:
    """Returns the difference [b] of two renderings of b heads: of images in -1..1, blurred, and of single samples.

    counts: [b, H, W] of the pixels that count. Colours and raw densities of the samples differ as they are.
    """
    size, weight = counts.shape[1:], counts.flatten(1)  # [b, R]
    pixels = weight.sum(1).clamp(min=1)
    shown = [(2 * part.result.features - 1).transpose(1, 2).unflatten(2, size) for part in (after, before)]
    picture = charbonnier(blurred(shown[0]) - blurred(shown[1])).mean(1).flatten(1)  # [b, R]
    total: Tensor = (picture * weight).sum(1) / pixels
    for one, two in ((after.second, before.second), (after.third, before.third)):
        values = charbonnier(one.rgb - two.rgb).sum(-1) + charbonnier(one.sigma - two.sigma)  # [b, R, N]
        total = total + (values.mean(-1) * weight).sum(1) / pixels
    return total
