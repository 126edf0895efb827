"""Plays the usual game of a GAN over a family's networks: a loss over views, lazy R1 and R2, Adam, one moving average.

The loss is the logistic one, or the relativistic one of R3GAN (Huang et al. 2024): real against generated image of one
camera. R3GAN's recipe is that loss with R1 and R2 of equal weight.

Families derive their objective from it, and add what is their own in `regularisers` and `shown`. Whatever D gets to
see goes through `seen`, which augments it (training/augment.py).
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gaussian import Cameras, Rendering
from training import augment, losses
from training.families.base import (
    Conditioning,
    Discriminator,
    DiscriminatorOutput,
    Generator,
    Loss,
    Objective,
    Phase,
    StepContext,
)
from training.families.in_parts import EVERY, part_by_part, parts
from training.samples import MicroBatch, RunConfig, Stage

Losses = Callable[[MicroBatch, StepContext], Iterator[Loss]]
Terms = Mapping[str, tuple[float, Tensor]]  # by name: a weight, and values [b]


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

    def agreement(self, output: DiscriminatorOutput, micro: MicroBatch, phase: str, part: slice = EVERY) -> Terms:
        """Returns terms of what else D says of images, by name: a weight, and values [N].

        phase: "G" for the images that the generator learns from, "real" for those of the data.
        part: which of them, [b V] flattened, the output is of.
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

    def judge(
        self, images: Tensor, labels: Tensor, at: StepContext, whose: str, num_groups: int | None = None
    ) -> Tensor:
        """Returns D's logits [N, 1] of images [N, 3, R, R] with camera labels [N, 25]; `whose` as for `seen`."""
        images, told = self.seen(images, self.conditioning(labels, at, whose), at, whose)
        return (self.outputs or self.D.outputs)(images, told, num_groups).logits

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

    def generator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Renders one scene per latent from V views, which D judges (multi-view regularisation)."""
        _, scene, rendering = self.generate(
            micro.g_z, micro.g_cameras, micro.g_background, micro.resolution, at, micro.g_told
        )
        total, report = yield from self._judged(rendering.image.flatten(0, 1), micro, at)
        terms = {**self.regularisers(scene), **self.view_regularisers(scene, micro, at)}
        terms |= self.picture_terms(rendering, micro, at)
        for name, (weight, values) in terms.items():
            total, report[f"Loss/G/{name}"] = total + weight * values, values
        if micro.first:
            report |= scene.statistics(micro.g_cameras, micro.resolution)
        yield Loss(total, report)

    def _judged(
        self, images: Tensor, micro: MicroBatch, at: StepContext
    ) -> abc.Generator[Loss, None, tuple[Tensor, dict[str, Tensor]]]:
        """Returns what D's opinion of images [b V, 3, R, R] costs, [b], and what there is to report.

        Views are flattened scene-major (index b V + v): with V times the groups of one view, the strided minibatch-std
        groups of the discriminator hold different scenes of one view, exactly as in V separate calls of b images.
        Yields what has to go back first where D judges in parts.
        """
        labels, views = micro.g_labels.flatten(0, 1), micro.g_labels.shape[1]  # [b V, 25]
        images, told = self.seen(images, self.conditioning(labels, at, "G"), at, "G")
        groups, against = views * self.D.num_groups(len(images) // views), self._rivals(micro, at)
        split = parts(len(images), groups, self.settings.judged_at_once)

        def opinion(images: Tensor, part: slice) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            output = (self.outputs or self.D.outputs)(images, told.of(part), groups // len(split))
            logits = output.logits.squeeze(1)
            cost, said = _cost(logits, None if against is None else against[part]), {}
            for name, (weight, values) in self.agreement(output, micro, "G", part).items():
                cost, said[f"Loss/G/{name}"] = cost + weight * values, values
            return cost / views, logits, said

        cost, logits, report = yield from part_by_part(images, split, opinion)
        report["Loss/G/adversarial"] = _cost(logits, against).view(-1, views).mean(1)
        return cost.view(-1, views).sum(1), report | _logit_report("G", logits.view(-1, views))

    @torch.no_grad()
    def _rivals(self, micro: MicroBatch, at: StepContext) -> Tensor | None:
        """Returns the logits that generated images [b V] are judged against; None where they are not paired."""
        if micro.pairs is None:
            return None
        real = self.judge(micro.real, micro.real_labels, at, "real").squeeze(1)  # [b]
        return real[micro.pairs].flatten()

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


def _cost(logits: Tensor, against: Tensor | None) -> Tensor:
    """Returns G's loss of its images' logits [N], against those of real ones [N] where they are paired."""
    return losses.logistic(logits, real=True) if against is None else losses.relativistic(logits, against)


def _logit_report(whose: str, logits: Tensor) -> dict[str, Tensor]:
    return {f"Logits/{whose}": logits, f"Logits/{whose}/sign": logits.sign()}


def _adam(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=lr, betas=betas, eps=1e-8, fused=True)
