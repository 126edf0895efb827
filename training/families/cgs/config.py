"""Describes a CGS-GAN generator in one record: the published members, and members of any other size."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from gaussian.gaussians import LOW_PASS
from gaussian.rendering import check_low_pass
from training.control.blocks import Blocks
from training.families import base
from training.families.cgs import hierarchy
from training.morphable.models import block_sizes
from training.networks import color
from training.networks.point_encoding import POINT_ENCODINGS
from training.networks.start import PUBLISHED_OPACITY_LOGIT, STARTS, Start

# By resolution or by level, as published (CGS-GAN).
_PUBLISHED_LEVELS = {256: 5, 512: 6, 1024: 7, 2048: 8}
_PUBLISHED_RATIOS = (1, 4, 4, 4, 2, 2, 2, 2)
_PUBLISHED_WIDTHS = (512, 256, 128, 64, 32, 16, 16, 8)


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    """Holds everything that a Generator is built from. Raises ValueError for values that cannot be built."""

    resolution: int  # pixels of an image; sets the smallest splat
    z_dim: int  # numbers of a latent
    w_dim: int  # numbers of a w
    num_points: int  # tokens of the transformer, which are the splats of level 0
    ratios: tuple[int, ...]  # children per anchor of the level before; the first is 1
    widths: tuple[int, ...]  # features per splat and level; the first is the transformer's width
    first_blocks: int  # transformer blocks before level 0; one more before each further level
    num_heads: int  # attention heads of a transformer block
    map_depth: int = 2  # layers of the mapping network; 0: a w is the latent itself, scaled to unit mean square
    point_encoding: str = "fourier+table"  # second half: a table read at the point (published), or a code per point
    coarse_log_scale: float = -5.0  # where the ln scale of a coarse anchor starts, world units
    camera_embedding: bool = True  # keep the mapping's (published, always zero) camera input
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads
    controls: str = ""  # morphable model, or file of one, that gives a latent named blocks; "": it has none
    color_rule: str = "published"  # or "inward": black splats still learn to be brighter, see networks/color.py
    low_pass: float = LOW_PASS  # square pixels that splats are wider by in an image, see `gaussian.render`
    start: str = "published"  # or "surface": how it looks before it has learnt anything, see networks/start.py

    def __post_init__(self) -> None:
        for name in ("resolution", "z_dim", "w_dim", "num_points", "first_blocks", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 1 or more")
        if not math.isfinite(self.coarse_log_scale):
            raise ValueError(f"generator.coarse_log_scale={self.coarse_log_scale} must be finite")
        check_low_pass(self.low_pass, "generator.low_pass")
        if self.map_depth < 0:
            raise ValueError(f"generator.map_depth={self.map_depth} must be 0 or more")
        if not self.map_depth and self.z_dim != self.w_dim:
            raise ValueError(
                f"generator.map_depth=0: a w is the latent, so w_dim={self.w_dim} must be z_dim={self.z_dim}"
            )
        if not self.map_depth and self.camera_embedding:
            raise ValueError("generator.map_depth=0: a w is the latent, so camera_embedding must be False")
        if min((*self.ratios, *self.widths), default=0) < 1:
            raise ValueError(f"ratios {self.ratios} and widths {self.widths} must be 1 or more")
        if len(self.ratios) != len(self.widths) or len(self.ratios) < 2 or self.ratios[0] != 1:
            raise ValueError(
                f"ratios {self.ratios} and widths {self.widths} need one entry per level, two or more levels, and "
                "a first ratio of 1"
            )
        if self.widths[0] % self.num_heads or self.widths[0] % 2:
            raise ValueError(
                f"widths[0] = {self.widths[0]} must be even and a multiple of num_heads = {self.num_heads}"
            )
        if self.point_encoding not in POINT_ENCODINGS:
            raise ValueError(f"point_encoding={self.point_encoding!r}; legal are {', '.join(POINT_ENCODINGS)}")
        if self.color_rule not in color.RULES:
            raise ValueError(f"color_rule={self.color_rule!r}; legal are {', '.join(color.RULES)}")
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r}; legal are {', '.join(STARTS)}")
        _ = self.blocks

    @classmethod
    def published(cls, resolution: int) -> Self:
        """Returns the member of the published family for 256, 512, 1024 or 2048 pixels."""
        if resolution not in _PUBLISHED_LEVELS:
            raise ValueError(f"no published generator for resolution {resolution}; legal are {list(_PUBLISHED_LEVELS)}")
        levels = _PUBLISHED_LEVELS[resolution]
        return cls(
            resolution=resolution,
            z_dim=512,
            w_dim=512,
            num_points=512,
            ratios=_PUBLISHED_RATIOS[:levels],
            widths=_PUBLISHED_WIDTHS[:levels],
            first_blocks=6,
            num_heads=8,
        )

    @property
    def blocks(self) -> Blocks | None:
        """Returns the blocks of the latent: those of the model, and the rest of its numbers in two halves.

        None where there is no model. Raises ValueError where too few numbers are left.
        """
        if not self.controls:
            return None
        sizes = block_sizes(self.controls, "--controls")
        rest = self.z_dim - sum(sizes.values())
        if rest < 2:
            raise ValueError(
                f"generator.z_dim={self.z_dim}: the blocks of --controls={self.controls} have {self.z_dim - rest} "
                "numbers, and 2 more are needed for what it does not describe"
            )
        return Blocks.of(sizes, rest - rest // 2, rest // 2)

    @property
    def start_rule(self) -> Start:
        """Returns how the hierarchy starts."""
        return STARTS[self.start]

    @property
    def num_levels(self) -> int:
        """Returns the levels of the hierarchy."""
        return len(self.ratios)

    @property
    def children_per_point(self) -> tuple[int, ...]:
        """Returns the splats that hang on one transformer point, for each level."""
        return tuple(math.prod(self.ratios[: i + 1]) for i in range(self.num_levels))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Returns the splats of each level."""
        return tuple(self.num_points * a for a in self.children_per_point)

    @property
    def scale_rule(self) -> hierarchy.ScaleRule:
        """Limits coarse splats to half the spacing of num_points on a unit square, and the finest to half a pixel."""
        largest = math.log(0.5 / math.sqrt(self.num_points))
        smallest = math.log(0.5 / self.resolution)
        split = (largest - smallest) / (self.num_levels - 1)
        return hierarchy.ScaleRule(self.coarse_log_scale, largest, smallest, split)


def published_constants(config: GeneratorConfig) -> dict[str, Tensor]:
    """Returns constants that published checkpoints have on record; the values in use follow from the config."""
    largest = config.scale_rule.largest
    return {
        "scale_init": torch.full((3,), largest),
        "scale_threshold": torch.full((3,), largest),
        "rotation_init": torch.tensor([1, 0, 0, 0]),
        "color_init": torch.zeros(3),
        "opacity_init": torch.full((1,), PUBLISHED_OPACITY_LOGIT),
    }
