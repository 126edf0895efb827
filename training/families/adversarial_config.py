"""Sets the usual game of a GAN: losses, penalties, optimisers and what D sees augmented; and has their options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training import augment
from training.augment import USUAL_P, USUAL_TARGET
from training.families.base import ObjectiveConfig, Option
from training.samples import RunConfig

LOSSES = ("logistic", "relativistic")
NO_RAMPUP = 1e6  # as `ema_rampup`: the average has its half-life from the second step on
WARM_AUGMENT_KIMG = 100.0  # the most `augment_kimg` of a run that starts from trained weights

ADVERSARIAL_OPTIONS = (
    Option(("--gamma", "--r1-gamma"), "objective.gamma", "weight of R1, the gradient penalty at real images"),
    Option(("--r2-gamma",), "objective.r2_gamma", "weight of R2, that at generated images; 0 leaves it out"),
    Option(("--r1-interval",), "objective.r1_interval", "steps between two of R1, and two of R2", least=1),
    Option(("--objective",), "objective.loss", f"legal are {', '.join(LOSSES)} (real against generated)", words=LOSSES),
    Option(
        ("--aug",), "objective.augment", f"what D sees is augmented: {', '.join(augment.MODES)}", words=augment.MODES
    ),
    Option(("--p",), "objective.augment_p", "with --aug=fixed: probability of each transform"),
    Option(("--target",), "objective.augment_target", "with --aug=ada: mean sign of real logits to steer to"),
    Option(
        ("--ada-kimg",), "objective.augment_kimg", "with --aug=ada: kimg in which the probability can go from 0 to 1"
    ),
    Option(
        ("--augpipe",), "objective.augment_pipe", f"transforms: {', '.join(augment.PIPES)}", words=tuple(augment.PIPES)
    ),
)


@dataclass(frozen=True)
class AdversarialConfig(ObjectiveConfig):
    """Sets the losses and optimisers. Defaults are those of CGS-GAN (Barthel et al. 2025) at 512 px."""

    gamma: float = 1.0  # R1 weight; 0 leaves the phase out
    beta2: float = 0.99  # Adam's second decay; the first is 0
    r1_interval: int = 16  # steps between two R1 steps, and two R2 steps
    g_clip: float = 20.0  # largest norm of the generator's mean gradient
    d_clip: float = 5.0  # largest norm of the discriminator's mean gradient
    ema_halflife_kimg: float = 10.0  # half-life of the moving average of G
    ema_rampup: float = 0.05  # the half-life is at most this share of the images seen
    loss: str = "logistic"  # one of LOSSES
    r2_gamma: float = 0.0  # R2 weight; 0 leaves the phase out
    judged_at_once: int = 32  # most images that D judges at once while G learns; fewer take less memory; 0: all
    augment: str = "noaug"  # one of augment.MODES
    augment_p: float = USUAL_P  # probability of each transform where it is fixed
    augment_target: float = USUAL_TARGET  # mean sign of real logits that "ada" steers to
    augment_kimg: float = 500.0  # thousands of images in which "ada" can take the probability from 0 to 1
    augment_pipe: str = "bgc"  # one of augment.PIPES

    @property
    def paired(self) -> bool:
        """Whether a generated image is judged against the real one of its camera."""
        return self.loss == "relativistic"

    @property
    def penalties(self) -> Mapping[str, float]:
        """Returns the weights of the gradient penalties that act, by the names of their phases."""
        return {name: weight for name, weight in (("R1", self.gamma), ("R2", self.r2_gamma)) if weight > 0}

    def warm_start(self) -> dict[str, Any]:
        """Returns values for `changed` with the average's whole half-life at once, and a p that moves faster."""
        return super().warm_start() | {
            "ema_rampup": NO_RAMPUP,
            "augment_kimg": min(self.augment_kimg, WARM_AUGMENT_KIMG),
        }

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for an illegal value."""
        for flag, value in (("--gamma", self.gamma), ("--r2-gamma", self.r2_gamma)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{flag}={value}: must be finite and 0 or greater")
        if self.r1_interval < 1:
            raise ValueError(f"--r1-interval={self.r1_interval}: must be 1 or greater")
        if self.judged_at_once < 0:
            raise ValueError(f"objective.judged_at_once={self.judged_at_once}: must be 1 or greater, or 0 for all")
        if self.loss not in LOSSES:
            raise ValueError(f"--objective={self.loss}: legal are {', '.join(LOSSES)}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"objective.beta2={self.beta2}: must be 0 or greater and less than 1")
        for name in ("g_clip", "d_clip"):
            if not getattr(self, name) > 0:  # inf: no clipping
                raise ValueError(f"objective.{name}={getattr(self, name)}: must be greater than 0")
        for name in ("ema_halflife_kimg", "ema_rampup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)}: must be 0 or greater")
        augment.check_options(self.augment, self.augment_p, self.augment_target, self.augment_kimg, self.augment_pipe)
