"""Defines what a discriminator gives to the rest of the framework, whatever its architecture."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.records import Record


@dataclass(frozen=True)
class Conditioning:
    """Holds what a discriminator is told about its images."""

    labels: Tensor  # [N, 25] camera labels
    patch: Tensor | None = None  # [N, 3] scale and offsets of the part of the image that is shown
    fade: float = 1.0  # weight of the newest block of a discriminator that grows


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Holds what a discriminator says about its images."""

    logits: Tensor  # [N, 1], larger for real
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # further heads by name, such as a predicted pose


class DiscriminatorConfig(Record):
    """Is the base of the records that discriminators are built from."""

    minibatch_std_group: int = 1  # samples that share a statistic; --batch-gpu must be a multiple of it

    @property
    def num_freezable(self) -> int:
        """Returns how many layers --freezed can hold, counted from the image on."""
        return 0


class Discriminator(nn.Module, abc.ABC):
    """Judges images together with their cameras."""

    low_dtype: torch.dtype | None = None  # of the convolutions, set by the owner; None is the parameters' type

    @abc.abstractmethod
    def outputs(self, images: Tensor, conditioning: Conditioning, num_groups: int | None = None) -> DiscriminatorOutput:
        """Judges images [N, 3, R, R] in -1..1.

        num_groups: groups of samples that share a minibatch standard deviation; None is the configuration's.
        """

    def forward(self, images: Tensor, labels: Tensor, num_groups: int | None = None) -> Tensor:
        """Returns the logits [N, 1] of images [N, 3, R, R] in -1..1 with camera labels [N, 25]."""
        return self.outputs(images, Conditioning(labels), num_groups).logits

    def num_groups(self, count: int) -> int:
        """Returns the groups that `count` samples fall into. Raises ValueError if they do not divide evenly."""
        return 1

    def freezable(self) -> Sequence[nn.Module]:
        """Returns the layers in the order in which Freeze-D (Mo et al. 2020) counts them, from the image on."""
        return ()
