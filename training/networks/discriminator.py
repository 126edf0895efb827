"""Builds the residual discriminator of StyleGAN2, conditioned on the camera label by projection.

Sources: Karras et al. 2020 (StyleGAN2), Miyato and Koyama 2018 (projection), Chan et al. 2022 (EG3D: camera labels).
Modules and parameters carry the names of the published CGS-GAN checkpoints, so that published weights load as they are.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from torch_utils import block_ops, convolution, native_ops, ops
from training.networks import base
from training.networks.base import Conditioning, DiscriminatorOutput
from training.networks.camera_code import MOST_OCTAVES, code_dim, with_direction
from training.networks.layers import CAMERA_DIM, FullyConnected, MappingNetwork, WeightAndBias, scaled_parameters

FINAL_RESOLUTION = 4
PUBLISHED_RESOLUTIONS = (256, 512, 1024, 2048)
PUBLISHED_CLAMP = 256.0  # of activations


def channel_counts(resolution: int, base: int = 32768, maximum: int = 512) -> tuple[int, ...]:
    """Returns the channels at resolution, resolution/2, ..., 4: base / size, at most `maximum`, as in StyleGAN2."""
    sizes = [resolution >> i for i in range(int(math.log2(resolution // FINAL_RESOLUTION)) + 1)]
    return tuple(min(base // size, maximum) for size in sizes)


def check_conv_clamp(bound: float | None) -> None:
    """Raises ValueError for a bound of activations that is not above 0 and finite; None bounds nothing."""
    if bound is not None and not 0 < bound < math.inf:
        raise ValueError(f"discriminator.conv_clamp={bound}: legal are numbers above 0, and none")


@dataclass(frozen=True)
class DiscriminatorConfig(base.DiscriminatorConfig):
    """Holds everything that a Discriminator is built from. Raises ValueError for values that cannot be built."""

    resolution: int  # pixels of an image: a power of two, 8 or more
    channels: tuple[int, ...]  # features at resolution, resolution/2, ..., 4
    embedding_dim: int = 512  # numbers that the camera label becomes
    mapping_depth: int = 8  # layers of the camera mapping; 0: the logit does not depend on the camera
    direction_octaves: int = 0  # of the direction of view that it is told beside the label, see camera_code.py
    minibatch_std_group: int = 4  # samples that share a statistic; 1 turns it off (then it is a constant)
    num_fp16_blocks: int = 4  # blocks that run in float16 when low_dtype is float16; bfloat16 runs in all
    conv_clamp: float | None = None  # bound of activations; keeps float16 finite (published: 256, in every type)
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads

    def __post_init__(self) -> None:
        for name, least in (("embedding_dim", 1), ("mapping_depth", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"discriminator.{name}={getattr(self, name)} must be {least} or more")
        if not self.mapping_depth and self.embedding_dim != 1:
            raise ValueError(f"discriminator.embedding_dim={self.embedding_dim} must be 1 without a camera mapping")
        if not 0 <= self.direction_octaves <= MOST_OCTAVES:
            raise ValueError(
                f"discriminator.direction_octaves={self.direction_octaves} must be 0 or more, at most {MOST_OCTAVES}"
            )
        if self.direction_octaves and not self.reads_cameras:
            raise ValueError(
                f"discriminator.direction_octaves={self.direction_octaves}: nothing reads the camera; must be 0"
            )
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution={self.resolution} must be a power of two, 8 or more")
        if len(self.channels) != len(self.block_resolutions) + 1:
            raise ValueError(
                f"channels {self.channels} must have {len(self.block_resolutions) + 1} entries, for resolution "
                f"{self.resolution} and its halves down to {FINAL_RESOLUTION}"
            )
        check_conv_clamp(self.conv_clamp)
        if min(self.channels) < 1 or self.num_fp16_blocks < 0:
            raise ValueError(
                f"discriminator.channels={self.channels} must be 1 or more, and num_fp16_blocks="
                f"{self.num_fp16_blocks} 0 or more"
            )
        if self.minibatch_std_group < 1:
            raise ValueError(f"minibatch_std_group={self.minibatch_std_group} must be 1 or more")

    @property
    def reads_cameras(self) -> bool:
        """Tells whether anything in the network follows the cameras of images."""
        return self.mapping_depth > 0

    @classmethod
    def published(cls, resolution: int) -> Self:
        """Returns the published discriminator for 256, 512, 1024 or 2048 pixels."""
        if resolution not in PUBLISHED_RESOLUTIONS:
            raise ValueError(
                f"no published discriminator for resolution {resolution}; legal are {list(PUBLISHED_RESOLUTIONS)}"
            )
        return cls(resolution=resolution, channels=channel_counts(resolution), conv_clamp=PUBLISHED_CLAMP)

    @classmethod
    def sized(cls, resolution: int, channel_base: int, channel_max: int, mapping_depth: int) -> Self:
        """Returns one of our own: channel_base / size channels at each size, at most channel_max.

        It has no clamp, which guards float16's range in the published networks, and no tensors that no formula reads.
        """
        channels = channel_counts(resolution, channel_base, channel_max)
        return cls(resolution, channels, channels[-1], mapping_depth, conv_clamp=None, published_keys=False)

    @property
    def num_freezable(self) -> int:
        """Counts the layers that Freeze-D can hold: three per block, and the one that reads the image."""
        return 3 * len(self.block_resolutions) + 1

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        """Returns the input sizes of the blocks: resolution, resolution/2, ..., 8."""
        return tuple(self.resolution >> i for i in range(int(math.log2(self.resolution)) - 2))

    @property
    def channel_base(self) -> int:
        """Returns the `base` of `channel_counts`, as far as the channels tell."""
        return self.channels[0] * self.resolution

    @property
    def channel_max(self) -> int:
        """Returns the `maximum` of `channel_counts`, as far as the channels tell."""
        return max(self.channels)

    @classmethod
    def field_types(cls) -> dict[str, Any]:
        """Returns the types of the fields, and of `channel_base` and `channel_max`, by name."""
        return super().field_types() | {"channel_base": int, "channel_max": int}

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values.

        `channel_base` and `channel_max` set channels and embedding_dim by `channel_counts`, and num_fp16_blocks sets
        conv_clamp: float16 needs it, and without float16 the published code has none. What follows from a value can
        be given beside it. Raises ValueError for values that leave no channel.
        """
        follows: dict[str, Any] = {}
        if "channel_base" in values or "channel_max" in values:
            own_base, own_max = self.channel_base, self.channel_max
            channel_base, channel_max = values.pop("channel_base", own_base), values.pop("channel_max", own_max)
            resolution = values.get("resolution", self.resolution)
            channels = channel_counts(resolution, channel_base, channel_max)
            if min(channels) < 1:
                raise ValueError(f"--cbase={channel_base} leaves no channel at {resolution} px")
            follows |= {"channels": channels, "embedding_dim": channels[-1] if self.mapping_depth else 1}
        if "num_fp16_blocks" in values:
            follows["conv_clamp"] = PUBLISHED_CLAMP if values["num_fp16_blocks"] else None
        return super().changed(**follows | values)


