"""Defines balls whose mapping insists on a camera, seen from two views a step, of which two averages are kept.

They note what they are told. One preset has two stages, in which the images grow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gaussian import Cameras, Rendering
from tests.families import ball
from training.families import base
from training.families.adversarial import AdversarialObjective
from training.families.adversarial_config import AdversarialConfig
from training.families.base import Loss, StepContext
from training.samples import MicroBatch, Stage


class Generator(ball.Generator):
    """Moves the ball with the camera that its mapping is told."""

    mapped: ClassVar[list[Cameras]] = []  # what mapping was told
    rendered: ClassVar[list[Cameras]] = []  # what render was told

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        assert cameras is not None and cameras.shape == (len(z),)
        self.mapped.append(cameras)
        return super().mapping(z, psi=psi) + cameras.positions[:, :1, None]

    def render(self, scene: ball.Balls, cameras: Cameras, *arguments: Any, **named: Any) -> Rendering:
        self.rendered.append(cameras)
        return super().render(scene, cameras, *arguments, **named)


@dataclass(frozen=True)
class DiscriminatorConfig(base.DiscriminatorConfig):
    width: int = 16  # of its one hidden layer


class Discriminator(base.Discriminator):
    """Judges 8 x 8 pixels of an image of any size, and its camera."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * 8 * 8 + 25, config.width), nn.GELU(), nn.Linear(config.width, 1))

    def outputs(
        self, images: Tensor, conditioning: base.Conditioning, num_groups: int | None = None
    ) -> base.DiscriminatorOutput:
        pixels = nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)  # [N, 192]
        return base.DiscriminatorOutput(self.layers(torch.cat([pixels, conditioning.labels], dim=1)))


@dataclass(frozen=True)
class ObjectiveConfig(AdversarialConfig):
    @property
    def views(self) -> range:
        return range(2)


class Objective(AdversarialObjective):
    def averages(self) -> Mapping[str, Callable[[int], float]]:
        return {"G_ema": lambda nimg: 0.9, "G_slow": lambda nimg: 0.99}

    def discriminator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        for loss in super().discriminator_losses(micro, at):
            yield dataclasses.replace(loss, ws=None)  # no truncation centre


STAGES = (Stage(0, 16, 8, 8, 0.002, 0.003), Stage(32, 32, 4, 2, 0.001, 0.0005))
PRESET = base.Preset(
    ball.GeneratorConfig(),
    DiscriminatorConfig(),
    ObjectiveConfig(gamma=0.0),
    base.RunFields(batch=8, batch_gpu=4),
)
FAMILY = dataclasses.replace(
    ball.FAMILY,
    name="told",
    title="balls that move with the camera",
    generator=Generator,
    discriminator_config=DiscriminatorConfig,
    discriminator=Discriminator,
    objective_config=ObjectiveConfig,
    objective=Objective,
    presets={"told": PRESET, "grown": dataclasses.replace(PRESET, run=base.RunFields(stages=STAGES))},
    options=(),
)
