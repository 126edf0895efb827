"""Plays pi-GAN's game: logistic loss over the best of a micro-batch, R1 at every step, guesses of latent and pose.

Source: Chan et al. 2021 (pi-GAN); top-k training after Sinha et al. 2020. Steps are counted by images and the stages'
batches, so that schedules are functions of the images seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras
from training import losses
from training.data.poses import angles_of
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
from training.families.posed import PosedConfig
from training.samples import MicroBatch, RunConfig, Stage

TOPK_DECAY = 0.99  # of the share of a micro-batch that G learns from, per interval
EMA_RAMP = 10  # updates: the averages keep (1 + n) / (10 + n) at most


@dataclass(frozen=True)
class PiganObjectiveConfig(PosedConfig):
    """Sets losses, optimisers and the law of cameras. Defaults are the published values for CelebA."""

    gamma: float = 0.2  # R1 weight, at every step
    clip: float = 10.0  # largest norm of a network's mean gradient
    beta2: float = 0.9  # Adam's second decay; the first is 0
    topk_interval: int = 2000  # steps after which G learns from 0.99 times as many of the best images
    topk_least: float = 0.6  # share of them at which that ends
    latent_weight: float = 0.0  # of the error of D's guess of the latent
    pose_weight: float = 15.0  # of the error of its guess of the angles, radians squared
    fade_steps: int = 10_000  # steps over which the entry of a new size fades in, that of the first too
    ema_decay: float = 0.999  # of the average of G that is shown, per step
    slow_ema_decay: float = 0.9999  # of a second one

    @property
    def guesses(self) -> bool:
        """Whether D's guesses count."""
        return self.latent_weight > 0 or self.pose_weight > 0

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        for flag, value in (
            ("--gamma", self.gamma),
            ("--z-lambda", self.latent_weight),
            ("--pos-lambda", self.pose_weight),
            ("--fade-steps", self.fade_steps),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{flag}={value}: must be finite and 0 or greater")
        if not self.clip > 0:
            raise ValueError(f"objective.clip={self.clip}: must be greater than 0")
        if self.topk_interval < 1:
            raise ValueError(f"objective.topk_interval={self.topk_interval}: must be 1 or greater")
        if not 0 < self.topk_least <= 1:
            raise ValueError(f"objective.topk_least={self.topk_least}: must be greater than 0, and 1 or less")
        for name in ("beta2", "ema_decay", "slow_ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"objective.{name}={getattr(self, name)}: must be 0 or greater and less than 1")
        self.check_pose()
        self._check_networks(config)

    def _check_networks(self, config: RunConfig) -> None:
        latent, z_dim = config.discriminator.latent, config.generator.z_dim
        if self.guesses and latent != z_dim:
            raise ValueError(
                f"discriminator.latent={latent}: with --pos-lambda or --z-lambda it must be the {z_dim} of the latent"
            )
        sizes = sorted({stage.resolution for stage in config.stages} | {config.stage_at(0).resolution})
        for size in sizes:
            if size & (size - 1) or not 4 <= size <= config.discriminator.largest:
                most = config.discriminator.largest
                raise ValueError(f"images of {size} px: the discriminator reads powers of two from 4 to {most}")
        if config.label_noise:
            raise ValueError(f"--disc-c-noise={config.label_noise}: has no effect on pi-GAN, whose D is told no camera")
        if config.freeze_d:
            raise ValueError(f"--freezed={config.freeze_d}: pi-GAN's D has no layers to be counted")


class PiganObjective(Objective):
    """Runs the phases D and G, in this order, over the networks of a run."""

    def __init__(self, config: RunConfig, G: Generator, D: Discriminator):
        self.config, self.settings, self.G, self.D = config, config.objective, G, D
        betas = (0.0, self.settings.beta2)
        rates = self.learning_rates(config.stage_at(0))
        self.opt_G = torch.optim.Adam(G.parameters(), lr=rates["G"], betas=betas, fused=True)
        self.opt_D = torch.optim.Adam(D.parameters(), lr=rates["D"], betas=betas, fused=True)
        self.outputs: Callable[..., DiscriminatorOutput] = D.outputs  # of generated images; `compile` changes it

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Returns Adam for G and for D."""
        return {"G": self.opt_G, "D": self.opt_D}

    def learning_rates(self, stage: Stage) -> Mapping[str, float]:
        """Returns the stage's rates."""
        return {"G": stage.g_lr, "D": stage.d_lr}

    def phases(self) -> Sequence[Phase]:
        """Returns D, then G, for every step."""
        clip = self.settings.clip
        return [
            Phase("D", self.D, self.opt_D, 1, clip, self.discriminator_losses),
            Phase("G", self.G, self.opt_G, 1, clip, self.generator_losses),
        ]

    def compile(self, backend: str = "inductor") -> None:
        """Compiles D where it judges generated images; R1's second derivatives need the eager one.

        Where entries fade, their weight is a number that changes with every step, so that D stays eager.
        """
        if not self.settings.fade_steps:
            self.outputs = torch.compile(self.D.outputs, backend=backend, dynamic=False)

    def averages(self) -> Mapping[str, Callable[[int], float]]:
        """Returns two averages, that keep the more of their past the longer the run is."""

        def kept(most: float) -> Callable[[int], float]:
            return lambda nimg: ema_share(steps_at(self.config, nimg) + 1, most)

        return {"G_ema": kept(self.settings.ema_decay), "G_slow": kept(self.settings.slow_ema_decay)}

    # ------------------------------------------------------------ what a micro-batch adds to each phase

    def told(self, at: StepContext) -> Conditioning:
        """Returns what D is told: how far the entry of the images' size has come."""
        assert at.nimg is not None
        return Conditioning(torch.empty(0), fade=fade_at(self.config, at.nimg, self.settings.fade_steps))

    def generate(
        self, z: Tensor, cameras: Cameras, background: Tensor, resolution: int, at: StepContext
    ) -> tuple[Any, Tensor]:
        """Returns scenes and images [b, 3, R, R] of z [b, z_dim] from cameras [b, 1] over backgrounds [b, 1, 3]."""
        scene = self.G.synthesis(self.G.mapping(z), at)
        return scene, self.G.render(scene, cameras, resolution, background, at).image[:, 0]

    def guess_errors(
        self, output: DiscriminatorOutput, z: Tensor, cameras: Cameras
    ) -> Mapping[str, tuple[float, Tensor]]:
        """Returns the errors [b] of D's guesses at generated images, with their weights, where they count."""
        settings = self.settings
        if not settings.guesses:
            return {}
        theta, phi = angles_of(cameras.positions)
        errors = {
            "latent": (settings.latent_weight, (output.extras["z"] - z).square().mean(1)),
            "pose": (settings.pose_weight, (output.extras["angles"] - torch.stack([phi, theta], 1)).square().mean(1)),
        }
        return {name: (weight, values) for name, (weight, values) in errors.items() if weight > 0}

    def discriminator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Judges generated and real images, with R1 at the real ones, and guesses what made the generated ones."""
        with torch.no_grad():
            _, images = self.generate(micro.d_z, micro.d_cameras, micro.d_background[:, None], micro.resolution, at)
        told, settings = self.told(at), self.settings
        real = micro.real.detach().requires_grad_(settings.gamma > 0)
        of_data = self.D.outputs(real, told).logits.squeeze(1)  # [b]
        generated = self.outputs(images, told)
        fake = generated.logits.squeeze(1)
        fake_loss, real_loss = losses.logistic(fake, real=False), losses.logistic(of_data, real=True)
        total, report = fake_loss + real_loss, {"Loss/D/fake": fake_loss, "Loss/D/real": real_loss}
        report |= _logit_report("fake", fake) | _logit_report("real", of_data)
        if settings.gamma > 0:
            (slope,) = torch.autograd.grad(of_data.sum(), real, create_graph=True)
            penalty = slope.square().sum(dim=(1, 2, 3))
            total, report["Loss/D/r1_penalty"] = total + settings.gamma / 2 * penalty, penalty
        for name, (weight, values) in self.guess_errors(generated, micro.d_z, micro.d_cameras[:, 0]).items():
            total, report[f"Loss/D/{name}"] = total + weight * values, values
        yield Loss(total, report)

    def generator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Learns from those of the micro-batch that D finds best, and to make images whose latent and pose show."""
        scene, images = self.generate(micro.g_z, micro.g_cameras, micro.g_background, micro.resolution, at)
        total, report = self.judged(images, micro, at)
        if micro.first:
            report |= scene.statistics(micro.g_cameras, micro.resolution)
        yield Loss(total, report)

    def judged(self, images: Tensor, micro: MicroBatch, at: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what D's opinion of generated images [b, 3, R, R] costs, [b], with its parts by name."""
        assert at.nimg is not None
        output = self.outputs(images, self.told(at))
        logits, settings = output.logits.squeeze(1), self.settings
        share = topk_share(steps_at(self.config, at.nimg), settings.topk_interval, settings.topk_least)
        adversarial = losses.logistic(logits, real=True) * topk_weights(logits, share)
        total, report = adversarial, {"Loss/G/adversarial": adversarial} | _logit_report("G", logits)
        for name, (weight, values) in self.guess_errors(output, micro.g_z, micro.g_cameras[:, 0]).items():
            total, report[f"Loss/G/{name}"] = total + weight * values, values
        return total, report


# ---------------------------------------------------------------- schedules and pure terms


def steps_at(config: RunConfig, nimg: int) -> float:
    """Returns the steps that it takes to see nimg images in the stages of a run."""
    ends = [stage.from_nimg for stage in config.stages if 0 < stage.from_nimg < nimg] + [nimg]
    steps, start = 0.0, 0
    for end in ends:
        steps += (end - start) / config.stage_at(start).batch
        start = end
    return steps


def fade_at(config: RunConfig, nimg: int, fade_steps: int) -> float:
    """Returns how far the entry of the images' size has faded in, linearly over `fade_steps` since they got it."""
    if not fade_steps:
        return 1.0
    size = config.stage_at(nimg).resolution
    starts = [0, *(stage.from_nimg for stage in config.stages)]
    start = min(s for s in starts if s <= nimg and config.stage_at(s).resolution == size)
    return min((steps_at(config, nimg) - steps_at(config, start)) / fade_steps, 1.0)


def ema_share(updates: float, most: float) -> float:
    """Returns the share of an average that its update number `updates`, from 1 on, keeps."""
    return min(most, (1 + updates) / (EMA_RAMP + updates))


def topk_share(steps: float, interval: int, least: float) -> float:
    """Returns the share of a micro-batch that G learns from."""
    return max(TOPK_DECAY ** (steps / interval), least)


def topk_weights(logits: Tensor, share: float) -> Tensor:
    """Returns weights [b] of mean 1: b / k for the k = ceil(share b) largest logits [b], 0 for the others.

    The chosen depend on the micro-batch, as published; so runs agree that have the same --batch-gpu.
    """
    count = len(logits)
    best = min(math.ceil(share * count), count)
    if best == count:
        return torch.ones_like(logits)
    chosen = logits.detach().topk(best).indices
    return torch.zeros_like(logits).scatter(0, chosen, count / best)


def _logit_report(whose: str, logits: Tensor) -> dict[str, Tensor]:
    return {f"Logits/{whose}": logits, f"Logits/{whose}/sign": logits.sign()}
