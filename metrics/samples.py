"""Makes the images that metrics compare: reals from the data set and fakes from a generator, both uint8.

Sample i has its own latent and its own data item, functions of (seed, i) alone, so that the batch size changes nothing.
Batches go to the ranks in turns: with R ranks, rank r makes batches r, r + R, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dnnlib
from gaussian import Cameras
from metrics.errors import MetricUnavailable, one_line
from metrics.generators import Generator
from torch_utils import distributed, random
from training.dataset import ImageDataset, iterate
from training.images import composite, quantize

CLEAR = 1 / 512  # alpha below which a pixel shows its background
BACKGROUND_TOLERANCE = 0.02  # in -1..1; clear pixels reach 2/512
LOADER_WORKERS = 2

Batches = Iterator[tuple[range, Tensor]]


@dataclass(frozen=True)
class Sampling:
    """Holds what decides the images of a metric, and how they are made."""

    G: Generator
    dataset: ImageDataset  # unmirrored
    seed: int  # of latents, cameras and everything else that is drawn
    device: torch.device  # where G is
    batch_size: int  # images at once; changes no value
    background: str  # of reals and fakes, see dnnlib.parse_color
    cache_dir: Path | None  # where features of reals are kept; None: nowhere
    progress: Callable[[str, int, int], None] | None  # called with (what, done, total)
    data_key: str = ""  # hash of the data set's content

    def colour(self) -> Tensor:
        """Returns the background as RGB in 0..1: [3]."""
        return torch.tensor(dnnlib.parse_color(self.background), device=self.device)

    def report_progress(self, what: str, done: int, total: int) -> None:
        """Says that `done` of `total` images exist; what: "reals" or "fakes"."""
        if self.progress is not None:
            self.progress(what, done, total)

    def batches(self, count: int) -> list[range]:
        """Returns this rank's batches of `count` samples."""
        batches = [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]
        return batches[distributed.rank() :: distributed.world_size()]


def each(batches: Iterable[tuple[range, Tensor]], consume: Callable[[range, Tensor], None]) -> None:
    """Hands this rank's share to `consume`. What keeps one rank from it is raised as MetricUnavailable on all."""
    reason = None
    try:
        for indices, images in batches:
            consume(indices, images)
    except MetricUnavailable as error:
        reason = str(error)
    except (OSError, ValueError) as error:  # an image that cannot be read
        reason = one_line(error)
    except torch.cuda.OutOfMemoryError:
        reason = "the device ran out of memory; a smaller batch size needs less"
    for failed in distributed.gather_objects(reason):
        if failed is not None:
            raise MetricUnavailable(failed)


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


def random_items(sampling: Sampling, count: int) -> np.ndarray:
    """Draws `count` different data items (all, if there are fewer), in a seeded order."""
    return random.permutation(sampling.seed, "metric/real", 0, len(sampling.dataset))[:count]


def real_images(sampling: Sampling, items: np.ndarray | None = None) -> Batches:
    """Yields this rank's batches uint8 [B, 3, R, R] of the data items `items` (None: all), with their places in it.

    Unmirrored and over the metric's background. Images without masks stay as stored.
    """
    dataset, colour = sampling.dataset, sampling.colour()
    items = np.arange(len(dataset)) if items is None else items
    batches = sampling.batches(len(items))
    loaded = iterate(dataset, [items[batch.start : batch.stop].tolist() for batch in batches], LOADER_WORKERS)
    for indices, batch in zip(batches, loaded, strict=True):
        masks = None if batch.masks is None else batch.masks.to(sampling.device)
        image = composite(batch.images.to(sampling.device), masks, colour.expand(len(indices), 3))
        if masks is not None and indices is batches[0]:
            check_background(image, masks / 255, colour, "real")
        yield indices, quantize(image)
        sampling.report_progress("reals", indices.stop, len(items))


