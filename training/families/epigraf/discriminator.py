"""Judges patches of images together with where they were cut out, and optionally with camera and class.

The network is StyleGAN2's residual discriminator, named as if it read whole images; its first blocks keep the size of a
patch. Scale and place of the patch modulate every block, and enter the projection (Skorokhodov et al. 2022, EpiGRAF,
section 3.3). Modules and parameters carry the names of the published checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaussian import Cameras
from torch_utils import ops
from training.families.epigraf import patches, poses
from training.networks import base
from training.networks.base import Conditioning, DiscriminatorOutput
from training.networks.discriminator import ConvLayer, Epilogue, ScaledLayers, channel_counts, check_conv_clamp
from training.networks.layers import CAMERA_DIM, FullyConnected, MappingNetwork, scaled_parameters

CAMERA_CODES = {"none": 0, "raw": 2, "fourier": 4 * poses.FREQUENCIES}  # numbers that a camera becomes
ENTRIES = 1001  # of the table of scales and places, in thousandths
TABLE_WIDTH = 256  # numbers of an entry
WAVES = 10  # frequencies of scales and places
PATCH_CODE = 3 * (TABLE_WIDTH + 2 * WAVES)
HYPER_WIDTH = 512  # of the mapping that modulates the blocks, whatever their width


@dataclass(frozen=True)
class DiscriminatorConfig(base.DiscriminatorConfig):
    """Holds everything that a Discriminator is built from. Raises ValueError for values that cannot be built."""

    resolution: int = 512  # pixels of an image: a power of two
    patch_resolution: int = 64  # pixels of a patch: a power of two, 8 or more
    channel_base: int = 16384  # it has so many channels / pixels of an edge,
    channel_max: int = 512  # and at most so many
    mapping_depth: int = 2  # layers of both mappings
    patch_conditioning: bool = True  # tell it scale and place of the patch
    camera: str = "none"  # what it is told of the camera: none, raw (yaw and pitch), fourier (their Fourier features)
    camera_dropout: float = 0.0  # probability in training that one number of the camera's code is withheld
    num_classes: int = 0  # of images; 0: they have none
    minibatch_std_group: int = 4  # samples that share a statistic, and a window
    num_fp16_blocks: int = 4  # blocks that run in float16 when low_dtype is float16; bfloat16 runs in all
    conv_clamp: float | None = 256.0  # bound of activations; keeps float16 finite
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads

    def __post_init__(self) -> None:
        for name, least in (("channel_base", 1), ("channel_max", 1), ("mapping_depth", 1), ("minibatch_std_group", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"discriminator.{name}={getattr(self, name)} must be {least} or more")
        for name in ("resolution", "patch_resolution"):
            value = getattr(self, name)
            if value < 8 or value & (value - 1):
                raise ValueError(f"discriminator.{name}={value} must be a power of two, 8 or more")
        if self.patch_resolution > self.resolution:
            raise ValueError(f"--patch-resolution={self.patch_resolution}: images have {self.resolution} px")
        if min(self.channels) < 1:
            raise ValueError(f"--cbase={self.channel_base} leaves no channel at {self.resolution} px")
        if self.camera not in CAMERA_CODES:
            raise ValueError(f"--disc-camera={self.camera}: legal are {', '.join(CAMERA_CODES)}")
        check_conv_clamp(self.conv_clamp)
        if not 0 <= self.camera_dropout < 1:
            raise ValueError(f"--disc-camera-dropout={self.camera_dropout}: must be 0 or more and less than 1")
        if self.num_classes < 0:
            raise ValueError(f"discriminator.num_classes={self.num_classes}: must be 0 or more")

    @property
    def channels(self) -> tuple[int, ...]:
        """Returns the features at resolution, resolution/2, ..., 4."""
        return channel_counts(self.resolution, self.channel_base, self.channel_max)

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        """Returns the sizes that the blocks are named after: resolution, resolution/2, ..., 8."""
        return tuple(self.resolution >> i for i in range(int(math.log2(self.resolution)) - 2))

    @property
    def flat_blocks(self) -> int:
        """Returns how many of the first blocks keep the size."""
        return int(math.log2(self.resolution // self.patch_resolution))

    @property
    def condition_dim(self) -> int:
        """Returns how many numbers the projection is told."""
        patch = PATCH_CODE if self.patch_conditioning else 0
        return self.num_classes + patch + CAMERA_CODES[self.camera]

    @property
    def num_freezable(self) -> int:
        """Counts the layers that Freeze-D can hold."""
        return (4 if self.published_keys else 3) * len(self.block_resolutions) + (0 if self.published_keys else 1)


class Waves(nn.Module):
    """Holds frequencies pi 2^k / period, k = 0, 1, ..., as published checkpoints do."""

    def __init__(self, count: int, period: float):
        super().__init__()
        self.fourier_encoder = nn.Module()
        self.fourier_encoder.register_buffer("fourier_coefs", 2.0 ** torch.arange(count) * (math.pi / period))

    @property
    def frequencies(self) -> Tensor:
        """Returns the frequencies [K]."""
        return self.fourier_encoder.get_buffer("fourier_coefs")


class ScalarCode(Waves):
    """Encodes numbers in 0..1: sines and cosines at ten frequencies, and the learnt entry of the nearest thousandth."""

    def __init__(self) -> None:
        super().__init__(WAVES, 2.0**WAVES)
        self.const_embed = nn.Embedding(ENTRIES, TABLE_WIDTH)

    def forward(self, values: Tensor) -> Tensor:
        """Returns [N, 276 C] for values [N, C]."""
        thousandths = values * (ENTRIES - 1)
        waves = poses.fourier(thousandths, self.frequencies).unflatten(1, (values.shape[1], -1))  # [N, C, 20]
        entries = self.const_embed(thousandths.round().long().clamp(0, ENTRIES - 1))  # [N, C, 256]
        return torch.cat([waves, entries], dim=-1).flatten(1)


class HeadMapping(MappingNetwork):
    """Maps what the projection is told; holds the frequencies of the camera's code where that is a Fourier one."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__(0, config.condition_dim, config.channels[-1], config.mapping_depth)
        if config.camera == "fourier":
            self.camera_scalar_enc = Waves(poses.FREQUENCIES, poses.PERIOD)


