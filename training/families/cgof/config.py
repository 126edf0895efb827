"""Describes a CGOF generator in one record: a pi-GAN whose latent has named blocks, and what guides its samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from training.control.blocks import Blocks
from training.families.pigan import config as pigan
from training.morphable.model import PROCEDURAL, MorphableModel
from training.morphable.models import block_sizes, morphable_model


@dataclass(frozen=True)
class GeneratorConfig(pigan.GeneratorConfig):
    """Holds everything that a Generator is built from; lengths as in pi-GAN. `samples` are those of each pass.

    Raises ValueError for values that cannot be built.
    """

    z_dim: int = 0  # numbers of a latent: as many as the blocks have; 0 stands for that
    morphable: str = PROCEDURAL  # the model that guides, or a file of one
    background: int = 80  # numbers for the shape of what the model does not describe,
    background_texture: int = 80  # and for its colours
    guided: bool = True  # the last pass goes to the surface of the model
    guide_kimg: float = 12.8  # thousands of images within which it gets there (200 steps of 64 images)
    legacy_depths: bool = False  # samples at the surface keep the distances that they had before, as published

    def __post_init__(self) -> None:
        for name in ("background", "background_texture"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.guide_kimg < math.inf:
            raise ValueError(f"generator.guide_kimg={self.guide_kimg} must be finite and 0 or more")
        total = self.blocks().total
        if self.z_dim not in (0, total):
            raise ValueError(f"generator.z_dim={self.z_dim}: the blocks of the latent have {total} numbers together")
        object.__setattr__(self, "z_dim", total)
        super().__post_init__()
        if self.samples < 3:
            raise ValueError(f"generator.samples={self.samples} must be 3 or more")

    def model(self) -> MorphableModel:
        """Returns the morphable model. Raises ValueError for a file that is none."""
        return morphable_model(self.morphable)

    def blocks(self) -> Blocks:
        """Returns the blocks of the latent."""
        return Blocks.of(block_sizes(self.morphable), self.background, self.background_texture)

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values; the latent follows from the model and the sizes of the blocks."""
        return super().changed(**{"z_dim": 0, **values})