class ConvLayer(nn.Module):
    """Convolves with equalised learning rate; may halve the size, and may end in a leaky ReLU and a clamp."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,  # 1 or 3
        *,
        bias: bool = True,
        activate: bool = True,
        down: bool = False,
        clamp: float | None = None,
        gain: float = 1.0,  # multiplies result and clamp
        filter_key: bool = False,  # own the (constant) resampling filter as published checkpoints do
    ):
        super().__init__()
        self.activate, self.down, self.gain = activate, down, gain
        self.clamp = None if clamp is None else clamp * gain
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        if filter_key:
            self.register_buffer("resample_filter", ops.fir_filter())

    def gains(self) -> tuple[float, float]:
        """Returns the factors of weight and bias."""
        # A positive gain passes through the leaky ReLU, so all gains go into the weights.
        gain = self.gain * ops.LRELU_GAIN if self.activate else self.gain
        return self.weight_gain * gain, gain

    def forward(self, x: Tensor, scaled: WeightAndBias | None = None) -> Tensor:
        """Returns [N, out, H, W], or half of H and W, for x [N, in, H, W].

        scaled: weight and bias as `scaled_parameters` made them in x's type.
        """
        weight, bias = scaled or scaled_parameters([(self, x.dtype)])[0]
        stride, padding = 1, self.padding
        if self.down and self.weight.shape[-1] == 1:
            x = ops.downsample(x)
        elif self.down:
            x, stride, padding = ops.blur(x, padding=2), 2, 0
        if not self.activate:
            return convolution.conv2d(x, weight, bias, stride, padding)
        return ops.conv2d_lrelu(x, weight, bias, self.clamp, stride, padding)


ScaledLayers = Mapping[nn.Module, WeightAndBias | None]  # what `scaled_parameters` returns, by layer


class DiscriminatorBlock(nn.Module):
    """Runs two convolutions beside a skip and halves the size; the first block also reads the image."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        from_image: bool,
        clamp: float | None,
        filter_key: bool,
        image_channels: int = 3,
    ):
        super().__init__()
        if filter_key:
            self.register_buffer("resample_filter", ops.fir_filter())
        layer = functools.partial(ConvLayer, clamp=clamp, filter_key=filter_key)
        if from_image:
            self.fromrgb = layer(image_channels, in_channels, 1)
        self.conv0 = layer(in_channels, in_channels, 3)
        gain = math.sqrt(0.5)  # keeps the variance of the sum
        self.conv1 = layer(in_channels, out_channels, 3, down=True, gain=gain)
        self.skip = ConvLayer(
            in_channels, out_channels, 1, bias=False, activate=False, down=True, gain=gain, filter_key=filter_key
        )

    def layers(self) -> list[ConvLayer]:
        """Returns the convolutions in the order in which they run."""
        first = [self.fromrgb] if hasattr(self, "fromrgb") else []
        return [*first, self.conv0, self.conv1, self.skip]

    def forward(self, x: Tensor, scaled: ScaledLayers | None = None) -> Tensor:
        """Returns [N, out, H/2, W/2] for x [N, in or 3, H, W]; scaled: weights and biases of `layers`, in x's type."""
        if scaled is None:
            scaled = dict.fromkeys(self.layers())
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x, scaled[self.fromrgb])
        return self.convolve(x, scaled)

    def convolve(self, x: Tensor, scaled: ScaledLayers) -> Tensor:
        """Returns [N, out, H/2, W/2] for features x [N, in, H, W]."""
        if native_ops.usable(x):
            return self._convolve_on_cpu(x, scaled)
        skipped = self.skip(x, scaled[self.skip])
        return skipped.add_(self.conv1(self.conv0(x, scaled[self.conv0]), scaled[self.conv1]))

    def _convolve_on_cpu(self, x: Tensor, scaled: ScaledLayers) -> Tensor:
        """Computes the same in fewer passes over the images: each activation goes with what follows it."""
        (weight0, bias0), (weight1, bias1), (weight, _) = (
            scaled[layer] or scaled_parameters([(layer, x.dtype)])[0] for layer in (self.conv0, self.conv1, self.skip)
        )
        x, half = block_ops.with_downsample(x)
        y = block_ops.lrelu_clamp_blur(convolution.conv2d(x, weight0, bias0, padding=1), self.conv0.clamp, padding=2)
        y = convolution.conv2d(y, weight1, bias1, stride=2)
        return block_ops.lrelu_clamp_add(y, convolution.conv2d(half, weight), self.conv1.clamp)


