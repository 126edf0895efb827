"""Turns global sample indices into what a step works on: data items, latents, cameras, backgrounds and flips.

Global sample index i = images seen so far + position in the total batch. Rank r takes whole, consecutive micro-batches.
All draws are functions of (seed, stream, i), so a step has no random state (torch_utils/random.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dnnlib
from gaussian import Cameras
from torch_utils import distributed, random
from torch_utils.random import Draws
from training.images import composite, mirror
from training.records import Record


@dataclass(frozen=True)
class Stage(Record):
    """Gives a part of a run values of its own, from so many images seen until the next stage begins."""

    from_nimg: int  # images seen when it begins
    resolution: int  # pixels of real and generated images
    batch: int  # samples per step, over all ranks
    batch_gpu: int  # samples per micro-batch
    g_lr: float  # learning rate of the generator
    d_lr: float  # learning rate of the discriminator


class RunConfig(Protocol):
    """States what samples and objectives read of a run's configuration; `training.config.TrainingConfig` is one."""

    @property
    def seed(self) -> int: ...
    @property
    def mirror(self) -> bool: ...
    @property
    def background(self) -> str: ...
    @property
    def label_noise(self) -> float: ...
    @property
    def freeze_d(self) -> int: ...
    @property
    def generator(self) -> Any: ...
    @property
    def discriminator(self) -> Any: ...
    @property
    def objective(self) -> Any: ...
    @property
    def stages(self) -> Sequence[Stage]: ...
    def stage_at(self, nimg: int) -> Stage: ...


class Images(Protocol):
    """States how a data set hands out items; `training.dataset.Batch` is one."""

    @property
    def images(self) -> Tensor: ...  # uint8 [B, 3, H, W]
    @property
    def masks(self) -> Tensor | None: ...  # uint8 [B, 1, H, W]
    @property
    def labels(self) -> Tensor: ...  # float32 [B, 25]


@dataclass
class MicroBatch:
    """Holds `batch_gpu` consecutive samples of a step, on the device. Cameras are of the generated images.

    Labels are what the discriminator is told: those of the cameras, with noise where the configuration has any.
    """

    draws: Draws  # further random numbers of these samples
    real: Tensor  # [b, 3, R, R] in -1..1, composited and flipped
    real_labels: Tensor  # [b, 25]
    g_z: Tensor  # [b, z_dim] latents of the generator phase
    g_cameras: Cameras  # [b, V]
    g_labels: Tensor  # [b, V, 25]
    g_background: Tensor  # [b, V, 3]
    d_z: Tensor  # [b, z_dim] latents of the discriminator phase
    d_cameras: Cameras  # [b, 1]
    d_labels: Tensor  # [b, 25]
    d_background: Tensor  # [b, 3], shared by the real and the generated image of one index
    first: bool  # of this rank's share: carries the scene statistics
    pairs: Tensor | None = None  # [b, V] row of the real image of each view's camera; None: cameras are of other items

    @property
    def resolution(self) -> int:
        """Pixels of the stage's images."""
        return self.real.shape[-1]


