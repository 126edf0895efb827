"""The images that metrics compare: reals from the data set and fakes from a generator, both uint8.

A generator here is anything with `z_dim`, `resolution`, `mapping`, `synthesis` and `render` (docs/design.md). Sample i
has its own latent and its own data item, functions of (seed, i) alone, so that the batch size changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras
from metrics.errors import MetricUnavailable
from torch_utils import random
from training.dataset import ImageDataset, composite, iterate, quantize

BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
CLEAR = 1 / 512  # alpha below which a pixel shows its background
BACKGROUND_TOLERANCE = 0.02  # in -1..1; clear pixels reach 2/512
LOADER_WORKERS = 2


@dataclass(frozen=True)
class Sampling:
    """What all metrics of one evaluation share."""

    G: Any
    dataset: ImageDataset
    seed: int
    device: torch.device
    batch_size: int
    background: str  # a name in BACKGROUNDS
    cache_dir: Path | None  # where statistics of reals are kept; None: nowhere
    progress: Callable[[str, int, int], None] | None  # called with (what, done, total)

    def colour(self) -> Tensor:
        return torch.tensor(BACKGROUNDS[self.background], device=self.device)

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    def batches(self, count: int) -> list[range]:
        return [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]


def check_background(image: Tensor, alpha: Tensor, colour: Tensor, whose: str) -> None:
    """Raises MetricUnavailable if pixels of image [B, 3, H, W] in -1..1 with alpha [B, 1, H, W] of 0 are not `colour`.

    Fakes over another background than the reals give a number that means nothing, and no error.
    """
    clear = alpha < CLEAR
    total = clear.sum()
    seen = (image * clear).sum(dim=(0, 2, 3)) / total.clamp_min(1)
    wrong = (total > 0) & ((seen - (2 * colour - 1)).abs().max() > BACKGROUND_TOLERANCE)
    if wrong:
        found = [round(v, 3) for v in ((seen + 1) / 2).tolist()]
        asked = [round(v, 3) for v in colour.tolist()]
        raise MetricUnavailable(f"the background of the {whose} images is {found} where the metric asks for {asked}")


def real_images(sampling: Sampling, count: int | None = None) -> Iterator[Tensor]:
    """Batches uint8 [B, 3, R, R] of `count` different data items in a seeded order, or of all items in theirs.

    Unmirrored and over the metric's background. Images without masks stay as stored.
    """
    dataset, colour = sampling.dataset, sampling.colour()
    total = len(dataset) if count is None else min(count, len(dataset))
    order = random.permutation(sampling.seed, "metric/real", 0, len(dataset)) if count is not None else range(total)
    batches = sampling.batches(total)
    loaded = iterate(dataset, [[int(order[i]) for i in batch] for batch in batches], LOADER_WORKERS)
    for indices, batch in zip(batches, loaded, strict=True):
        masks = None if batch.masks is None else batch.masks.to(sampling.device)
        image = composite(batch.images.to(sampling.device), masks, colour.expand(len(indices), 3))
        if masks is not None and indices.start == 0:
            check_background(image, masks / 255, colour, "real")
        yield quantize(image)
        sampling.tell("reals", indices.stop, total)


@torch.no_grad()
def fake_images(sampling: Sampling, count: int, frontal_conditioning: bool = False) -> Iterator[Tensor]:
    """Batches uint8 [B, 3, R, R] of `count` generated images, each rendered from the camera of a random data item.

    The mapping is conditioned on that same camera, or, as FID3D asks, on the one frontal camera of the data.
    Raises MetricUnavailable for images that are not finite.
    """
    G, dataset, seed, colour = sampling.G, sampling.dataset, sampling.seed, sampling.colour()
    labels = torch.as_tensor(dataset.labels)
    for indices in sampling.batches(count):
        z = random.normal(seed, "metric/z", indices, (G.z_dim,)).to(sampling.device)
        items = random.integers(seed, "metric/label", indices, len(dataset))
        cameras = Cameras.from_labels(labels[items].to(sampling.device))  # [B]
        condition = cameras
        if frontal_conditioning:
            condition = dataset.geometry.frontal().to(sampling.device).expand(len(indices))
        scene = G.synthesis(G.mapping(z, cameras=condition))
        rendering = G.render(scene, cameras.reshape(len(indices), 1), background=colour)
        image = rendering.image[:, 0]
        if not torch.isfinite(image).all():
            raise MetricUnavailable("the generator's images hold NaN or infinite values")
        if indices.start == 0:
            check_background(image, rendering.alpha[:, 0], colour, "generated")
        yield quantize(image)
        sampling.tell("fakes", indices.stop, count)
