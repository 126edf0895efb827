"""Says how much pictures differ: losses that need no downloaded weights, and room for one that does.

All terms are values per picture, [N], of images RGB in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.base import Conditioning, Discriminator

LEAST_PIXELS = 8  # of the coarsest level of a pyramid, and of features that are compared
Features = Callable[[Tensor, Tensor], list[Tensor]]  # images [N, 3, R, R] in 0..1, labels [N, 25] to maps [N, C, h, w]


def pyramid_l1(images: Tensor, targets: Tensor) -> Tensor:
    """Averages the mean absolute difference over the levels of a pyramid, each half as large, down to 8 pixels."""
    difference, terms = images - targets, []
    while True:
        terms.append(difference.abs().mean(dim=(1, 2, 3)))
        if difference.shape[-1] < 2 * LEAST_PIXELS:
            return torch.stack(terms).mean(0)
        difference = F.avg_pool2d(difference, 2)


def gradient_l1(images: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean absolute difference of the pictures' steps from pixel to pixel: edges in their places."""
    difference = images - targets
    return (difference.diff(dim=-1).abs().mean(dim=(1, 2, 3)) + difference.diff(dim=-2).abs().mean(dim=(1, 2, 3))) / 2


def mask_distance(alpha: Tensor, masks: Tensor) -> Tensor:
    """Returns 1 - intersection over union of soft masks [N, 1, H, W] in 0..1."""
    both, either = torch.minimum(alpha, masks).sum((1, 2, 3)), torch.maximum(alpha, masks).sum((1, 2, 3))
    return 1 - both / either.clamp_min(1e-6)


def feature_distance(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Averages, over maps, the mean absolute difference divided by the mean size of the target's features."""
    terms = [
        (a - b).abs().mean((1, 2, 3)) / b.abs().mean((1, 2, 3)).clamp_min(1e-6)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(terms).mean(0)


class DiscriminatorFeatures:
    """Reads the features that a discriminator makes of pictures on its way to the logit.

    Of every size from 8 pixels on, below the picture's own, the last map that a module hands on: trained on this very
    domain, and part of every checkpoint.
    """

    def __init__(self, D: Discriminator):
        self.D = D
        self._maps: dict[int, Tensor] = {}
        self._hooks = [module.register_forward_hook(self._keep) for module in D.modules()]

    def release(self) -> None:
        """Leaves the discriminator as it was."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, given: Any, made: Any) -> None:
        if isinstance(made, Tensor) and made.ndim == 4 and made.shape[-1] >= LEAST_PIXELS:
            self._maps[made.shape[-1]] = made

    def __call__(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Returns maps [N, C, h, w] of images [N, 3, R, R] RGB in 0..1 under labels [N, 25], the largest first."""
        return self.with_logits(images, labels)[0]

    def with_logits(self, images: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the maps, and the logits [N] of each picture judged alone."""
        self._maps = {}
        logits = self.D.outputs(2 * images - 1, Conditioning(labels), len(images)).logits[:, 0]
        maps, self._maps = self._maps, {}
        return [maps[size].float() for size in sorted(maps, reverse=True)], logits


class PerceptualFeatures:
    """Reads what a VGG-16 network makes of pictures before each of its pools, of unit length at every pixel.

    That is LPIPS (Zhang et al. 2018) with equal weights in place of the learned ones.
    """

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1

    def __init__(self, layers: nn.Sequential):
        self.layers = layers  # convolutions, activations and pools, as torchvision orders them

    def __call__(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Returns maps [N, C, h, w] of images [N, 3, R, R] RGB in 0..1, as many as the size has room for."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.MEAN, self.STD))
        x, maps = (images - mean) / std, []
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(F.normalize(x, dim=1))
                if x.shape[-1] < 2 * LEAST_PIXELS:
                    break
            x = layer(x)
        return maps


@dataclass(frozen=True)
class Weights:
    """Holds the factors of the terms."""

    pyramid: float = 1.0
    gradient: float = 0.5
    mask: float = 0.1
    features: float = 0.05
    perceptual: float = 0.2


@dataclass
class Similarity:
    """Compares pictures with V targets by all terms that there is something for."""

    images: Tensor  # [V, 3, R, R] RGB in 0..1
    masks: Tensor | None  # [V, 1, R, R] in 0..1
    features: Features | None = None
    perceptual: Features | None = None
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        self._known: dict[str, list[Tensor]] = {}

    def __call__(self, images: Tensor, alpha: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss [S, V] of images [S, V, 3, R, R] with alpha [S, V, 1, R, R] under labels [S, V, 25]."""
        trials, views = images.shape[:2]
        shown, target = images.flatten(0, 1), self.images.repeat(trials, 1, 1, 1)
        total = self.weights.pyramid * pyramid_l1(shown, target) + self.weights.gradient * gradient_l1(shown, target)
        if self.masks is not None:
            total = total + self.weights.mask * mask_distance(alpha.flatten(0, 1), self.masks.repeat(trials, 1, 1, 1))
        for name, network, weight in (
            ("features", self.features, self.weights.features),
            ("perceptual", self.perceptual, self.weights.perceptual),
        ):
            if network is not None and weight:
                told = labels.flatten(0, 1)
                total = total + weight * feature_distance(
                    network(shown, told), self._target(name, network, told, trials)
                )
        return total.unflatten(0, (trials, views))

    def _target(self, name: str, network: Features, labels: Tensor, trials: int) -> list[Tensor]:
        """Returns the maps of the targets, made once: features below the logit do not follow the camera."""
        if name not in self._known:
            with torch.no_grad():
                self._known[name] = network(self.images, labels[: len(self.images)])
        return [maps.repeat(trials, 1, 1, 1) for maps in self._known[name]]


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio in dB of images [N, 3, H, W] in 0..1, clamped to it."""
    error = (images.clamp(0, 1) - targets).square().mean(dim=(1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()