class SampleStream:
    """Turns global sample indices into micro-batches. It is pure: equal indices give equal numbers on any rank."""

    def __init__(self, config: RunConfig, labels: Tensor, z_dim: int, device: torch.device):
        self.config, self.labels, self.z_dim, self.device = config, labels.cpu(), z_dim, device
        self.order = random.EpochOrder(config.seed, "data", len(labels))
        # Of all labels: the published code takes the micro-batch's, which changes with its size.
        self.label_std = self.labels.std(0, correction=0)
        self.colour = None if config.background == "random" else torch.tensor(dnnlib.parse_color(config.background))

    def share(self, nimg: int) -> range:
        """Returns this rank's samples of the step that starts after `nimg` images."""
        size = self.config.stage_at(nimg).batch // distributed.world_size()
        return range(nimg + distributed.rank() * size, nimg + (distributed.rank() + 1) * size)

    def items(self, nimg: int) -> np.ndarray:
        """Returns the data items of this rank's share, int64."""
        return self.order(self.share(nimg))

    def all_items(self, nimg: int) -> np.ndarray:
        """Returns the data items of the step over all ranks, int64."""
        return self.order(range(nimg, nimg + self.config.stage_at(nimg).batch))

    def micro_batches(self, nimg: int, batch: Images) -> list[MicroBatch]:
        """Cuts this rank's share of a step, loaded as `batch`, into micro-batches on the device."""
        stage, share = self.config.stage_at(nimg), self.share(nimg)
        total = range(nimg, nimg + stage.batch)
        g_labels = self.camera_labels("G", total)
        return [
            self._micro_batch(total, share[start : start + stage.batch_gpu], batch, start, stage.resolution, g_labels)
            for start in range(0, len(share), stage.batch_gpu)
        ]

    def _micro_batch(
        self,
        total: range,  # global sample indices of the step, over all ranks
        indices: range,  # those of this micro-batch
        batch: Images,  # this rank's items
        start: int,  # place of this micro-batch in them
        resolution: int,
        g_labels: Tensor,  # [total batch, 25] camera labels of the generator phase
    ) -> MicroBatch:
        rows = slice(start, start + len(indices))
        background = self._background("background", indices, (3,))
        masks = None if batch.masks is None else batch.masks[rows].to(self.device)
        flip = self._flips("mirror", indices).to(self.device)
        images, masks, labels = mirror(
            batch.images[rows].to(self.device), masks, batch.labels[rows].to(self.device), flip
        )
        own = torch.arange(indices.start - total.start, indices.stop - total.start)
        offsets = self.config.objective.views
        views = torch.stack([g_labels[(own - v) % len(total)] for v in offsets], dim=1)  # [b, V, 25]
        views = views.to(self.device)
        d_labels = self.camera_labels("D", indices).to(self.device)
        micro = MicroBatch(
            draws=Draws(self.config.seed, indices, self.device),
            real=shrink(composite(images, masks, background), resolution),
            real_labels=self._noisy("real", indices, labels),
            g_z=self._normal("G/z", indices),
            g_cameras=Cameras.from_labels(views),
            g_labels=self._noisy("G", indices, views),
            g_background=self._background("G/background", indices, (len(offsets), 3)),
            d_z=self._normal("D/z", indices),
            d_cameras=Cameras.from_labels(d_labels[:, None]),
            d_labels=self._noisy("D", indices, d_labels),
            d_background=background,
            first=start == 0,
        )
        return paired(micro, labels, offsets) if self.config.objective.paired else micro

    def camera_labels(self, phase: str, indices: range) -> Tensor:
        """Draws labels of data items uniformly, mirrored at random like the real ones: [len(indices), 25]."""
        items = random.integers(self.config.seed, f"{phase}/camera", indices, len(self.labels))
        labels = self.labels[items]
        flip = self._flips(f"{phase}/mirror", indices)
        mirrored = Cameras.from_labels(labels).mirror().labels
        return torch.where(flip[:, None], mirrored, labels)

    def _flips(self, stream: str, indices: range) -> Tensor:
        return (random.uniform(self.config.seed, stream, indices) < 0.5) & self.config.mirror

    def _noisy(self, phase: str, indices: range, labels: Tensor) -> Tensor:
        """Adds the configuration's noise to labels [b, ..., 25]."""
        if not self.config.label_noise:
            return labels
        noise = random.normal(self.config.seed, f"{phase}/label noise", indices, tuple(labels.shape[1:]))
        return labels + (self.config.label_noise * self.label_std * noise).to(labels)

    def _background(self, stream: str, indices: range, shape: tuple[int, ...]) -> Tensor:
        """Returns RGB in 0..1 of each sample [len(indices), *shape]: its own draw, or the one colour of the run."""
        if self.colour is None:
            return random.uniform(self.config.seed, stream, indices, shape).to(self.device)
        return self.colour.expand(len(indices), *shape).to(self.device)

    def _normal(self, stream: str, indices: range) -> Tensor:
        return random.normal(self.config.seed, stream, indices, (self.z_dim,)).to(self.device)


def paired(micro: MicroBatch, labels: Tensor, views: range) -> MicroBatch:
    """Returns the micro-batch with generated images of the cameras of its real ones, over their backgrounds.

    labels [b, 25]: the real images' cameras, without noise. The scenes of V consecutive samples are seen from the V
    cameras of these samples, each in an order of its own. A block never crosses micro-batches (`TrainingConfig.check`),
    so every view's real image is at hand, whatever the split. The published order would ask for those of other ranks.
    """
    own, offsets = torch.arange(len(labels))[:, None], torch.tensor(list(views))  # [b, 1], [V]
    rows = own - own % len(views) + (own - offsets) % len(views)  # [b, V]
    rows = rows.to(labels.device)
    return dataclasses.replace(
        micro,
        g_cameras=Cameras.from_labels(labels[rows]),
        g_labels=micro.real_labels[rows],  # the very noise that the real image's label has
        g_background=micro.d_background[rows],
        d_cameras=Cameras.from_labels(labels[:, None]),
        d_labels=micro.real_labels,
        pairs=rows,
    )


def shrink(images: Tensor, resolution: int) -> Tensor:
    """Averages images [N, C, H, W] over squares of pixels, so that they are `resolution` wide.

    Raises ValueError if that is not a whole fraction of their width.
    """
    if images.shape[-1] == resolution:
        return images
    factor, rest = divmod(images.shape[-1], resolution)
    if rest:
        raise ValueError(f"images of {images.shape[-1]} px cannot be shrunk to {resolution} px")
    return F.avg_pool2d(images, factor)