class ModulatedConvLayer(ConvLayer):
    """Convolves features whose channels are scaled by 1 + tanh of an affine function of the patch."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, modulated: bool, **options: Any):
        super().__init__(in_channels, out_channels, kernel_size, **options)
        if modulated:
            self.affine = FullyConnected(HYPER_WIDTH, in_channels)

    def modulate(self, x: Tensor, hyper: Tensor | None) -> Tensor:
        """Returns x [N, C, H, W] scaled for hyper [N, 512]; as it is without."""
        return x if hyper is None else x * (1 + self.affine(hyper).tanh())[:, :, None, None].to(x.dtype)


class Block(nn.Module):
    """Runs two convolutions beside a skip; the first block also reads the image, and later ones may halve the size."""

    def __init__(self, inner: int, outer: int, first: bool, down: bool, config: DiscriminatorConfig):
        super().__init__()
        clamp, keys = config.conv_clamp, config.published_keys
        if keys:
            self.register_buffer("resample_filter", ops.fir_filter())
        self.first = first
        if first or keys:  # published blocks all have one, of which the first alone is read
            self.fromrgb = ConvLayer(3, inner, 1, clamp=clamp, filter_key=keys)
        self.conv0 = ConvLayer(inner, inner, 3, clamp=clamp, filter_key=keys)
        gain = math.sqrt(0.5)  # keeps the variance of the sum
        told = config.patch_conditioning
        self.conv1 = ModulatedConvLayer(inner, outer, 3, told, down=down, gain=gain, clamp=clamp, filter_key=keys)
        self.skip = ConvLayer(inner, outer, 1, bias=False, activate=False, down=down, gain=gain, filter_key=keys)

    def layers(self) -> list[ConvLayer]:
        """Returns the convolutions in the order in which they run."""
        return [*([self.fromrgb] if self.first else []), self.conv0, self.conv1, self.skip]

    def forward(self, x: Tensor, hyper: Tensor | None, scaled: ScaledLayers) -> Tensor:
        """Returns features of the block's result for x [N, in or 3, H, W] and hyper [N, 512]."""
        if self.first:
            x = self.fromrgb(x, scaled[self.fromrgb])
        skipped = self.skip(x, scaled[self.skip])
        inside = self.conv1.modulate(self.conv0(x, scaled[self.conv0]), hyper)
        return skipped.add_(self.conv1(inside, scaled[self.conv1]))


