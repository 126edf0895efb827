"""Defines what a discriminator gives to the rest of the framework, whatever its architecture."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gaussian import Cameras
from training.records import Record

OF_EACH_IMAGE = ("labels", "patch", "classes", "dropout")  # fields of Conditioning with a row for each


@dataclass(frozen=True)
class Conditioning:
    """Holds what a discriminator is told about its images."""

    labels: Tensor  # [N, 25] camera labels
    patch: Tensor | None = None  # [N, 3] width of the part that is shown, and its offsets, in images
    fade: float = 1.0  # weight of the newest block of a discriminator that grows
    classes: Tensor | None = None  # [N] int64 classes of the images
    dropout: Tensor | None = None  # [N, K] factors on the numbers that it makes of a camera

    def mirrored(self, flip: Tensor) -> Conditioning:
        """Returns what holds once left and right are swapped in the images where flip [N] is set: camera and patch."""
        where = flip[:, None]
        labels, patch = torch.where(where, Cameras.from_labels(self.labels).mirror().labels, self.labels), self.patch
        if patch is not None:
            scale, x, y = patch.unbind(1)
            patch = torch.where(where, torch.stack([scale, 1 - scale - x, y], 1), patch)
        return dataclasses.replace(self, labels=labels, patch=patch)

    def of(self, part: slice) -> Conditioning:
        """Returns what holds for some of the images."""

        def chosen(name: str) -> Tensor | None:
            values = getattr(self, name)
            return None if values is None else values[part]

        return dataclasses.replace(self, **{name: chosen(name) for name in OF_EACH_IMAGE})  # type: ignore[arg-type]

    def interleaved(self, other: Conditioning) -> Conditioning:
        """Returns what holds for images that alternate: the first of these, the first of the other ones, ..."""

        def both(name: str) -> Tensor | None:
            own, others = getattr(self, name), getattr(other, name)
            return None if own is None else torch.stack([own, others], 1).flatten(0, 1)

        changes = {name: both(name) for name in OF_EACH_IMAGE}
        return dataclasses.replace(other, **changes)  # type: ignore[arg-type]


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
