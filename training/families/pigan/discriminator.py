"""Builds the discriminators of pi-GAN, which grow with the images: the entry of a size fades in beside the older one.

Their logits follow no camera. Some guess the latent and the camera's angles as well. Source: Chan et al. 2021 (pi-GAN),
after Karras et al. 2018 (growing) and Liu et al. 2018 (CoordConv). Modules and parameters carry the names of the
published checkpoints.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_utils.convolution import conv2d, conv2d_reference
from training.networks import base
from training.networks.base import Conditioning, DiscriminatorOutput

KINDS = ("ccs", "strided", "progressive")
SLOPE = 0.2
ANGLES = 2  # that a discriminator guesses: from above, and around
HEAD_SIZE = 2  # pixels of an edge that reach the head
_TRUNK = (400, 400, 400, 400)


@dataclass(frozen=True)
class DiscriminatorConfig(base.DiscriminatorConfig):
    """Holds everything that a Discriminator is built from. Raises ValueError for values that cannot be built."""

    kind: str = "ccs"  # "ccs" and "strided" halve by strides, "progressive" by means; "strided" is told no coordinates
    widths: tuple[int, ...] = (32, 64, 128, 256, *_TRUNK)  # channels of the entries, from the largest size to 2 px
    latent: int = 256  # numbers of the latent that is guessed, together with the angles; 0: neither is
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"discriminator.kind={self.kind}: legal are {', '.join(KINDS)}")
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"discriminator.widths={self.widths}: two or more numbers, 1 or greater")
        if self.latent < 0:
            raise ValueError(f"discriminator.latent={self.latent} must be 0 or more")

    @classmethod
    def progressive(cls, latent: int = 256) -> DiscriminatorConfig:
        """Returns the published discriminator that halves by means, for images of up to 512 px."""
        return cls("progressive", (16, 32, 64, 128, 256, *_TRUNK), latent)

    @property
    def largest(self) -> int:
        """Returns the pixels of the largest images that it reads."""
        return HEAD_SIZE << (len(self.widths) - 1)

    @property
    def has_pose_layer(self) -> bool:
        """Whether the published module has a layer for poses, which nothing calls."""
        return self.published_keys and self.kind != "progressive" and not self.latent


class CoordConv(nn.Module):
    """Convolves an image together with two planes that hold its rows and columns, -1 to 1."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels + 2, out_channels, 3, stride, 1)


class Block(nn.Module):
    """Runs two convolutions beside a shortcut, and halves the size."""

    def __init__(self, in_channels: int, out_channels: int, kind: str):
        super().__init__()
        strided = kind != "progressive"
        stride = 2 if strided else 1
        first: nn.Module
        second: nn.Module
        if kind == "strided":
            first = nn.Conv2d(in_channels, out_channels, 3, 1, 1)
            second = nn.Conv2d(out_channels, out_channels, 3, stride, 1)
        else:
            first, second = CoordConv(in_channels, out_channels, 1), CoordConv(out_channels, out_channels, stride)
        self.pools = not strided
        self.network = nn.Sequential(first, nn.LeakyReLU(SLOPE), second, nn.LeakyReLU(SLOPE))
        self.proj = nn.Conv2d(in_channels, out_channels, 1, stride) if strided or in_channels != out_channels else None
        if strided:
            for layer in (first, second):
                conv = layer.conv if isinstance(layer, CoordConv) else layer
                nn.init.kaiming_normal_(conv.weight, a=SLOPE, nonlinearity="leaky_relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, out, H/2, W/2] for x [N, in, H, W], in x's type."""
        y, short = x, x
        for layer in (self.network[0], self.network[2]):
            y = F.leaky_relu(_convolved(layer, y), SLOPE)
        if self.pools:
            y, short = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        if self.proj is not None:
            short = _convolved(self.proj, short)
        return (y + short) * math.sqrt(0.5)


class Entry(nn.Module):
    """Makes features of an image."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, out_channels, 1), nn.LeakyReLU(SLOPE))

    def forward(self, images: Tensor) -> Tensor:
        """Returns [N, out, R, R] for images [N, 3, R, R]."""
        return F.leaky_relu(_convolved(self.model[0], images), SLOPE)


class Discriminator(base.Discriminator):
    """Judges images of any size that is a power of two, from 4 px to the largest."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config, widths = config, config.widths
        self.layers = nn.ModuleList([Block(inner, outer, config.kind) for inner, outer in itertools.pairwise(widths)])
        self.fromRGB = nn.ModuleList([Entry(width) for width in widths])
        outputs = 1 + (config.latent + ANGLES if config.latent else 0)
        self.final_layer = nn.Conv2d(widths[-1], outputs, HEAD_SIZE)
        if config.has_pose_layer:
            self.pose_layer = nn.Linear(ANGLES, widths[-1])

    def outputs(self, images: Tensor, conditioning: Conditioning, num_groups: int | None = None) -> DiscriminatorOutput:
        """Judges images [N, 3, R, R] in -1..1; of what it is told it heeds the fade alone.

        conditioning.fade: 1 reads the image at its size, 0 at half of it, from every second row and column.
        extras, where the configuration has a latent: "z" [N, latent], and "angles" [N, 2] in radians, from straight
        above and around, see `training.data.poses`. Raises ValueError for a wrong shape.
        """
        size, sizes = images.shape[-1], [HEAD_SIZE << i for i in range(1, len(self.config.widths))]
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != size or size not in sizes:
            legal = " or ".join(map(str, sizes))
            raise ValueError(f"images must have shape [N, 3, R, R] with R = {legal}, got {list(images.shape)}")
        if conditioning.patch is not None:
            raise ValueError("this discriminator sees whole images: no patch")
        full, fade = self.final_layer.weight.dtype, conditioning.fade
        images = images.to(self.low_dtype or full)
        if images.device.type == "cpu" and images.dtype == torch.float32:
            images = images.contiguous(memory_format=torch.channels_last)
        start = len(self.layers) - sizes.index(size) - 1
        x = self.fromRGB[start](images)
        for i, block in enumerate(self.layers[start:]):
            if i == 1 and fade < 1:
                x = fade * x + (1 - fade) * self.fromRGB[start + 1](images[:, :, ::2, ::2])
            x = block(x)
        values = self.final_layer(x.to(full))[:, :, 0, 0]
        if not self.config.latent:
            return DiscriminatorOutput(values)
        logits, z, angles = values.split([1, self.config.latent, ANGLES], dim=1)
        return DiscriminatorOutput(logits, {"z": z, "angles": angles})


def _convolved(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a convolution in x's type, to x and its coordinates where the layer takes them."""
    if isinstance(layer, CoordConv):
        x, layer = torch.cat([x, _coordinates(x)], dim=1), layer.conv
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    convolve = conv2d_reference if x.device.type == "cpu" else conv2d  # no faster there
    return convolve(x, weight, bias, layer.stride[0], int(layer.padding[0]))


def _coordinates(x: Tensor) -> Tensor:
    """Returns rows and columns of x [N, C, H, W], from -1 at the top and the left to 1: [N, 2, H, W]."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:])
    planes = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(x), -1, -1, -1)
    return planes.contiguous(memory_format=torch.channels_last) if _channels_last(x) else planes


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