class Discriminator(base.Discriminator):
    """Judges patches by window, camera and class; its logits are large for real."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        channels = config.channels
        if config.patch_conditioning:
            self.scalar_enc = ScalarCode()
            self.hyper_mod_mapping = MappingNetwork(0, PATCH_CODE, HYPER_WIDTH, config.mapping_depth)
        for i, size in enumerate(config.block_resolutions):
            down = i >= config.flat_blocks
            self.add_module(f"b{size}", Block(channels[i], channels[i + 1], i == 0, down, config))
        if config.condition_dim:
            self.head_mapping = HeadMapping(config)
        width = channels[-1] if config.condition_dim else 1
        self.b4 = Epilogue(channels[-1], width, config.conv_clamp, config.published_keys)

    def freezable(self) -> list[nn.Module]:
        """Returns the layers in the order in which Freeze-D (Mo et al. 2020) counts them: from the image downwards."""
        blocks = [getattr(self, f"b{size}") for size in self.config.block_resolutions]
        return [layer for block in blocks for _, layer in block.named_children()]

    def num_groups(self, count: int) -> int:
        """Returns the minibatch-std groups among `count` samples. Raises ValueError if they do not divide evenly."""
        size = min(self.config.minibatch_std_group, count)
        if count % size:
            raise ValueError(f"{count} samples are not a multiple of minibatch_std_group={size}")
        return count // size

    def outputs(self, images: Tensor, conditioning: Conditioning, num_groups: int | None = None) -> DiscriminatorOutput:
        """Judges patches [N, 3, r, r] in -1..1 by their windows; without windows whole images [N, 3, R, R].

        Of a whole image the points of a patch that shows all of it are read. conditioning.patch: [N, 3], see `patches`.
        conditioning.dropout: [N, `CAMERA_CODES`], factors on the code of the camera.
        Raises ValueError for a wrong shape, and if N is not a multiple of the groups.
        """
        config = self.config
        images, windows = self._patches(images, conditioning.patch)
        labels = conditioning.labels
        if labels.shape != (len(images), CAMERA_DIM):
            raise ValueError(f"labels must have shape [{len(images)}, {CAMERA_DIM}], got {list(labels.shape)}")
        groups = self.num_groups(len(images)) if num_groups is None else num_groups
        if len(images) % groups:
            raise ValueError(f"{len(images)} samples cannot be split into num_groups={groups}")
        full = self.b4.out.weight.dtype
        hyper = code = None
        if config.patch_conditioning:
            code = self.scalar_enc(windows.to(full))
            hyper = self.hyper_mod_mapping(camera=code)
        scaled, x = self._scaled(), images
        for i, size in enumerate(config.block_resolutions):
            dtype = self.block_dtype(i)
            # Channels last suits low precision everywhere, and on CPUs float32 too (a third less time).
            suits = dtype != full or (x.device.type == "cpu" and dtype == torch.float32)
            layout = torch.channels_last if suits else torch.contiguous_format
            x = self.get_submodule(f"b{size}")(x.to(dtype, memory_format=layout), hyper, scaled)
        x = x.to(full, memory_format=torch.contiguous_format)
        return DiscriminatorOutput(self.b4(x, self.projection(conditioning, code, x), groups, scaled))

    def _patches(self, images: Tensor, windows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns patches and their windows. Raises ValueError for a wrong shape."""
        config, shape = self.config, tuple(images.shape)
        small, whole = ((len(images), 3, size, size) for size in (config.patch_resolution, config.resolution))
        if windows is not None and windows.shape != (len(images), 3):
            raise ValueError(f"patches must be [{len(images)}, 3], got {list(windows.shape)}")
        if shape != small and (windows is not None or shape != whole):
            sides = f"{config.patch_resolution} px" + ("" if windows is not None else f" or {config.resolution} px")
            raise ValueError(f"images must have shape [N, 3, R, R] with R = {sides}, got {list(shape)}")
        if windows is not None:
            return images, windows
        windows = images.new_zeros(len(images), 3)
        windows[:, 0] = 1.0
        return (images if shape == small else patches.cut(images, windows, config.patch_resolution)), windows

    def projection(self, told: Conditioning, code: Tensor | None, like: Tensor) -> Tensor:
        """Returns what the last features are compared with, [N, C] in the type of `like`; a 1 if nothing is told."""
        config = self.config
        if not config.condition_dim:
            return like.new_ones(len(like), 1)
        parts = []
        if config.num_classes:
            if told.classes is None:
                raise ValueError("this discriminator is told the classes of its images")
            parts.append(nn.functional.one_hot(told.classes, config.num_classes).to(like))
        if code is not None:
            parts.append(code)
        if config.camera != "none":
            camera = poses.camera_code(poses.angles_of(Cameras.from_labels(told.labels.to(like)).positions))
            if config.camera == "fourier":
                camera = poses.fourier(camera * poses.PERIOD, self.head_mapping.camera_scalar_enc.frequencies)
            parts.append(camera if told.dropout is None else camera * told.dropout.to(like))
        projected: Tensor = self.head_mapping(camera=torch.cat(parts, dim=1))
        return projected

    def block_dtype(self, index: int) -> torch.dtype:
        """Returns the type of block `index`, 0 at the full resolution: float16 only in the first num_fp16_blocks."""
        full = self.b4.out.weight.dtype
        if self.low_dtype is None or (self.low_dtype == torch.float16 and index >= self.config.num_fp16_blocks):
            return full
        return self.low_dtype

    def _scaled(self) -> ScaledLayers:
        """Scales and casts the weights of all blocks, each to its type: a few kernels for all."""
        full = self.b4.out.weight.dtype
        layers: list[tuple] = [(layer, full) for layer in (self.b4.conv, self.b4.fc, self.b4.out)]
        for i, size in enumerate(self.config.block_resolutions):
            layers += [(layer, self.block_dtype(i)) for layer in getattr(self, f"b{size}").layers()]
        return dict(zip((layer for layer, _ in layers), scaled_parameters(layers), strict=True))


def dropped(draws: Tensor, probability: float) -> Tensor:
    """Returns factors for draws [N, K], uniform in 0..1: 0 where a draw is below the probability, else 1 / (1 - p)."""
    return (draws >= probability).to(draws.dtype) / (1 - probability)
