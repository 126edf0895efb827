"""Adds two terms on the coarse anchors of a hierarchy of splats: their nearest neighbours, and their centre.

Source: Hyun and Heo 2024 (GSGAN), which CGS-GAN (Barthel et al. 2025) kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from training import losses
from training.families.base import Option
from training.families.blurred import BlurredConfig, BlurredObjective, check_finite
from training.samples import RunConfig

ANCHOR_OPTIONS = (
    Option(("--center-dists",), "objective.center_weight", "weight of the centre term"),
    Option(("--knn-dists",), "objective.knn_weight", "weight of the nearest-neighbour term"),
    Option(("--knn-num-ks",), "objective.knn_neighbours", "its number of neighbours", least=1),
)


@dataclass(frozen=True)
class AnchoredConfig(BlurredConfig):
    """Sets the two terms, besides the blur, the losses and the optimisers."""

    knn_weight: float = 20.0  # weight of the nearest-neighbour term
    knn_neighbours: int = 64  # neighbours per anchor in that term
    center_weight: float = 1.0  # weight of the centre term

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        super().check(config)
        points = config.generator.num_points
        if self.knn_weight and not 0 < self.knn_neighbours < points:
            raise ValueError(f"--knn-num-ks={self.knn_neighbours}: legal are 1 to {points - 1} (points - 1)")
        check_finite(("--center-dists", self.center_weight), ("--knn-dists", self.knn_weight))


class AnchoredObjective(BlurredObjective):
    """Runs the phases of the usual game, with a fading blur and terms on the coarse anchors of scenes that have any."""

    def regularisers(self, scene: Any) -> Mapping[str, tuple[float, Tensor]]:
        """Returns the nearest-neighbour and the centre term. scene: has `anchors`, coarsest first."""
        settings = self.settings
        if not settings.knn_weight and not settings.center_weight:
            return {}
        coarse = scene.anchors.means[:, : self.config.generator.num_points]  # [b, P, 3] before any clamp of splats
        return {
            "knn": (settings.knn_weight, losses.knn_distance(coarse, settings.knn_neighbours)),
            "center": (settings.center_weight, losses.center_distance(coarse)),
        }
