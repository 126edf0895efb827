"""Holds the loss terms that families share: pure functions that return values per sample.

Nothing here logs, steps or draws numbers. Every term is a tensor [B] whose mean over the *total* batch is the loss; the
engine divides by the total batch, so micro-batches and ranks only add (docs/deviations.md).
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.precision import exact_float32

WHOLE = 1 - 1e-4  # share of a pixel that counts as all of it
Judge = Callable[[Tensor], Tensor]  # images [N, 3, R, R] to logits [N, 1]


def logistic(logits: Tensor, real: bool) -> Tensor:
    """Returns the non-saturating logistic loss (Goodfellow et al. 2014, section 3) of logits, element by element.

    real: what the one who is trained wants them to be: True for reals and for the generator, False for D's fakes.
    """
    return F.softplus(-logits if real else logits)


def relativistic(preferred: Tensor, other: Tensor) -> Tensor:
    """Returns softplus(other - preferred) of paired logits, element by element (Jolicoeur-Martineau 2019; R3GAN).

    preferred: of the image that the one who is trained wants D to find the more real: D its real one, G its own.
    What both have in common, such as D's last bias, gets no gradient.
    """
    return F.softplus(other - preferred)


def gradient_penalty(judge: Judge, images: Tensor) -> Tensor:
    """Returns the squared gradient norm of the logit with respect to the images [N, 3, R, R] that D sees: [N].

    The expectation's integrand of R1 at real and of R2 at generated images (Mescheder et al. 2018, equations 9 and 10),
    without its factor gamma / 2. No gradient reaches whatever made the images.
    """
    seen = images.detach().requires_grad_(True)
    logits = judge(seen)
    (gradient,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of values [b, ...] where a mask that broadcasts to them holds, [b]; 0 where it nowhere does."""
    mask = mask.expand_as(values).flatten(1)
    return (values.flatten(1) * mask).sum(1) / mask.sum(1).clamp(min=1)


def off_colour(images: Tensor, asked: Tensor, share: Tensor) -> Tensor:
    """Returns the mean absolute difference of images from those asked for, where these cover whole pixels: [N].

    images, asked: [N, 3, H, W] in -1..1; share: [N, H, W] of a pixel that is covered. The photometric term of fits of
    morphable models (Tewari et al. 2017, MoFA, section 6).
    """
    return masked_mean((images - asked).abs(), (share > WHOLE)[:, None])


def knn_distance(points: Tensor, neighbours: int) -> Tensor:
    """Averages (a_i - a_j)^2 over points, their k nearest others and the 3 coordinates: `points` [B,P,3] -> [B].

    The gradient flows to both ends; the choice of neighbours carries none. Raises ValueError if k > P - 1.
    """
    batch, count, _ = points.shape
    if not 0 < neighbours < count:
        raise ValueError(f"knn_distance: k={neighbours} neighbours of {count} points; legal: 1 to {count - 1}")
    with torch.no_grad(), exact_float32():
        distance = torch.cdist(points, points).diagonal_scatter(points.new_full((batch, count), torch.inf), 0, 1, 2)
        nearest = distance.topk(neighbours, largest=False).indices  # [B, P, k]
    chosen = nearest.flatten(1)[..., None].expand(-1, -1, 3)  # [B, P k, 3]
    others = points.gather(1, chosen).view(batch, count, neighbours, 3)
    return (points[:, :, None] - others).square().mean(dim=(1, 2, 3))


def center_distance(points: Tensor) -> Tensor:
    """Averages the squared centroid over the coordinates: `points` [B,P,3] -> [B]."""
    return points.mean(1).square().mean(1)


def blur_sigma_at(nimg: int, sigma: float, fade_nimg: float) -> float:
    """Lowers the blur of real and fake images linearly from `sigma` pixels to 0 over the first `fade_nimg` images."""
    return max(1.0 - nimg / fade_nimg, 0.0) * sigma if fade_nimg > 0 else 0.0


def late_share(nimg: int | None, from_nimg: float) -> float:
    """Returns the share of a weight that begins to grow after `from_nimg` images and is whole after as many again.

    1 where it counts from the start (from_nimg 0), and at rest (nimg None).
    """
    return min(max(nimg / from_nimg - 1, 0.0), 1.0) if from_nimg and nimg is not None else 1.0


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Filters with separable taps 2^-(t/sigma)^2, |t| <= floor(3 sigma), sum 1, zero padding: [N,C,H,W] -> same.

    One banded matrix product for each axis: convolutions of one channel are slow everywhere, their backward on CPUs
    most of all, and cuDNN would search anew at every length, which falls during the first images of a run. Below
    sigma = 1/3 there is nothing to blur and the input itself is returned.
    """
    if floor(3 * sigma) < 1:
        return images
    height, width = images.shape[-2:]
    rows = _band(height, sigma, images)
    return rows @ images @ (rows if width == height else _band(width, sigma, images))


def _band(size: int, sigma: float, like: Tensor) -> Tensor:
    """Returns the symmetric matrix [size, size] that filters one axis."""
    radius = floor(3 * sigma)
    places = torch.arange(size, device=like.device, dtype=like.dtype)
    weights = (places[:, None] - places).div(sigma).square().neg().exp2().triu(-radius).tril(radius)
    return weights / sum(2.0 ** -((t / sigma) ** 2) for t in range(-radius, radius + 1))
