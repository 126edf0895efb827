"""Adds to the usual game what is CGS-GAN's own (Barthel et al. 2025): several views, two terms on anchors, a blur."""

from __future__ import annotations

from dataclasses import dataclass

from training.families.anchored import AnchoredConfig, AnchoredObjective
from training.samples import RunConfig


@dataclass(frozen=True)
class CgsObjectiveConfig(AnchoredConfig):
    """Sets the losses and optimisers. Defaults are the published values for 512 px."""

    multiview: bool = True  # average the generator's gradient over several views of one scene
    num_views: int = 4  # views of a scene where multiview is on

    @property
    def views(self) -> range:
        """Offsets v: scene b is seen from the camera of sample (b - v) mod batch, or mod the views where `paired`."""
        return range(1, self.num_views + 1) if self.multiview else range(1)

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


class CgsObjective(AnchoredObjective):
    """Runs the phases of the usual game, with a fading blur and the geometry terms of the coarse anchors."""
