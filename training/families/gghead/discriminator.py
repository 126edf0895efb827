"""Builds the discriminator of GGHead: StyleGAN2's, which grows by blocks on top that fade in.

A block for a higher resolution reads the image at its size through a FromRGB of its own, adds the features of the block
above, and hands two convolutions' result down, times the fade. Its last weights start at 0, so that the grown network
starts as the old one looking at the smaller image. Source: Kirschstein et al. 2024 (GGHead).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_utils import ops
from training.networks import discriminator as stylegan2
from training.networks.base import Conditioning, DiscriminatorOutput
from training.networks.discriminator import ConvLayer, DiscriminatorBlock, Epilogue, ScaledLayers
from training.networks.layers import CAMERA_DIM


@dataclass(frozen=True)
class DiscriminatorConfig(stylegan2.DiscriminatorConfig):
    """Adds to StyleGAN2's discriminator the size from which it grows, and what it sees."""

    first_resolution: int = 0  # pixels of the images that it starts with; 0: `resolution`, it does not grow
    image_channels: int = 3  # of the images: RGB, and whatever else is shown
    refade: bool = False  # fade all grown blocks with the newest one, as published; otherwise that one alone
    pose_conditioning: bool = True  # judge images by their cameras; otherwise alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_channels < 3:
            raise ValueError(f"discriminator.image_channels={self.image_channels} must be 3 or more")
        if self.first_resolution and self.first_resolution not in self.block_resolutions:
            legal = ", ".join(map(str, self.block_resolutions))
            raise ValueError(f"discriminator.first_resolution={self.first_resolution}: legal are {legal}")

    @property
    def reads_cameras(self) -> bool:
        """Tells whether anything in the network follows the cameras of images."""
        return self.pose_conditioning and super().reads_cameras

    @property
    def starts_at(self) -> int:
        """Returns the pixels of the images that it starts with."""
        return self.first_resolution or self.resolution


class GrownBlock(nn.Module):
    """Runs two convolutions without a skip and halves the size; the second starts at 0."""

    def __init__(self, in_channels: int, out_channels: int, image_channels: int, clamp: float | None, filter_key: bool):
        super().__init__()
        if filter_key:
            self.register_buffer("resample_filter", ops.fir_filter())
        layer = functools.partial(ConvLayer, clamp=clamp, filter_key=filter_key)
        self.fromrgb = layer(image_channels, in_channels, 1)
        self.conv0 = layer(in_channels, in_channels, 3)
        self.conv1 = layer(in_channels, out_channels, 3, down=True)
        nn.init.zeros_(self.conv1.weight)

    def layers(self) -> list[ConvLayer]:
        """Returns the convolutions in the order in which they run."""
        return [self.fromrgb, self.conv0, self.conv1]

    def convolve(self, x: Tensor, scaled: ScaledLayers) -> Tensor:
        """Returns [N, out, H/2, W/2] for features x [N, in, H, W]; scaled: weights and biases of `layers`."""
        result: Tensor = self.conv1(self.conv0(x, scaled[self.conv0]), scaled[self.conv1])
        return result


class Discriminator(stylegan2.Discriminator):
    """Judges images of any size from `starts_at` to `resolution` by their camera labels."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig):
        nn.Module.__init__(self)
        self.config = config
        clamp, keys = config.conv_clamp, config.published_keys
        if keys:
            self.register_buffer("resample_filter", ops.fir_filter())
        for i, resolution in enumerate(config.block_resolutions):
            inner, outer = config.channels[i : i + 2]
            if resolution > config.starts_at:
                block: nn.Module = GrownBlock(inner, outer, config.image_channels, clamp, keys)
            else:
                first = resolution == config.starts_at
                block = DiscriminatorBlock(inner, outer, first, clamp, keys, config.image_channels)
            self.add_module(f"b{resolution}", block)
        if config.pose_conditioning:
            self.mapping = self.camera_mapping()
        self.b4 = Epilogue(config.channels[-1], config.embedding_dim if config.pose_conditioning else 1, clamp, keys)

    def outputs(self, images: Tensor, conditioning: Conditioning, num_groups: int | None = None) -> DiscriminatorOutput:
        """Judges images [N, C, r, r] in -1..1 by their labels [N, 25].

        The blocks above r px take no part. conditioning.fade weighs what the newest block, for r px, hands down.
        num_groups: minibatch-std groups; by default N / min(minibatch_std_group, N).
        Raises ValueError for a wrong shape, and if N is not a multiple of the groups.
        """
        config, labels = self.config, conditioning.labels
        sizes = [size for size in config.block_resolutions if size >= config.starts_at]
        if images.ndim != 4 or images.shape[1] != config.image_channels or images.shape[2] not in sizes:
            legal = " or ".join(map(str, sizes))
            raise ValueError(
                f"images must have shape [N, {config.image_channels}, R, R] with R = {legal}, got {list(images.shape)}"
            )
        if labels.shape != (len(images), CAMERA_DIM):
            raise ValueError(f"labels must have shape [{len(images)}, {CAMERA_DIM}], got {list(labels.shape)}")
        if conditioning.patch is not None:
            raise ValueError("this discriminator sees whole images: no patch")
        groups = self.num_groups(len(images)) if num_groups is None else num_groups
        if len(images) % groups:
            raise ValueError(f"{len(images)} samples cannot be split into num_groups={groups}")
        full, size = self.b4.out.weight.dtype, images.shape[-1]
        scaled = self.scaled_layers([r for r in config.block_resolutions if r <= size])
        x = self._features(images, conditioning.fade, scaled).to(full, memory_format=torch.contiguous_format)
        if not config.pose_conditioning:
            return DiscriminatorOutput(self.b4(x, x.new_ones(len(x), 1), groups, scaled))
        return DiscriminatorOutput(self.b4(x, self.embedding(labels.to(full)), groups, scaled))

    def _features(self, images: Tensor, fade: float, scaled: ScaledLayers) -> Tensor:
        """Returns the features [N, C, 4, 4] in the type of the last block."""
        config, size, full = self.config, images.shape[-1], self.b4.out.weight.dtype
        x: Tensor | None = None
        block: Any
        for i, resolution in enumerate(r for r in config.block_resolutions if r <= size):
            dtype = self.block_dtype(i)
            # Channels last suits low precision everywhere, and on CPUs float32 too (a third less time).
            suits = dtype != full or (images.device.type == "cpu" and dtype == torch.float32)
            layout = torch.channels_last if suits else torch.contiguous_format
            block = self.get_submodule(f"b{resolution}")
            if resolution >= config.starts_at:
                seen = block.fromrgb(images.to(dtype, memory_format=layout), scaled[block.fromrgb])
                x = seen if x is None else x.to(dtype) + seen
            assert x is not None
            x = block.convolve(x.to(dtype, memory_format=layout), scaled)
            if resolution > config.starts_at:
                images = ops.downsample(images)
                x = x * fade if fade != 1 and (resolution == size or config.refade) else x
        assert x is not None
        return x
