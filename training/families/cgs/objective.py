"""Puts together the losses of CGS-GAN (Barthel et al. 2025): logistic over several views, R1, two terms on anchors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from training import losses
from training.families.base import Conditioning, Discriminator, Loss, ObjectiveConfig, Phase, StepContext
from training.families.cgs.generator import Generator
from training.samples import MicroBatch, RunConfig, Stage


@dataclass(frozen=True)
class CgsObjectiveConfig(ObjectiveConfig):
    """Sets the losses and optimisers. Defaults are the published values for 512 px."""

    gamma: float = 1.0  # R1 weight
    multiview: bool = True  # average the generator's gradient over several views of one scene
    num_views: int = 4  # views of a scene where multiview is on
    knn_weight: float = 20.0  # weight of the nearest-neighbour term
    knn_neighbours: int = 64  # neighbours per anchor in that term
    center_weight: float = 1.0  # weight of the centre term
    blur_sigma: float = 10.0  # pixels of blur at the start
    blur_fade_kimg: float = 200.0  # thousands of images over which the blur fades
    beta2: float = 0.99  # Adam's second decay; the first is 0
    r1_interval: int = 16  # steps between two R1 steps
    g_clip: float = 20.0  # largest norm of the generator's mean gradient
    d_clip: float = 5.0  # largest norm of the discriminator's mean gradient
    ema_halflife_kimg: float = 10.0  # half-life of the moving average of G
    ema_rampup: float = 0.05  # the half-life is at most this share of the images seen

    @property
    def views(self) -> range:
        """Offsets v: scene b is seen from the camera of sample (b - v) mod batch."""
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
        if self.num_views < 1:
            raise ValueError(f"--num-multiview={self.num_views}: at least 1 view is needed")
        if self.multiview and config.stage_at(0).batch == 1:
            raise ValueError(
                "--batch=1 leaves multi-view regularisation only the scene's own camera; use --batch=2 or more"
            )
        points = config.generator.num_points
        if self.knn_weight and not 0 < self.knn_neighbours < points:
            raise ValueError(f"--knn-num-ks={self.knn_neighbours}: legal are 1 to {points - 1} (points - 1)")
        for flag, value in (
            ("--gamma", self.gamma),
            ("--center-dists", self.center_weight),
            ("--knn-dists", self.knn_weight),
            ("--blur-fade-kimg", self.blur_fade_kimg),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{flag}={value}: must be finite and 0 or greater")


class CgsObjective:
    """Runs the phases G, D and R1 over the networks of a run."""

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator):
        self.config, self.settings, self.G, self.D = config, config.objective, G, D
        stage, settings = config.stage_at(0), self.settings
        rates = self.learning_rates(stage)
        self.opt_G = _adam(G, rates["G"], (0.0, settings.beta2))
        self.opt_D = _adam(D, rates["D"], (0.0, settings.beta2**self._lazy_ratio))

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
        settings = self.settings
        frozen = list(self.D.freezable())[: self.config.freeze_d]
        phases = [
            Phase("G", self.G, self.opt_G, 1, settings.g_clip, self.generator_losses),
            Phase("D", self.D, self.opt_D, 1, settings.d_clip, self.discriminator_losses, frozen),
        ]
        if settings.gamma > 0:
            phases.append(
                Phase("R1", self.D, self.opt_D, settings.r1_interval, settings.d_clip, self.r1_losses, frozen)
            )
        return phases

    def averages(self) -> Mapping[str, Callable[[int], float]]:
        """Returns the one average, with a half-life in images that grows with the run."""

        def kept(nimg: int) -> float:
            halflife = min(self.settings.ema_halflife_kimg * 1000, self.settings.ema_rampup * nimg)
            return 0.5 ** (self.config.stage_at(nimg).batch / max(halflife, 1e-8))

        return {"G_ema": kept}

    def blurred(self, images: Tensor, at: StepContext) -> Tensor:
        """Blurs images [N, 3, R, R] as D sees them at the start of a run."""
        assert at.nimg is not None
        settings = self.settings
        return losses.gaussian_blur(
            images, losses.blur_sigma_at(at.nimg, settings.blur_sigma, settings.blur_fade_kimg * 1000)
        )

    def judged(self, images: Tensor, labels: Tensor, at: StepContext, num_groups: int | None = None) -> Tensor:
        """Returns D's logits [N, 1] of images [N, 3, R, R] with camera labels [N, 25], under the initial blur."""
        return self.D.outputs(self.blurred(images, at), Conditioning(labels), num_groups).logits

    # ------------------------------------------------------------ what a micro-batch adds to each phase

    def generator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Renders one scene per latent from V views, all judged in one batch (multi-view regularisation).

        Views are flattened scene-major (index b V + v): with V times the groups of one view, the strided minibatch-std
        groups of the discriminator hold different scenes of one view, exactly as in V separate calls of B images.
        """
        settings, batch, views = self.settings, len(micro.g_z), micro.g_cameras.shape[1]
        scene = self.G.synthesis(self.G.mapping(micro.g_z, micro.g_cameras[:, 0]), at)
        rendering = self.G.render(scene, micro.g_cameras, micro.resolution, micro.g_background, at)
        images, labels = rendering.image.flatten(0, 1), micro.g_labels.flatten(0, 1)  # [B V, 3, R, R], [B V, 25]
        logits = self.judged(images, labels, at, views * self.D.num_groups(batch)).view(batch, views)
        adversarial = losses.logistic(logits, real=True).mean(1)  # [B]
        total, report = adversarial, {"Loss/G/adversarial": adversarial} | _logit_report("G", logits)
        if settings.knn_weight or settings.center_weight:
            coarse = scene.anchors.means[:, : self.G.config.num_points]  # [B, P, 3] before the clamp of the splats
            knn = losses.knn_distance(coarse, settings.knn_neighbours)
            center = losses.center_distance(coarse)
            total = total + settings.knn_weight * knn + settings.center_weight * center
            report |= {"Loss/G/knn": knn, "Loss/G/center": center}
        if micro.first:
            report |= scene.statistics(micro.g_cameras)
        yield Loss(total, report)

    def discriminator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Judges generated images, then real ones."""
        with torch.no_grad():
            ws = self.G.mapping(micro.d_z, micro.d_cameras[:, 0])
            scene = self.G.synthesis(ws, at)
            fake = self.G.render(scene, micro.d_cameras, micro.resolution, micro.d_background[:, None], at).image[:, 0]
        logits = self.judged(fake, micro.d_labels, at).squeeze(1)
        loss = losses.logistic(logits, real=False)
        yield Loss(loss, {"Loss/D/fake": loss} | _logit_report("fake", logits), ws)
        logits = self.judged(micro.real, micro.real_labels, at).squeeze(1)
        loss = losses.logistic(logits, real=True)
        yield Loss(loss, {"Loss/D/real": loss} | _logit_report("real", logits))

    def r1_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Penalises D's gradient at real images, as they look under the blur."""

        def judge(images: Tensor) -> Tensor:
            return self.D.outputs(images, Conditioning(micro.real_labels)).logits

        penalty = losses.r1_penalty(judge, self.blurred(micro.real, at))
        weight = self.settings.gamma / 2 * self.settings.r1_interval
        yield Loss(penalty * weight, {"Loss/D/r1_penalty": penalty})


def _logit_report(whose: str, logits: Tensor) -> dict[str, Tensor]:
    return {f"Logits/{whose}": logits, f"Logits/{whose}/sign": logits.sign()}


def _adam(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=lr, betas=betas, eps=1e-8, fused=True)
