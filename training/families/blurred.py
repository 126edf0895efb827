"""Adds to the usual game a blur of real and generated images that fades over the start of a run (StyleGAN3, EG3D)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from training import losses
from training.families.adversarial import AdversarialObjective
from training.families.adversarial_config import AdversarialConfig
from training.families.base import Option, StepContext
from training.samples import RunConfig

BLUR_OPTIONS = (
    Option(("--blur-fade-kimg",), "objective.blur_fade_kimg", "kimg over which the initial blur fades"),
    Option(("--resume-blur",), "objective.blurred", "the initial blur fades by the images seen; False: no blur at all"),
)


@dataclass(frozen=True)
class BlurredConfig(AdversarialConfig):
    """Sets the blur, besides the losses and optimisers."""

    blur_sigma: float = 10.0  # pixels of blur at the start
    blur_fade_kimg: float = 200.0  # thousands of images over which the blur fades

    @property
    def blurred(self) -> bool:
        """Whether images are blurred at the start."""
        return self.blur_sigma > 0

    @classmethod
    def field_types(cls) -> dict[str, Any]:
        """Returns the types of the fields, and of `blurred`, by name."""
        return super().field_types() | {"blurred": bool}

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values; `blurred` switches the blur off, or the published one on."""
        if (blurred := values.pop("blurred", self.blurred)) != self.blurred:
            values.setdefault("blur_sigma", BlurredConfig.blur_sigma if blurred else 0.0)
        return super().changed(**values)

    def warm_start(self) -> dict[str, Any]:
        """Returns values for `changed` without a blur."""
        return super().warm_start() | {"blurred": False}

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        super().check(config)
        check_finite(("--blur-fade-kimg", self.blur_fade_kimg), ("objective.blur_sigma", self.blur_sigma))
        if self.blur_sigma > config.generator.resolution:
            raise ValueError(
                f"--set=objective.blur_sigma={self.blur_sigma}: legal are 0 to {config.generator.resolution}, the "
                "pixels of an image"
            )


class BlurredObjective(AdversarialObjective):
    """Runs the phases of the usual game, over images under a fading blur."""

    def shown(self, images: Tensor, at: StepContext) -> Tensor:
        """Returns images [N, 3, R, R] under the blur of the start."""
        assert at.nimg is not None
        settings = self.settings
        sigma = losses.blur_sigma_at(at.nimg, settings.blur_sigma, settings.blur_fade_kimg * 1000)
        return losses.gaussian_blur(images, sigma)


def check_finite(*values: tuple[str, float]) -> None:
    """Raises ValueError for the first value, given with its option's name, that is negative or not finite."""
    for flag, value in values:
        if not 0 <= value < math.inf:
            raise ValueError(f"{flag}={value}: must be finite and 0 or greater")