def minibatch_std(x: Tensor, num_groups: int) -> Tensor:
    """Appends a channel: the standard deviation over a group of samples, averaged over features and pixels.

    x [N, C, H, W] becomes [N, C+1, H, W]. Group m is the samples m, m + num_groups, m + 2 num_groups, ...
    """
    grouped = x.unflatten(0, (-1, num_groups))  # [members, groups, C, H, W]
    variance = (grouped - grouped.mean(dim=0)).square().mean(dim=0)
    statistic = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [groups]
    statistic = statistic.repeat(len(x) // num_groups)[:, None, None, None]
    return torch.cat([x, statistic.expand(-1, 1, *x.shape[2:])], dim=1)


class Epilogue(nn.Module):
    """Makes logits from 4x4 features and the camera embedding."""

    def __init__(self, channels: int, embedding_dim: int, clamp: float | None, filter_key: bool):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.conv = ConvLayer(channels + 1, channels, 3, clamp=clamp, filter_key=filter_key)
        self.fc = FullyConnected(channels * FINAL_RESOLUTION**2, channels, "lrelu")
        self.out = FullyConnected(channels, embedding_dim)

    def forward(self, x: Tensor, embedding: Tensor, num_groups: int, scaled: ScaledLayers | None = None) -> Tensor:
        """Returns logits [N, 1] for x [N, C, 4, 4] and embedding [N, embedding_dim]; scaled: of conv, fc and out."""
        if scaled is None:
            scaled = dict.fromkeys((self.conv, self.fc, self.out))
        x = self.conv(minibatch_std(x, num_groups), scaled[self.conv])
        x = self.out(self.fc(x.flatten(1), scaled=scaled[self.fc]), scaled=scaled[self.out])
        return (x * embedding).sum(dim=1, keepdim=True) / math.sqrt(self.embedding_dim)


class Discriminator(base.Discriminator):
    """Judges images by their camera labels; its logits are large for real."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        clamp, keys = config.conv_clamp, config.published_keys
        for i, resolution in enumerate(config.block_resolutions):
            inner, outer = config.channels[i : i + 2]
            self.add_module(f"b{resolution}", DiscriminatorBlock(inner, outer, i == 0, clamp, keys))
        if keys:  # published checkpoints hold a second last block whose result is thrown away; here it never runs
            inner, outer = config.channels[-2:]
            self.b8_pose = DiscriminatorBlock(inner, outer, False, clamp, keys)
        if config.mapping_depth:
            self.mapping = self.camera_mapping()
        self.b4 = Epilogue(config.channels[-1], config.embedding_dim, clamp, keys)

    def camera_mapping(self) -> MappingNetwork:
        """Returns a new mapping of what `embedding` tells it."""
        config = self.config
        return MappingNetwork(0, code_dim(config.direction_octaves), config.embedding_dim, config.mapping_depth)

    def embedding(self, labels: Tensor) -> Tensor:
        """Returns the embedding [N, embedding_dim] of camera labels [N, 25]."""
        y: Tensor = self.mapping(camera=with_direction(labels, self.config.direction_octaves))
        return y

    def freezable(self) -> list[nn.Module]:
        """Returns the layers in the order in which Freeze-D (Mo et al. 2020) counts them: from the image downwards."""
        blocks = [getattr(self, f"b{resolution}") for resolution in self.config.block_resolutions]
        return [layer for block in blocks for _, layer in block.named_children()]

    def num_groups(self, count: int) -> int:
        """Returns the minibatch-std groups among `count` samples. Raises ValueError if they do not divide evenly."""
        size = min(self.config.minibatch_std_group, count)
        if count % size:
            raise ValueError(f"{count} samples are not a multiple of minibatch_std_group={size}")
        return count // size

    def block_dtype(self, index: int) -> torch.dtype:
        """Returns the type of block `index`, 0 at the full resolution: float16 only in the first num_fp16_blocks."""
        full = self.b4.out.weight.dtype
        if self.low_dtype is None or (self.low_dtype == torch.float16 and index >= self.config.num_fp16_blocks):
            return full
        return self.low_dtype

    def outputs(self, images: Tensor, conditioning: Conditioning, num_groups: int | None = None) -> DiscriminatorOutput:
        """Judges images [N, 3, R, R] in -1..1 by their labels [N, 25]; patches and fades are not for this network.

        num_groups: minibatch-std groups; by default N / min(minibatch_std_group, N). With V views of each scene in
            scene-major order it must be a multiple of V for a group to hold different scenes of one view.
        Raises ValueError for a wrong shape, and if N is not a multiple of the groups.
        """
        size, labels = self.config.resolution, conditioning.labels
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images must have shape [N, 3, {size}, {size}], got {list(images.shape)}")
        if labels.shape != (len(images), CAMERA_DIM):
            raise ValueError(f"labels must have shape [{len(images)}, {CAMERA_DIM}], got {list(labels.shape)}")
        if conditioning.patch is not None or conditioning.fade != 1:
            raise ValueError("this discriminator sees whole images and does not grow: no patch, and fade=1")
        groups = self.num_groups(len(images)) if num_groups is None else num_groups
        if len(images) % groups:
            raise ValueError(f"{len(images)} samples cannot be split into num_groups={groups}")
        scaled = self.scaled_layers(self.config.block_resolutions)
        x = images
        for i in range(len(self.config.block_resolutions) - 1):
            x = self.run_block(i, x, scaled)
        logits = self.logits(self.run_block(-1, x, scaled), labels, groups, scaled)
        return DiscriminatorOutput(logits, self.extras(x, labels, scaled))

    def run_block(self, index: int, x: Tensor, scaled: ScaledLayers, name: str | None = None) -> Tensor:
        """Returns the output of block `index`, or of the one called `name` that stands in its place."""
        index %= len(self.config.block_resolutions)
        dtype, full = self.block_dtype(index), self.b4.out.weight.dtype
        # Channels last suits low precision everywhere, and on CPUs float32 too (a third less time).
        suits = dtype != full or (x.device.type == "cpu" and dtype == torch.float32)
        layout = torch.channels_last if suits else torch.contiguous_format
        block = getattr(self, name or f"b{self.config.block_resolutions[index]}")
        y: Tensor = block(x.to(dtype, memory_format=layout), scaled)
        return y

    def logits(self, x: Tensor, labels: Tensor, num_groups: int, scaled: ScaledLayers) -> Tensor:
        """Returns logits [N, 1] of 4x4 features x [N, C, 4, 4]."""
        full = self.b4.out.weight.dtype
        x = x.to(full, memory_format=torch.contiguous_format)
        embedding = self.embedding(labels.to(full)) if self.config.mapping_depth else x.new_ones(())
        y: Tensor = self.b4(x, embedding, num_groups, scaled)
        return y

    def extras(self, x: Tensor, labels: Tensor, scaled: ScaledLayers) -> dict[str, Tensor]:
        """Returns further outputs by name, from the input x [N, C, 8, 8] of the last block; here there are none."""
        return {}

    def scaled_layers(self, resolutions: Sequence[int]) -> ScaledLayers:
        """Scales and casts the weights of the blocks for some resolutions, and of the last one, each to its type."""
        full = self.b4.out.weight.dtype
        layers: list[tuple[Any, torch.dtype]] = [(layer, full) for layer in (self.b4.conv, self.b4.fc, self.b4.out)]
        for i, resolution in enumerate(resolutions):
            layers += [(layer, self.block_dtype(i)) for layer in getattr(self, f"b{resolution}").layers()]
        return dict(zip((layer for layer, _ in layers), scaled_parameters(layers), strict=True))
