"""Turns global sample indices into what a step works on: data items, latents, cameras, backgrounds and flips.

Global sample index i = images seen so far + position in the total batch. Rank r takes whole, consecutive micro-batches.
All draws are functions of (seed, stream, i), so a step has no random state (torch_utils/random.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dnnlib
from gaussian import Cameras
from torch_utils import distributed, random
from torch_utils.random import Draws
from torch_utils.transfer import Transfer
from training.images import composite, mirror, mirror_labels
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
    @property
    def ema_kimg(self) -> Sequence[float]: ...
    def stage_at(self, nimg: int) -> Stage: ...
    def lr_factor(self, nimg: int) -> float: ...


class Images(Protocol):
    """States how a data set hands out items; `training.dataset.Batch` is one."""

    @property
    def images(self) -> Tensor: ...  # uint8 [B, 3, H, W]
    @property
    def masks(self) -> Tensor | None: ...  # uint8 [B, 1, H, W]
    @property
    def labels(self) -> Tensor: ...  # float32 [B, 25]


CLASSES = "classes/"  # begins the names of tensors of classes in a prepared step
WHOLE = ("whole/g", "whole/d", "whole/real")  # tensors of a prepared step that hold all samples, over all ranks


@dataclass(frozen=True)
class WholeStep:
    """Holds the cameras of all samples of a step, over all ranks, for losses that look beyond their micro-batch."""

    draws: Draws  # random numbers of all samples
    own: slice  # rows of the micro-batch
    g_labels: Tensor  # [n, 25] of the generator phase
    d_labels: Tensor  # [n, 25] of the generated images of the discriminator phase
    real_labels: Tensor  # [n, 25]


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
    whole: WholeStep | None = None  # where the objective asks for it
    g_told: Cameras | None = None  # [b] those that the mapping is told; None: the first view's
    d_told: Cameras | None = None  # [b] likewise
    # [b] int64 by whose images: "real", and "G" and "fake" for what either phase generates; none where none are told
    classes: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        """Pixels of the stage's images."""
        return self.real.shape[-1]


@dataclass(frozen=True)
class PreparedStep:
    """Holds what a rank's share of a step needs, drawn and packed before its turn; `SampleStream.cut` unpacks it."""

    nimg: int  # images seen before the step
    share: range  # global sample indices
    transfer: Transfer

    def send(self) -> None:
        """Starts the copies to the device; nothing waits for them."""
        self.transfer.send()


