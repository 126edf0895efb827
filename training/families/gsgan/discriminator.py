"""Adds to StyleGAN2's discriminator what GSGAN's says of the pose: an embedding of the image, and one of a camera.

The logit does not depend on the camera. That image and camera belong together is learnt by contrast (objective.py).
Source: Hyun and Heo 2024 (GSGAN). Modules and parameters carry the names of the published checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from training.networks import discriminator as stylegan2
from training.networks.camera_code import code_dim, with_direction
from training.networks.discriminator import (
    FINAL_RESOLUTION,
    PUBLISHED_CLAMP,
    DiscriminatorBlock,
    ScaledLayers,
    channel_counts,
)
from training.networks.layers import FullyConnected, scaled_parameters

PUBLISHED_RESOLUTIONS = (256, 512)


@dataclass(frozen=True)
class DiscriminatorConfig(stylegan2.DiscriminatorConfig):
    """Holds everything that a Discriminator is built from. Raises ValueError for values that cannot be built."""

    embedding_dim: int = 1  # of the camera in the logit: there is none
    mapping_depth: int = 0  # likewise
    pose_width: int = 512  # hidden features of both pose embeddings
    pose_features: int = 64  # numbers of both pose embeddings

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mapping_depth:
            raise ValueError(
                f"discriminator.mapping_depth={self.mapping_depth}: the logit here follows no camera; must be 0"
            )
        for name in ("pose_width", "pose_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"discriminator.{name}={getattr(self, name)} must be 1 or more")

    @property
    def reads_cameras(self) -> bool:
        """Tells whether anything in the network follows the cameras of images: the pose's embedding does."""
        return True

    @classmethod
    def published(cls, resolution: int) -> Self:
        """Returns the published discriminator for 256 or 512 pixels."""
        if resolution not in PUBLISHED_RESOLUTIONS:
            raise ValueError(
                f"no published discriminator for resolution {resolution}; legal are {list(PUBLISHED_RESOLUTIONS)}"
            )
        return cls(resolution, channel_counts(resolution), conv_clamp=PUBLISHED_CLAMP)


class Discriminator(stylegan2.Discriminator):
    """Judges images, and embeds them and cameras so that those that belong together are alike."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig):
        super().__init__(config)
        inner, outer = config.channels[-2:]
        if not config.published_keys:
            self.b8_pose = DiscriminatorBlock(inner, outer, False, config.conv_clamp, filter_key=False)
        branch = functools.partial(_two_layers, width=config.pose_width, out_features=config.pose_features)
        self.aux_branch_feat = branch(outer * FINAL_RESOLUTION**2)
        self.aux_branch_camera = branch(code_dim(config.direction_octaves))

    def scaled_layers(self, resolutions: Sequence[int]) -> ScaledLayers:
        """Scales and casts the weights of all blocks, that of the poses among them."""
        layers = self.b8_pose.layers()
        dtype = self.block_dtype(len(self.config.block_resolutions) - 1)
        own = scaled_parameters([(layer, dtype) for layer in layers])
        return {**super().scaled_layers(resolutions), **dict(zip(layers, own, strict=True))}

    def extras(self, x: Tensor, labels: Tensor, scaled: ScaledLayers) -> dict[str, Tensor]:
        """Returns the embeddings "pose" of the images and "camera" of their labels, both [N, pose_features]."""
        features = self.run_block(-1, x, scaled, "b8_pose").to(self.b4.out.weight.dtype).flatten(1)
        return {"pose": self.aux_branch_feat(features), "camera": self.embed_cameras(labels)}

    def embed_cameras(self, labels: Tensor) -> Tensor:
        """Returns the embeddings [N, pose_features] of camera labels [N, 25]."""
        told = with_direction(labels.to(self.b4.out.weight.dtype), self.config.direction_octaves)
        embedded: Tensor = self.aux_branch_camera(told)
        return embedded


def _two_layers(in_features: int, width: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(FullyConnected(in_features, width, "lrelu"), FullyConnected(width, out_features))
