"""A small convolutional detector for tests and smoke runs: two layers of seeded random filters, milliseconds an image.

Its features see colours, edges and places, so distances react to what changes a picture; their values mean nothing
beside those of any other detector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 32  # px, to which images are brought by area
NUM_FEATURES = 64
NUM_CLASSES = 16
SCALE = 25.0  # grey levels; brings the features' deviation between images to O(1)


class TinyDetector(nn.Module):
    """uint8 images [B, 3, H, W] of any size -> features [B, 64], float32."""

    weight: Tensor  # [16, 3, 4, 4]
    classifier: Tensor  # [16, 64]

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(16, 3, 4, 4, generator=generator) / 48**0.5)
        self.register_buffer("classifier", torch.randn(NUM_CLASSES, NUM_FEATURES, generator=generator) / 8)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (SIZE, SIZE), mode="area") / SCALE  # [B, 3, 32, 32]
        x = F.conv2d(x, self.weight, stride=2).relu()  # [B, 16, 15, 15]
        return F.adaptive_avg_pool2d(x, 2).flatten(1)
