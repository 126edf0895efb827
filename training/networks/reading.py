"""Builds small convolutional networks that read numbers off pictures."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1
STRIDE = 16  # pixels of a picture for each place of the last features


def picture_layers(width: int) -> nn.Sequential:
    """Builds layers from pictures [N, 3, R, R] to features [N, 4 width, R / 16, R / 16]. Places matter to them."""
    widths = [width * k for k in (1, 2, 3, 4)]
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, 2, 2), nn.LeakyReLU(SLOPE)]
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.GroupNorm(4, outer), nn.LeakyReLU(SLOPE)]
        layers += [nn.Conv2d(outer, outer, 3, 1, 1), nn.GroupNorm(4, outer), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def num_features(width: int, resolution: int) -> int:
    """Returns the number of features that `picture_layers` makes of a picture."""
    edge = -(-resolution // STRIDE)
    return 4 * width * edge * edge


def resized(images: Tensor, size: int) -> Tensor:
    """Returns images [N, C, H, H] at `size` pixels: averaged where there are more, smoothed where there are fewer."""
    if images.shape[-1] == size:
        return images
    shrinks = images.shape[-1] > size
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
