"""Adds a law of cameras to an objective, for sets whose cameras nobody knows (pi-GAN, EpiGRAF)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.data.poses import LAWS, PoseLaw
from training.families.base import ObjectiveConfig, Option

KNOWN = "labels"  # the cameras are those of the set

# fmt: off
POSE_OPTIONS = (
    Option(("--pose",), "objective.pose",
           f"cameras: {', '.join(LAWS)}, of a law, or {KNOWN}, those of the set"),
    Option(("--h-mean",), "objective.theta_mean", "of a law: mean angle around, radians; pi/2 is frontal"),
    Option(("--h-stddev",), "objective.theta_std", "of a law: its spread"),
    Option(("--v-mean",), "objective.phi_mean", "of a law: mean angle from straight above, radians; pi/2 is level"),
    Option(("--v-stddev",), "objective.phi_std", "of a law: its spread"),
    Option(("--fov",), "objective.fov", "of a law: degrees across the image"),
)
# fmt: on


@dataclass(frozen=True)
class PosedConfig(ObjectiveConfig):
    """Sets the law of cameras, besides what a family adds. Defaults are pi-GAN's for CelebA."""

    pose: str = KNOWN  # law of the cameras: one of LAWS; "labels": those of the set
    theta_mean: float = math.pi / 2  # around, radians; pi / 2 is frontal
    theta_std: float = 0.3
    phi_mean: float = math.pi / 2  # from straight above, radians; pi / 2 is level
    phi_std: float = 0.155
    fov: float = 12.0  # degrees across the image

    @property
    def pose_law(self) -> PoseLaw | None:
        """The law of the cameras; None where they are those of the set. Raises ValueError for one that is none."""
        if self.pose == KNOWN:
            return None
        return PoseLaw(self.pose, (self.theta_mean, self.theta_std), (self.phi_mean, self.phi_std), self.fov)

    def check_pose(self) -> None:
        """Raises ValueError, with the option's name, for what is no law."""
        if self.pose != KNOWN and self.pose not in LAWS:
            raise ValueError(f"--pose={self.pose}: legal are {', '.join(LAWS)}, and {KNOWN} for those of the set")
        _ = self.pose_law