def latents(sampling: Sampling, indices: range) -> Tensor:
    """Draws the latents of the samples `indices`: [len(indices), z_dim]."""
    return random.normal(sampling.seed, "metric/z", indices, (sampling.G.z_dim,)).to(sampling.device)


def data_cameras(sampling: Sampling, items: Tensor | np.ndarray) -> Cameras:
    """Returns the cameras of data items, of the shape of `items`."""
    return Cameras.from_labels(torch.as_tensor(sampling.dataset.labels)[items].to(sampling.device))


def fake_items(sampling: Sampling, samples: range, pool: np.ndarray) -> np.ndarray:
    """Draws, for each of `samples`, the data item of `pool` from whose camera `fake_images` renders it."""
    # As NumPy: it takes a tensor of one index for a number, and a batch of one image would lose its dimension.
    return pool[random.integers(sampling.seed, "metric/label", samples, len(pool)).numpy()]


def mapped(sampling: Sampling, z: Tensor, condition: Cameras, items: Tensor | np.ndarray) -> Tensor:
    """Maps latents [B, z_dim] under `condition` [B], told the classes of the data items [B] where G knows any."""
    mapping: Any = sampling.G.mapping
    if not sampling.G.num_classes:
        ws: Tensor = mapping(z, cameras=condition)
        return ws
    classes = torch.as_tensor(sampling.dataset.classes)[torch.as_tensor(items).cpu()]
    ws = mapping(z, cameras=condition, classes=classes.to(sampling.device))
    return ws


def conditioning(frontal: bool) -> str:
    """Says in a result's protocol what camera the mapping of `fake_images` was told."""
    return "the data's frontal camera" if frontal else "the rendering camera"


def frontal_cameras(sampling: Sampling, count: int) -> Cameras:
    """Returns the one frontal camera of the data's geometry, `count` times."""
    return sampling.dataset.geometry.frontal().to(sampling.device).expand(count)


@torch.no_grad()
def picture(
    sampling: Sampling,
    z: Tensor,
    condition: Cameras,
    cameras: Cameras,
    items: Tensor | np.ndarray,
    check: bool = False,
) -> Tensor:
    """Maps latents [B, z_dim] under `condition` [B] and renders them from `cameras` [B]: uint8 [B, 3, R, R].

    items: [B] data items whose classes scenes have, as for `mapped`. check: compare the background too.
    Raises MetricUnavailable for images that are not finite.
    """
    G, colour = sampling.G, sampling.colour()
    scene = G.synthesis(mapped(sampling, z, condition, items))
    rendering = G.render(scene, cameras.reshape(len(z), 1), background=colour.expand(len(z), 1, 3))
    image = rendering.image[:, 0]
    if not torch.isfinite(image).all():
        raise MetricUnavailable("the generator's images hold NaN or infinite values")
    if check:
        check_background(image, rendering.alpha[:, 0], colour, "generated")
    return quantize(image)


def fake_images(
    sampling: Sampling,
    count: int,
    frontal_conditioning: bool = False,
    pool: np.ndarray | None = None,  # data items whose cameras are drawn; None: all
    first: int = 0,  # number of the first sample
) -> Batches:
    """Yields this rank's batches uint8 [B, 3, R, R] of `count` generated images, from cameras of random data items.

    The mapping is conditioned on the camera of the image or, as FID3D and SWD3D ask, on the data's one frontal camera;
    one that knows classes is told the items'.
    """
    pool = np.arange(len(sampling.dataset)) if pool is None else pool
    batches = sampling.batches(count)
    for indices in batches:
        samples = range(first + indices.start, first + indices.stop)
        items = fake_items(sampling, samples, pool)
        cameras = data_cameras(sampling, items)
        condition = frontal_cameras(sampling, len(indices)) if frontal_conditioning else cameras
        z, check = latents(sampling, samples), indices is batches[0]
        yield indices, picture(sampling, z, condition, cameras, items, check)
        sampling.report_progress("fakes", indices.stop, count)
