"""Builds VGG-16 (Simonyan and Zisserman 2015, configuration D) up to its second dense layer, 4096 features.

Kynkäänniemi et al. 2019 measure precision and recall on these. The weights circulate as a PyTorch state dict,
`vgg16-397923af.pth`, whose names are the ones below; it was trained on RGB images of 224 px, less the mean of ImageNet
and divided by its standard deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metrics.inception import resize_tf1

INPUT = 224  # px
NUM_FEATURES = 4096
NUM_CLASSES = 1000
BLOCKS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)  # widths; each block ends in a pool
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1


class VGG16(nn.Module):
    """Maps uint8 images [B, 3, H, W] of any size to features float32 [B, 4096], after the second ReLU; no gradients."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in BLOCKS:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # As published, indices count the layers without weights too; the last layer, of the classes, goes unused.
        dense = [nn.Linear(512 * 7 * 7, NUM_FEATURES), nn.ReLU(), nn.Dropout(), nn.Linear(NUM_FEATURES, NUM_FEATURES)]
        self.classifier = nn.Sequential(*dense, nn.ReLU(), nn.Dropout(), nn.Linear(NUM_FEATURES, NUM_CLASSES))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        mean, std = (255 * torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
        x = (resize_tf1(images.float(), INPUT) - mean) / std  # as torch-fidelity does it, so that values compare
        x = self.features(x)  # [B, 512, 7, 7]
        return self.classifier[:5](x.flatten(1))


def untrained(seed: int = 0) -> VGG16:
    """Makes the network with seeded random weights (He et al. 2015), for smoke tests without the weights file."""
    network = VGG16()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5, generator=generator)
        else:
            parameter.zero_()
    return network
