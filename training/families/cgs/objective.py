"""Adds to the usual game what is CGS-GAN's own (Barthel et al. 2025): several views, two terms on anchors, a blur."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from training import losses
from training.families.adversarial import AdversarialConfig, AdversarialObjective
from training.families.base import StepContext
from training.families.cgs.generator import HierarchicalGaussians
from training.samples import RunConfig


@dataclass(frozen=True)
class CgsObjectiveConfig(AdversarialConfig):
    """Sets the losses and optimisers. Defaults are the published values for 512 px."""

    multiview: bool = True  # average the generator's gradient over several views of one scene
    num_views: int = 4  # views of a scene where multiview is on
    knn_weight: float = 20.0  # weight of the nearest-neighbour term
    knn_neighbours: int = 64  # neighbours per anchor in that term
    center_weight: float = 1.0  # weight of the centre term
    blur_sigma: float = 10.0  # pixels of blur at the start
    blur_fade_kimg: float = 200.0  # thousands of images over which the blur fades

    @property
    def views(self) -> range:
        """Offsets v: scene b is seen from the camera of sample (b - v) mod batch, or mod the views where `paired`."""
        return range(1, self.num_views + 1) if self.multiview else range(1)

    @property
    def blurred(self) -> bool:
        """Whether images are blurred at the start."""
        return self.blur_sigma > 0

    @classmethod
    def field_types(cls) -> dict[str, Any]:
        """Returns the types of the fields, and of `blurred`, by name."""
        return super().field_types() | {"blurred": bool}

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values; `blurred=False` switches the blur off."""
        if values.pop("blurred", True) is False:
            values["blur_sigma"] = 0.0
        return super().changed(**values)

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        super().check(config)
        if self.num_views < 1:
            raise ValueError(f"--num-multiview={self.num_views}: at least 1 view is needed")
        starts = [0, *(stage.from_nimg for stage in config.stages)]
        if self.multiview and any(config.stage_at(nimg).batch == 1 for nimg in starts):
            raise ValueError(
                "--batch=1 leaves multi-view regularisation only the scene's own camera; use --batch=2 or more"
            )
        points = config.generator.num_points
        if self.knn_weight and not 0 < self.knn_neighbours < points:
            raise ValueError(f"--knn-num-ks={self.knn_neighbours}: legal are 1 to {points - 1} (points - 1)")
        for flag, value in (
            ("--center-dists", self.center_weight),
            ("--knn-dists", self.knn_weight),
            ("--blur-fade-kimg", self.blur_fade_kimg),
            ("objective.blur_sigma", self.blur_sigma),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{flag}={value}: must be finite and 0 or greater")


class CgsObjective(AdversarialObjective):
    """Runs the phases of the usual game, with a fading blur and the geometry terms of the coarse anchors."""

    def shown(self, images: Tensor, at: StepContext) -> Tensor:
        """Returns images [N, 3, R, R] under the blur of the start."""
        assert at.nimg is not None
        settings = self.settings
        sigma = losses.blur_sigma_at(at.nimg, settings.blur_sigma, settings.blur_fade_kimg * 1000)
        return losses.gaussian_blur(images, sigma)

    def regularisers(self, scene: HierarchicalGaussians) -> Mapping[str, tuple[float, Tensor]]:
        """Returns the nearest-neighbour and the centre term of the coarse anchors."""
        settings = self.settings
        if not settings.knn_weight and not settings.center_weight:
            return {}
        coarse = scene.anchors.means[:, : self.config.generator.num_points]  # [b, P, 3] before the splats' clamp
        return {
            "knn": (settings.knn_weight, losses.knn_distance(coarse, settings.knn_neighbours)),
            "center": (settings.center_weight, losses.center_distance(coarse)),
        }
