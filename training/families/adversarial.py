"""Plays the usual game of a GAN over a family's networks: logistic loss over views, lazy R1, Adam, one moving average.

Families derive their objective from it, and add what is their own in `regularisers` and `shown`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaussian import Cameras, Rendering
from training import losses
from training.families.base import (
    Conditioning,
    Discriminator,
    Generator,
    Loss,
    ObjectiveConfig,
    Phase,
    StepContext,
)
from training.samples import MicroBatch, RunConfig, Stage


@dataclass(frozen=True)
class AdversarialConfig(ObjectiveConfig):
    """Sets the losses and optimisers. Defaults are those of CGS-GAN (Barthel et al. 2025) at 512 px."""

    gamma: float = 1.0  # R1 weight; 0 leaves the phase out
    beta2: float = 0.99  # Adam's second decay; the first is 0
    r1_interval: int = 16  # steps between two R1 steps
    g_clip: float = 20.0  # largest norm of the generator's mean gradient
    d_clip: float = 5.0  # largest norm of the discriminator's mean gradient
    ema_halflife_kimg: float = 10.0  # half-life of the moving average of G
    ema_rampup: float = 0.05  # the half-life is at most this share of the images seen

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for an illegal value."""
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"--gamma={self.gamma}: must be finite and 0 or greater")
        if self.r1_interval < 1:
            raise ValueError(f"objective.r1_interval={self.r1_interval}: must be 1 or greater")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"objective.beta2={self.beta2}: must be 0 or greater and less than 1")
        for name in ("g_clip", "d_clip"):
            if not getattr(self, name) > 0:  # inf: no clipping
                raise ValueError(f"objective.{name}={getattr(self, name)}: must be greater than 0")
        for name in ("ema_halflife_kimg", "ema_rampup"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}={getattr(self, name)}: must be 0 or greater")


class AdversarialObjective:
    """Runs the phases G, D and R1 over the networks of a run."""

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator):
        self.config, self.settings, self.G, self.D = config, config.objective, G, D
        rates, beta2 = self.learning_rates(config.stage_at(0)), self.settings.beta2
        self.opt_G = _adam(G, rates["G"], (0.0, beta2))
        self.opt_D = _adam(D, rates["D"], (0.0, beta2**self._lazy_ratio))

    @property
    def _lazy_ratio(self) -> float:
        """Lazy regularisation's factor on D (Karras et al. 2020, StyleGAN2, appendix B): interval / (interval + 1)."""
        interval = self.settings.r1_interval
        return interval / (interval + 1) if self.settings.gamma > 0 else 1.0

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Returns Adam for G and for D."""
        return {"G": self.opt_G, "D": self.opt_D}

    def learning_rates(self, stage: Stage) -> Mapping[str, float]:
        """Returns the stage's rates, D's corrected for lazy regularisation."""
        return {"G": stage.g_lr, "D": stage.d_lr * self._lazy_ratio}

    def phases(self) -> Sequence[Phase]:
        """Returns G and D for every step, and R1 for every `r1_interval`-th."""
        settings, frozen = self.settings, list(self.D.freezable())[: self.config.freeze_d]
        phases = [
            Phase("G", self.G, self.opt_G, 1, settings.g_clip, self.generator_losses),
            Phase("D", self.D, self.opt_D, 1, settings.d_clip, self.discriminator_losses, frozen),
        ]
        if settings.gamma > 0:
            r1 = Phase("R1", self.D, self.opt_D, settings.r1_interval, settings.d_clip, self.r1_losses, frozen)
            phases.append(r1)
        return phases

    def averages(self) -> Mapping[str, Callable[[int], float]]:
        """Returns the one average, with a half-life in images that grows with the run."""

        def kept(nimg: int) -> float:
            halflife = min(self.settings.ema_halflife_kimg * 1000, self.settings.ema_rampup * nimg)
            return 0.5 ** (self.config.stage_at(nimg).batch / max(halflife, 1e-8))

        return {"G_ema": kept}

    # ------------------------------------------------------------ what families change

    def shown(self, images: Tensor, at: StepContext) -> Tensor:
        """Returns images [N, 3, R, R] as D gets to see them, real and generated ones alike."""
        return images

    def regularisers(self, scene: Any) -> Mapping[str, tuple[float, Tensor]]:
        """Returns further terms of the generator by name: a weight, and values [b]."""
        return {}

    # ------------------------------------------------------------ what a micro-batch adds to each phase

    def generate(
        self, z: Tensor, cameras: Cameras, background: Tensor, resolution: int, at: StepContext
    ) -> tuple[Tensor, Any, Rendering]:
        """Returns ws, scenes and renderings of z [b, z_dim] from cameras [b, V], conditioned on the first view."""
        ws = self.G.mapping(z, cameras[:, 0])
        scene = self.G.synthesis(ws, at)
        return ws, scene, self.G.render(scene, cameras, resolution, background, at)

    def judge(self, images: Tensor, labels: Tensor, at: StepContext, num_groups: int | None = None) -> Tensor:
        """Returns D's logits [N, 1] of images [N, 3, R, R] with camera labels [N, 25]."""
        return self.D.outputs(self.shown(images, at), Conditioning(labels), num_groups).logits

    def generator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Renders one scene per latent from V views, all judged in one batch (multi-view regularisation).

        Views are flattened scene-major (index b V + v): with V times the groups of one view, the strided minibatch-std
        groups of the discriminator hold different scenes of one view, exactly as in V separate calls of b images.
        """
        batch, views = len(micro.g_z), micro.g_cameras.shape[1]
        _, scene, rendering = self.generate(micro.g_z, micro.g_cameras, micro.g_background, micro.resolution, at)
        images, labels = rendering.image.flatten(0, 1), micro.g_labels.flatten(0, 1)  # [b V, 3, R, R], [b V, 25]
        logits = self.judge(images, labels, at, views * self.D.num_groups(batch)).view(batch, views)
        adversarial = losses.logistic(logits, real=True).mean(1)  # [b]
        total, report = adversarial, {"Loss/G/adversarial": adversarial} | _logit_report("G", logits)
        for name, (weight, values) in self.regularisers(scene).items():
            total = total + weight * values
            report[f"Loss/G/{name}"] = values
        if micro.first:
            report |= scene.statistics(micro.g_cameras)
        yield Loss(total, report)

    def discriminator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Judges generated images, then real ones."""
        with torch.no_grad():
            ws, _, rendering = self.generate(
                micro.d_z, micro.d_cameras, micro.d_background[:, None], micro.resolution, at
            )
        for whose, images, labels in (
            ("fake", rendering.image[:, 0], micro.d_labels),
            ("real", micro.real, micro.real_labels),
        ):
            logits = self.judge(images, labels, at).squeeze(1)
            loss = losses.logistic(logits, real=whose == "real")
            report = {f"Loss/D/{whose}": loss} | _logit_report(whose, logits)
            yield Loss(loss, report, ws if whose == "fake" else None)

    def r1_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Penalises D's gradient at real images as it gets to see them, with gamma / 2 times the interval."""

        def judge(images: Tensor) -> Tensor:
            return self.D.outputs(images, Conditioning(micro.real_labels)).logits

        penalty = losses.r1_penalty(judge, self.shown(micro.real, at))
        weight = self.settings.gamma / 2 * self.settings.r1_interval
        yield Loss(penalty * weight, {"Loss/D/r1_penalty": penalty})


def _logit_report(whose: str, logits: Tensor) -> dict[str, Tensor]:
    return {f"Logits/{whose}": logits, f"Logits/{whose}/sign": logits.sign()}


def _adam(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=lr, betas=betas, eps=1e-8, fused=True)
