"""The mathematics of the GAN: pure functions that return values per sample. Nothing here logs, steps or draws numbers.

Every term is a tensor [B] whose mean over the *total* batch is the loss; the caller divides by the total batch, so
micro-batches and ranks only add (docs/deviations.md). Equations: CGS-GAN; the non-saturating loss is Goodfellow et
al. 2014, R1 is Mescheder et al. 2018 eq. 9, lazy regularisation is Karras et al. 2020 (StyleGAN2, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from gaussian import Cameras, Gaussians, Rendering


@dataclass(frozen=True)
class GeneratorTerms:
    """What one generator micro-batch of B scenes with V views yields."""

    adversarial: Tensor  # [B] mean over the views of softplus(-logit)
    knn: Tensor | None  # [B] mean squared distance to the nearest coarse anchors, per coordinate
    center: Tensor | None  # [B] mean squared coordinate of the coarse anchors' centroid
    logits: Tensor  # [B, V]
    scene: Gaussians
    rendering: Rendering


def generator_terms(
    G: nn.Module,
    D: nn.Module,
    z: Tensor,  # [B, z_dim]
    cameras: Cameras,  # [B, V]
    background: Tensor,  # [B, V, 3] in 0..1
    blur_sigma: float = 0.0,  # pixels
    knn_neighbours: int = 0,  # 0 leaves both geometry terms out
    labels: Tensor | None = None,  # [B, V, 25] that D is told; None: those of the cameras
) -> GeneratorTerms:
    """One scene per latent, V views of each, all rendered and judged in one batch (multi-view regularisation).

    Views are flattened scene-major (index b V + v): with V times the groups of one view, the strided minibatch-std
    groups of the discriminator hold different scenes of one view, exactly as in V separate calls of B images.
    """
    scene = G.synthesis(G.mapping(z))
    rendering = G.render(scene, cameras, background=background)
    batch, views = z.shape[0], cameras.shape[1]
    images = gaussian_blur(rendering.image.flatten(0, 1), blur_sigma)  # [B V, 3, R, R]
    groups = views * D.num_groups(batch)  # of minibatch-std: as in V separate calls
    told = cameras.labels if labels is None else labels
    logits = D(images, told.flatten(0, 1), groups).view(batch, views)
    knn = center = None
    if knn_neighbours:
        coarse = scene.anchors.means[:, : G.config.num_points]  # [B, P, 3] before the clamp of the splats
        knn, center = knn_distance(coarse, knn_neighbours), center_distance(coarse)
    return GeneratorTerms(F.softplus(-logits).mean(1), knn, center, logits, scene, rendering)


def discriminator_terms(D: nn.Module, images: Tensor, labels: Tensor, real: bool, blur_sigma: float = 0.0):
    """Non-saturating loss of `images` [B,3,R,R] in -1..1 with `labels` [B,25]: (loss [B], logits [B])."""
    logits = D(gaussian_blur(images, blur_sigma), labels).squeeze(1)
    return F.softplus(-logits if real else logits), logits


def r1_penalty(D: nn.Module, images: Tensor, labels: Tensor, blur_sigma: float = 0.0) -> Tensor:
    """Squared gradient norm of the logit with respect to the image that D sees (blurred while the blur fades): [B]."""
    seen = gaussian_blur(images, blur_sigma).detach().requires_grad_(True)
    logits = D(seen, labels)
    (gradient,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def knn_distance(points: Tensor, neighbours: int) -> Tensor:
    """Mean over points, their k nearest others and the 3 coordinates of (a_i - a_j)^2: `points` [B,P,3] -> [B].

    The gradient flows to both ends; the choice of neighbours carries none. Raises ValueError if k > P - 1.
    """
    batch, count, _ = points.shape
    if not 0 < neighbours < count:
        raise ValueError(f"knn_distance: k={neighbours} neighbours of {count} points; legal: 1 to {count - 1}")
    with torch.no_grad():
        distance = torch.cdist(points, points).diagonal_scatter(points.new_full((batch, count), torch.inf), 0, 1, 2)
        nearest = distance.topk(neighbours, largest=False).indices  # [B, P, k]
    chosen = nearest.flatten(1)[..., None].expand(-1, -1, 3)  # [B, P k, 3]
    others = points.gather(1, chosen).view(batch, count, neighbours, 3)
    return (points[:, :, None] - others).square().mean(dim=(1, 2, 3))


def center_distance(points: Tensor) -> Tensor:
    """Mean over the coordinates of the squared centroid: `points` [B,P,3] -> [B]."""
    return points.mean(1).square().mean(1)


def blur_sigma_at(nimg: int, sigma: float, fade_nimg: float) -> float:
    """The blur of real and fake images: falls linearly from `sigma` pixels to 0 over the first `fade_nimg` images."""
    return max(1.0 - nimg / fade_nimg, 0.0) * sigma if fade_nimg > 0 else 0.0


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable filter with taps 2^-(t/sigma)^2, |t| <= floor(3 sigma), sum 1, zero padding: [N,C,H,W] -> same.

    Below sigma = 1/3 there is nothing to blur and the input itself is returned.
    """
    radius = floor(3 * sigma)
    if radius < 1:
        return images
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype).div(sigma).square().neg().exp2()
    taps = taps / taps.sum()
    planes = images.flatten(0, 1)[:, None]  # [N C, 1, H, W]
    planes = F.conv2d(planes, taps.view(1, 1, 1, -1), padding=(0, radius))
    planes = F.conv2d(planes, taps.view(1, 1, -1, 1), padding=(radius, 0))
    return planes.view_as(images)
