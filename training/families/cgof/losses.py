"""Holds the terms that tie a field to the surface of a morphable model: the losses of CGOF, as pure functions.

Source: Sun et al. 2022 (CGOF), section 3.4, and the released weights. All return values per sample, [b]: the published
code takes means, and extremes, over a micro-batch, which then changes with its size. Distances are camera z, in units
of the field.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.families.cgof.sampling import THICKNESS
from training.fields.field import RadianceField
from training.losses import masked_mean

STEEPNESS = 20.0  # of the growth of the distance loss, per unit of the field
BEFORE_FACE = 0.1  # share of what is between near and the face in which the background may begin
NORMAL_STEP = 1e-3  # units of the field between two normals that should agree


def distance(weights: Tensor, t: Tensor, depth: Tensor, mask: Tensor, extent: float, share: float) -> Tensor:
    """Penalises light that comes from elsewhere than the surface, exponentially in the distance from it: [b].

    weights, t: [b, R, K] of the samples; depth, mask: [b, R] of the surface. extent: far - near. share: 0..1, how far
    the free layer has shrunk from the whole of it to THICKNESS.
    """
    free = extent * (1 + share * (THICKNESS - 1))
    away = (t - depth[..., None]).abs() - free / 2
    return masked_mean(weights.relu() * torch.expm1(STEEPNESS * away.relu()), mask[..., None])


def background(weights: Tensor, t: Tensor, z: Tensor, depth: Tensor, mask: Tensor, near: Tensor | float) -> Tensor:
    """Penalises light beside the face that comes from well before the face, or from where world z is larger: [b].

    weights, t, z: [b, R, K] of the samples, z being the world's; depth, mask: [b, R] of the surface.
    """
    beside, face = ~mask[..., None], mask[..., None]
    nearest = torch.where(mask, depth, torch.inf).amin(1)[:, None, None]  # [b, 1, 1]; inf where there is no face
    before = near + (1 - BEFORE_FACE) * (nearest - near) - t
    foremost = torch.where(face, z, -torch.inf).amax((1, 2))[:, None, None]
    ahead = z - foremost
    seen = mask.any(1)[:, None, None]
    parts = [
        masked_mean(weights * torch.where(seen, excess, 0), beside & seen & (excess > 0)) for excess in (before, ahead)
    ]
    return parts[0] + parts[1]


def normal_smoothness(field: RadianceField, points: Tensor, q: Tensor) -> Tensor:
    """Returns the mean squared difference of normals at points [b, R, 3] and close by, [b]. Goes back to the points.

    q: [b, R, 3] uniform in 0..1, says where close by.
    """
    way = q - 0.5
    close = points + NORMAL_STEP * way / way.norm(dim=-1, keepdim=True)
    both = field.normals(torch.cat([points, close], dim=1))
    here, there = both.nan_to_num(0.0).clamp(-1, 1).chunk(2, dim=1)
    return (here - there).square().flatten(1).mean(1)


def depth_smoothness(depth: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean squared step of depth maps [b, H, W] between neighbours, and once more beside the face, [b]."""
    inner = depth[:, :-1, :-1]
    steps = (inner - depth[:, :-1, 1:]).square() + (inner - depth[:, 1:, :-1]).square()
    beside = ~mask[:, :-1, :-1]
    return steps.flatten(1).mean(1) + (steps * beside).flatten(1).sum(1) / (beside.flatten(1).sum(1) + 1e-8)


def landmarks(
    found: Tensor,
    asked: Tensor,
    lifted: Tensor,
    places: Tensor,
    inner: slice = slice(17, None),
    last: float = 255.0,
) -> Tensor:
    """Returns the mean absolute errors of landmarks in the image, and of the inner ones in space, [b].

    found, asked: [b, L, 2] in the image, 0 to `last` across it; what is found beyond counts as on its edge.
    lifted, places: [b, L, 3], those found at the depth that the image has there (`lift_landmarks`), and those of the
    surface. inner: leaves out the outline of the face, which slides along it.
    """
    flat = (found.clamp(0, last) - asked).abs().flatten(1).mean(1)
    return flat + (lifted - places)[:, inner].abs().flatten(1).mean(1)


def lift_landmarks(found: Tensor, depth: Tensor, last: float = 255.0) -> tuple[Tensor, Tensor]:
    """Looks landmarks up in a depth map: places c [b, L, 2] in its pixels, and depths [b, L], which have gradients.

    found: [b, L, 2], x to the right and y down, 0 to `last` across the image; depth: [b, H, W], square. The published
    look-up leaves the map at its far edge; this one ends there. Its y may point up, which cannot be verified.
    """
    pixels = depth.shape[-1]
    places = (found.detach().clamp(0, last) / last * pixels).round().long().clamp(0, pixels - 1)
    rows = torch.arange(len(depth), device=depth.device)[:, None]
    return places, depth[rows, places[..., 1], places[..., 0]]


def unproject(places: Tensor, depth: Tensor, focal: float | Tensor, pixels: int) -> Tensor:
    """Returns points [b, L, 3] in units of the field about the middle of the image: right, down, towards the camera.

    places: [b, L, 2] pixels; depth: [b, L] camera z; focal: in pixels.
    """
    return torch.cat([(places - pixels / 2) / focal * depth[..., None], (1 - depth)[..., None]], dim=-1)


def charbonnier(x: Tensor) -> Tensor:
    """Returns a smooth absolute value."""
    return (x.square() + 1e-8).sqrt()


def blurred(images: Tensor, size: int = 5, sigma: float = 2.0) -> Tensor:
    """Blurs images [b, C, H, W] by a Gaussian of `size` taps and `sigma` pixels, mirrored at the edges."""
    places = torch.arange(size, dtype=images.dtype, device=images.device) - (size - 1) / 2
    taps = torch.exp(-places.square() / (2 * sigma**2))
    taps = taps / taps.sum()
    half, channels = size // 2, images.shape[1]
    kernel = (taps[:, None] * taps).expand(channels, 1, size, size)
    return F.conv2d(F.pad(images, (half, half, half, half), mode="reflect"), kernel, groups=channels)