class SampleStream:
    """Turns global sample indices into micro-batches. It is pure: equal indices give equal numbers on any rank.

    classes: int64 [N] of the data items, where the networks are told any.
    """

    def __init__(
        self, config: RunConfig, labels: Tensor, z_dim: int, device: torch.device, classes: Tensor | None = None
    ):
        self.config, self.labels, self.z_dim, self.device = config, labels.cpu(), z_dim, device
        self.classes = classes if config.objective.tells_classes and classes is not None else None
        self.order = random.EpochOrder(config.seed, "data", len(labels))
        # Of all labels: the published code takes the micro-batch's, which changes with its size.
        self.label_std = self.labels.std(0, correction=0)
        self.law = config.objective.pose_law
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
        return self.cut(self.prepare(nimg, batch))

    def prepare(self, nimg: int, batch: Images) -> PreparedStep:
        """Draws what this rank's share of a step needs besides `batch`, and packs both for the device.

        It works on the CPU alone, and any thread may call it.
        """
        share, offsets = self.share(nimg), self.config.objective.views
        total = range(nimg, nimg + self.config.stage_at(nimg).batch)
        flip = self._flips("mirror", share)
        labels = mirror_labels(batch.labels, flip)
        g_labels, own = self.camera_labels("G", total), torch.arange(share.start - nimg, share.stop - nimg)
        views = torch.stack([g_labels[(own - v) % len(total)] for v in offsets], dim=1)  # [S, V, 25]
        whole_step = self.config.objective.whole_step
        d_labels = self.camera_labels("D", total if whole_step else share)
        all_d_labels, d_labels = d_labels, d_labels[own] if whole_step else d_labels
        tensors = {
            "images": batch.images,
            "flip": flip.to(torch.uint8),
            "labels": labels,  # of the real images, without noise
            "background": self._background("background", share, (3,)),
            "g_z": random.normal(self.config.seed, "G/z", share, (self.z_dim,)),
            "g_views": views,
            "g_background": self._background("G/background", share, (len(offsets), 3)),
            "d_z": random.normal(self.config.seed, "D/z", share, (self.z_dim,)),
            "d_views": d_labels[:, None],
        }
        if batch.masks is not None:
            tensors["masks"] = batch.masks
        if self.config.label_noise:
            told = (("real", labels), ("G", views), ("D", d_labels))
            tensors |= {f"{phase}/told": self._noisy(phase, share, given) for phase, given in told}
        if self.classes is not None:
            items = {"G": self._camera_items("G", share), "fake": self._camera_items("D", share)}
            items["real"] = torch.from_numpy(self.order(share))
            tensors |= {f"{CLASSES}{whose}": self.classes[of] for whose, of in items.items()}
        if whole_step:
            mirrored = mirror_labels(self.labels[self.order(total)], self._flips("mirror", total))
            tensors |= dict(zip(WHOLE, (g_labels, all_d_labels, mirrored), strict=True))
        return PreparedStep(nimg, share, Transfer(tensors, self.device))

    def cut(self, step: PreparedStep) -> list[MicroBatch]:
        """Returns the micro-batches of a prepared step. The host does not wait for the device."""
        stage, arrived = self.config.stage_at(step.nimg), step.transfer.take()
        whole = {name: arrived[name] for name in WHOLE if name in arrived}
        micro_batches = []
        for start in range(0, len(step.share), stage.batch_gpu):
            rows = slice(start, start + stage.batch_gpu)
            parts = {name: tensor[rows] for name, tensor in arrived.items() if name not in whole}
            micro_batches.append(self._micro_batch(step.share[rows], parts, start == 0, stage.resolution))
            if whole:
                micro_batches[-1].whole = self._whole_step(step, rows, *whole.values())
        return micro_batches

    def _whole_step(self, step: PreparedStep, rows: slice, g: Tensor, d: Tensor, real: Tensor) -> WholeStep:
        """Returns the cameras of all samples of a step, for the micro-batch that has `rows` of this rank's share."""
        total = range(step.nimg, step.nimg + len(g))
        before = step.share.start - step.nimg
        own = slice(before + rows.start, before + min(rows.stop, len(step.share)))
        return WholeStep(Draws(self.config.seed, total, self.device), own, g, d, real)

    def _micro_batch(
        self,
        indices: range,  # global sample indices
        parts: dict[str, Tensor],  # what `prepare` packed, of these samples
        first: bool,  # of this rank's share
        resolution: int,
    ) -> MicroBatch:
        images, masks = mirror(parts["images"], parts.get("masks"), parts["flip"].bool())
        labels, background = parts["labels"], parts["background"]
        micro = MicroBatch(
            draws=Draws(self.config.seed, indices, self.device),
            real=shrink(composite(images, masks, background), resolution),
            real_labels=parts.get("real/told", labels),
            g_z=parts["g_z"],
            g_cameras=Cameras.from_labels(parts["g_views"]),
            g_labels=parts.get("G/told", parts["g_views"]),
            g_background=parts["g_background"],
            d_z=parts["d_z"],
            d_cameras=Cameras.from_labels(parts["d_views"]),
            d_labels=parts.get("D/told", parts["d_views"][:, 0]),
            d_background=background,
            first=first,
            classes={name.removeprefix(CLASSES): part for name, part in parts.items() if name.startswith(CLASSES)},
        )
        return paired(micro, labels, self.config.objective.views) if self.config.objective.paired else micro

    def camera_labels(self, phase: str, indices: range) -> Tensor:
        """Draws labels [len(indices), 25]: of the law, or of data items, mirrored at random like the real ones."""
        if self.law is not None:
            return self.law.labels(self.config.seed, phase, indices)
        items = self._camera_items(phase, indices)
        return mirror_labels(self.labels[items], self._flips(f"{phase}/mirror", indices))

    def _camera_items(self, phase: str, indices: range) -> Tensor:
        """Draws the data items [len(indices)] whose cameras and classes generated images have."""
        return random.integers(self.config.seed, f"{phase}/camera", indices, len(self.labels))

    def _flips(self, stream: str, indices: range) -> Tensor:
        return (random.uniform(self.config.seed, stream, indices) < 0.5) & self.config.mirror

    def _noisy(self, phase: str, indices: range, labels: Tensor) -> Tensor:
        """Adds the configuration's noise to labels [b, ..., 25]."""
        noise = random.normal(self.config.seed, f"{phase}/label noise", indices, tuple(labels.shape[1:]))
        return labels + (self.config.label_noise * self.label_std * noise).to(labels)

    def _background(self, stream: str, indices: range, shape: tuple[int, ...]) -> Tensor:
        """Returns RGB in 0..1 of each sample [len(indices), *shape]: its own draw, or the one colour of the run."""
        if self.colour is None:
            return random.uniform(self.config.seed, stream, indices, shape)
        return self.colour.expand(len(indices), *shape)


def paired(micro: MicroBatch, labels: Tensor, views: range) -> MicroBatch:
    """Returns the micro-batch with generated images of the cameras of its real ones, over their backgrounds.

    labels [b, 25]: the real images' cameras, without noise. The scenes of V consecutive samples are seen from the V
    cameras of these samples, each in an order of its own. A block never crosses micro-batches (`TrainingConfig.check`),
    so every view's real image is at hand, whatever the split. The published order would ask for those of other ranks.
    """
    own = torch.arange(len(labels), device=labels.device)[:, None]  # [b, 1]
    offsets = torch.arange(views.start, views.stop, views.step, device=labels.device)  # [V]
    rows = own - own % len(views) + (own - offsets) % len(views)  # [b, V]
    return dataclasses.replace(
        micro,
        g_cameras=Cameras.from_labels(labels[rows]),
        g_labels=micro.real_labels[rows],  # the very noise that the real image's label has
        g_background=micro.d_background[rows],
        d_cameras=Cameras.from_labels(labels[:, None]),
        d_labels=micro.real_labels,
        pairs=rows,
        classes=dict.fromkeys(micro.classes, micro.classes["real"]) if micro.classes else {},
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
