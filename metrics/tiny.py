"""Builds a small detector for tests and smoke runs: one layer of seeded random filters, milliseconds an image.

Half of the filters sum to 0 and see edges only, the others see colours too; pooled over the four quarters of the image,
the features also tell places. Their values mean nothing beside those of any other detector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32  # px, to which images are brought by area
FILTERS = 16
NUM_FEATURES = 4 * FILTERS
NUM_CLASSES = 16
REFERENCE_IMAGES = 256


class TinyDetector(nn.Module):
    """Maps uint8 images [B, 3, H, W] of any size to features [B, 64]: mean 0, deviation 1 over smooth pictures."""

    weight: Tensor  # [16, 3, 4, 4]
    classifier: Tensor  # [16, 64] features to logits
    mean: Tensor  # [64] of the features of smooth random pictures
    std: Tensor  # [64]

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(FILTERS, 3, 4, 4, generator=generator) / 48**0.5
        weight[::2] -= weight[::2].mean(dim=(1, 2, 3), keepdim=True)
        self.register_buffer("weight", weight)
        self.register_buffer("classifier", torch.randn(NUM_CLASSES, NUM_FEATURES, generator=generator) / 8)
        coarse = torch.rand(REFERENCE_IMAGES, 3, 6, 6, generator=generator)
        features = self._pooled(255 * F.interpolate(coarse, (SIZE, SIZE), mode="bilinear"))
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("std", features.std(0))

    def _pooled(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, stride=2).relu()  # [B, 16, 15, 15]
        return F.adaptive_avg_pool2d(x, 2).flatten(1)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (SIZE, SIZE), mode="area")  # [B, 3, 32, 32]
        return (self._pooled(x) - self.mean) / self.std
