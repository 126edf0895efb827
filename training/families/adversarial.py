"""Plays the usual game of a GAN over a family's networks: a loss over views, lazy R1 and R2, Adam, one moving average.

The loss is the logistic one, or the relativistic one of R3GAN (Huang et al. 2024): real against generated image of one
camera. R3GAN's recipe is that loss with R1 and R2 of equal weight.

Families derive their objective from it, and add what is their own in `regularisers` and `shown`. Whatever D gets to
see goes through `seen`, which augments it (training/augment.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaussian import Cameras, Rendering
from training import augment, losses
from training.augment import USUAL_P, USUAL_TARGET
from training.families.base import (
    Conditioning,
    Discriminator,
    DiscriminatorOutput,
    Generator,
    Loss,
    Objective,
    ObjectiveConfig,
    Option,
    Phase,
    StepContext,
)
from training.samples import MicroBatch, RunConfig, Stage

LOSSES = ("logistic", "relativistic")
NO_RAMPUP = 1e6  # as `ema_rampup`: the average has its half-life from the second step on
WARM_AUGMENT_KIMG = 100.0  # the most `augment_kimg` of a run that starts from trained weights

Losses = Callable[[MicroBatch, StepContext], Iterator[Loss]]
Terms = Mapping[str, tuple[float, Tensor]]  # by name: a weight, and values [b]

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


class AdversarialObjective(Objective):
    """Runs the phases G, D, R1 and R2 over the networks of a run."""

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator):
        self.config, self.settings, self.G, self.D = config, config.objective, G, D
        rates, beta2 = self.learning_rates(config.stage_at(0)), self.settings.beta2
        self.opt_G = _adam(G, rates["G"], (0.0, beta2))
        self.opt_D = _adam(D, rates["D"], (0.0, beta2**self._lazy_ratio))
        self.synthesis: Callable[..., Any] | None = None  # G's, compiled; see `compile`
        self.outputs: Callable[..., DiscriminatorOutput] | None = None  # D's, compiled
        asked = self.settings
        self.augmentation = augment.Augmentation(
            asked.augment, asked.augment_pipe, asked.augment_p, asked.augment_target, asked.augment_kimg, G.device
        )

    @property
    def _lazy_ratio(self) -> float:
        """Lazy regularisation's factor on D (Karras et al. 2020, StyleGAN2, appendix B): interval / (interval + 1).

        With R1 and R2 Adam takes interval + 2 steps in an interval.
        """
        interval = self.settings.r1_interval
        return interval / (interval + len(self.settings.penalties))

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Returns Adam for G and for D."""
        return {"G": self.opt_G, "D": self.opt_D}

    def learning_rates(self, stage: Stage) -> Mapping[str, float]:
        """Returns the stage's rates, D's corrected for lazy regularisation."""
        return {"G": stage.g_lr, "D": stage.d_lr * self._lazy_ratio}

    def phases(self) -> Sequence[Phase]:
        """Returns G and D for every step, and R1 and R2, as far as they act, for every `r1_interval`-th."""
        settings, frozen = self.settings, list(self.D.freezable())[: self.config.freeze_d]
        phases = [
            Phase("G", self.G, self.opt_G, 1, settings.g_clip, self.generator_losses),
            Phase("D", self.D, self.opt_D, 1, settings.d_clip, self.discriminator_losses, frozen),
        ]
        penalties = {"R1": self.r1_losses, "R2": self.r2_losses}
        phases += [
            Phase(name, self.D, self.opt_D, settings.r1_interval, settings.d_clip, penalties[name], frozen)
            for name in settings.penalties
        ]
        for phase in phases:
            phase.losses = partial(self._over_prepared, phase.losses)
        return phases

    def _over_prepared(self, losses_of: Losses, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        yield from losses_of(self.prepared(micro, at), at)

    def compile(self, backend: str = "inductor") -> None:
        """Compiles G's synthesis, and D where first derivatives suffice.

        Gradient penalties keep the eager D: what PyTorch compiles has no second derivatives. Some versions refuse them,
        others return a gradient that does not depend on D's weights (`_penalty`).
        """
        self.synthesis = torch.compile(self.G.synthesis, backend=backend)
        self.outputs = torch.compile(self.D.outputs, backend=backend, dynamic=False)  # two batch sizes, each its own

    def averages(self) -> Mapping[str, Callable[[int], float]]:
        """Returns the one average, with a half-life in images that grows with the run."""

        def kept(nimg: int) -> float:
            halflife = min(self.settings.ema_halflife_kimg * 1000, self.settings.ema_rampup * nimg)
            return 0.5 ** (self.config.stage_at(nimg).batch / max(halflife, 1e-8))

        return {"G_ema": kept}

    def state(self) -> Mapping[str, Tensor]:
        """Returns the probability of the augmentation, and what it follows from."""
        return self.augmentation.state()

    def end_step(self, step: int) -> Mapping[str, Tensor]:
        """Moves the probability of the augmentation."""
        return self.augmentation.end_step(step)

    # ------------------------------------------------------------ what families change

    def prepared(self, micro: MicroBatch, at: StepContext) -> MicroBatch:
        """Returns the micro-batch as the losses of every phase get it: with other cameras, for example."""
        return micro

    def shown(self, images: Tensor, at: StepContext) -> Tensor:
        """Returns images [N, 3, R, R] as D gets to see them before augmentation, real and generated ones alike."""
        return images

    def regularisers(self, scene: Any) -> Terms:
        """Returns further terms of the generator by name: a weight, and values [b]."""
        return {}

    def view_regularisers(self, scene: Any, micro: MicroBatch, at: StepContext) -> Terms:
        """Returns further terms that ask how a scene is seen, or when."""
        return {}

    def picture_terms(self, rendering: Rendering, micro: MicroBatch, at: StepContext) -> Terms:
        """Returns further terms that look at the pictures that the generator learns from."""
        return {}

    def conditioning(self, labels: Tensor, at: StepContext, whose: str) -> Conditioning:
        """Returns what D is told of images with camera labels [N, 25], before augmentation; `whose` as for `seen`."""
        return Conditioning(labels)

    def agreement(self, output: DiscriminatorOutput, micro: MicroBatch, phase: str) -> Terms:
        """Returns terms of what else D says of images, by name: a weight, and values [b].

        phase: "G" for the images that the generator learns from, "real" for those of the data.
        """
        return {}

    def mapped(self, z: Tensor, cameras: Cameras, told: Cameras | None, at: StepContext) -> Tensor:
        """Returns ws of z [b, z_dim] whose scenes cameras [b] see first; told: what to tell G in their place."""
        return self.G.mapping(z, cameras if told is None else told)

    # ------------------------------------------------------------ what a micro-batch adds to each phase

    def generate(
        self,
        z: Tensor,
        cameras: Cameras,
        background: Tensor,
        resolution: int,
        at: StepContext,
        told: Cameras | None = None,
        whose: str = "G",
    ) -> tuple[Tensor, Any, Rendering]:
        """Returns ws, scenes and renderings of z [b, z_dim] from cameras [b, V], told `told` or the first view.

        whose: as for `seen`.
        """
        ws = self.mapped(z, cameras[:, 0], told, at)
        scene = (self.synthesis or self.G.synthesis)(ws, at)
        return ws, scene, self.G.render(scene, cameras, resolution, background, at)

    def seen(self, images: Tensor, told: Conditioning, at: StepContext, whose: str) -> tuple[Tensor, Conditioning]:
        """Returns images [N, 3, R, R] as D gets to see them, and what it is told about them, in the same order.

        whose: "G", "fake", "real" or another name of the images within a step, which keeps draws apart. N: a multiple
        of the samples of `at`, sample by sample.
        """
        images = self.shown(images, at)
        if not self.augmentation.acts:
            return images, told
        assert at.draws is not None
        images, flip = self.augmentation(images, at.draws, whose)
        return images, told.mirrored(flip)

    def answer(
        self, images: Tensor, labels: Tensor, at: StepContext, whose: str, num_groups: int | None = None
    ) -> DiscriminatorOutput:
        """Returns what D says of images [N, 3, R, R] with camera labels [N, 25]; `whose` as for `seen`."""
        images, told = self.seen(images, self.conditioning(labels, at, whose), at, whose)
        return (self.outputs or self.D.outputs)(images, told, num_groups)

    def judge(
        self, images: Tensor, labels: Tensor, at: StepContext, whose: str, num_groups: int | None = None
    ) -> Tensor:
        """Returns D's logits [N, 1] of images [N, 3, R, R] with camera labels [N, 25]; `whose` as for `seen`."""
        return self.answer(images, labels, at, whose, num_groups).logits

    def answer_both(
        self, fake: Tensor, micro: MicroBatch, at: StepContext
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
        """Returns what D says of generated images [b, 3, R, R], and of the micro-batch's real ones, from one call.

        They alternate, the generated and the real image of each sample: with twice the groups of one kind, the strided
        minibatch-std groups of the discriminator hold one kind alone, exactly as in two calls of b images.
        """
        groups = 2 * self.D.num_groups(len(fake))
        fake, told_fake = self.seen(fake, self.conditioning(micro.d_labels, at, "fake"), at, "fake")
        real, told_real = self.seen(micro.real, self.conditioning(micro.real_labels, at, "real"), at, "real")
        images = torch.stack([fake, real], 1).flatten(0, 1)  # [2 b, 3, R, R]
        both = (self.outputs or self.D.outputs)(images, told_fake.interleaved(told_real), groups)
        generated, of_data = (
            DiscriminatorOutput(both.logits[i::2], {name: extra[i::2] for name, extra in both.extras.items()})
            for i in range(2)
        )
        return generated, of_data

    def judge_both(self, fake: Tensor, micro: MicroBatch, at: StepContext) -> tuple[Tensor, Tensor]:
        """Returns the logits [b] of `answer_both`."""
        generated, real = self.answer_both(fake, micro, at)
        return generated.logits.squeeze(1), real.logits.squeeze(1)

    def generator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Renders one scene per latent from V views, all judged in one batch (multi-view regularisation).

        Views are flattened scene-major (index b V + v): with V times the groups of one view, the strided minibatch-std
        groups of the discriminator hold different scenes of one view, exactly as in V separate calls of b images.
        """
        batch, views = len(micro.g_z), micro.g_cameras.shape[1]
        _, scene, rendering = self.generate(
            micro.g_z, micro.g_cameras, micro.g_background, micro.resolution, at, micro.g_told
        )
        images, labels = rendering.image.flatten(0, 1), micro.g_labels.flatten(0, 1)  # [b V, 3, R, R], [b V, 25]
        output = self.answer(images, labels, at, "G", views * self.D.num_groups(batch))
        logits = output.logits.view(batch, views)
        if micro.pairs is None:
            adversarial = losses.logistic(logits, real=True).mean(1)  # [b]
        else:
            with torch.no_grad():  # a constant of this phase
                real = self.judge(micro.real, micro.real_labels, at, "real").squeeze(1)  # [b]
            adversarial = losses.relativistic(logits, real[micro.pairs]).mean(1)  # [b]
        total, report = adversarial, {"Loss/G/adversarial": adversarial} | _logit_report("G", logits)
        terms = {**self.regularisers(scene), **self.view_regularisers(scene, micro, at)}
        terms |= {**self.agreement(output, micro, "G"), **self.picture_terms(rendering, micro, at)}
        for name, (weight, values) in terms.items():
            total, report[f"Loss/G/{name}"] = total + weight * values, values
        if micro.first:
            report |= scene.statistics(micro.g_cameras, micro.resolution)
        yield Loss(total, report)

    def discriminator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Judges generated and real images in one call; each pair as one loss where they are paired."""
        ws, images = self.fakes(micro, at)
        generated, of_data = self.answer_both(images, micro, at)
        fake, real = generated.logits.squeeze(1), of_data.logits.squeeze(1)  # [b] each
        report = _logit_report("fake", fake) | _logit_report("real", real)
        if micro.pairs is not None:
            self.augmentation.note(real - fake)  # D has no opinion of a real image alone
            loss = losses.relativistic(real, fake)
            yield Loss(loss, {"Loss/D/pairs": loss} | report | _logit_report("pairs", real - fake), ws)
            return
        self.augmentation.note(real)
        fake_loss, real_loss = losses.logistic(fake, real=False), losses.logistic(real, real=True)
        total, report = fake_loss + real_loss, {"Loss/D/fake": fake_loss, "Loss/D/real": real_loss} | report
        for name, (weight, values) in self.agreement(of_data, micro, "real").items():
            total, report[f"Loss/D/{name}"] = total + weight * values, values
        yield Loss(total, report, ws)

    def r1_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Penalises D's gradient at real images."""
        yield self._penalty("R1", micro.real, micro.real_labels, at, "real")

    def r2_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Penalises D's gradient at the generated images that D learnt from in this step; their G is left alone."""
        _, images = self.fakes(micro, at)
        yield self._penalty("R2", images, micro.d_labels, at, "fake")

    @torch.no_grad()
    def fakes(self, micro: MicroBatch, at: StepContext) -> tuple[Tensor, Tensor]:
        """Returns ws and images [b, 3, R, R] of the latents of the discriminator phase."""
        background = micro.d_background[:, None]
        ws, _, rendering = self.generate(
            micro.d_z, micro.d_cameras, background, micro.resolution, at, micro.d_told, "fake"
        )
        return ws, rendering.image[:, 0]

    def _penalty(self, name: str, images: Tensor, labels: Tensor, at: StepContext, whose: str) -> Loss:
        """Returns a gradient penalty at images as D gets to see them, with gamma / 2 times the interval.

        It goes through the eager D, whatever is compiled: its own gradient needs second derivatives.
        """
        images, told = self.seen(images, self.conditioning(labels, at, whose), at, whose)

        def judge(images: Tensor) -> Tensor:
            return self.D.outputs(images, told).logits

        penalty = losses.gradient_penalty(judge, images)
        weight = self.settings.penalties[name] / 2 * self.settings.r1_interval
        return Loss(penalty * weight, {f"Loss/D/{name.lower()}_penalty": penalty})


def _logit_report(whose: str, logits: Tensor) -> dict[str, Tensor]:
    return {f"Logits/{whose}": logits, f"Logits/{whose}/sign": logits.sign()}


def _adam(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=lr, betas=betas, eps=1e-8, fused=True)
