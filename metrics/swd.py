"""Computes the sliced Wasserstein distance between the patches of two image sets, per level of a Laplacian pyramid.

Karras et al. 2018, "Progressive Growing of GANs", section 5 and appendix: 128 patches of 7x7x3 per image and level,
each channel of a set brought to mean 0 and standard deviation 1, 512 random directions, the distance times 1000. The
pyramid is that of Burt and Adelson 1983, from the images' resolution down to 16 pixels; its last level is the
low-pass rest itself. A coarse level judges shapes and colours, a fine one texture and edges.

Departures from the paper, for figures that repeat: the patches of image i lie at places drawn from (seed, i), so that
a set has distance 0 to itself; descriptors are kept in float16 (relative rounding 5e-4, half the memory).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.errors import MetricUnavailable
from metrics.results import MetricSpec, Outcome
from metrics.samples import Batches, Sampling, conditioning, each, fake_images, random_items, real_images
from metrics.yaw_bins import YAW_BINS, YawBins
from torch_utils import distributed, random

COARSEST = 16  # px, the last level of the pyramid
PATCH = 7  # px
PATCHES_PER_IMAGE = 128
DIRECTIONS = 512
PROJECTIONS_AT_ONCE = 1 << 24  # directions x patches of one set projected at a time: 64 MB
ROWS_AT_ONCE = 65536  # descriptors turned to float32 at a time: 39 MB, few enough calls for a machine that is busy
FEATURES = 3 * PATCH * PATCH


def levels_of(resolution: int) -> list[int]:
    """Returns the levels' resolutions, finest first: 64 -> [64, 32, 16].

    Raises ValueError unless `resolution` is 16 times a power of 2.
    """
    levels = [resolution]
    while levels[-1] > COARSEST and levels[-1] % 2 == 0:
        levels.append(levels[-1] // 2)
    if levels[-1] != COARSEST:
        raise ValueError(f"swd needs images of 16, 32, 64, ... px, got {resolution} px")
    return levels


def _smooth(x: Tensor, dim: int, step: int) -> Tensor:
    """Filters with (1 4 6 4 1)/16 along `dim`, which the caller has padded by 2, and keeps every `step`-th output."""
    n = x.shape[dim] - 4
    taps = [x.narrow(dim, k, n) for k in range(5)]
    if step > 1:
        taps = [tap[..., ::step] if dim == -1 else tap[..., ::step, :] for tap in taps]
    return (taps[0] + taps[4] + 4 * (taps[1] + taps[3]) + 6 * taps[2]) / 16


def _blur(x: Tensor, step: int = 1) -> Tensor:
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    return _smooth(_smooth(padded, -1, step), -2, step)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Takes [B, 3, R, R] apart into levels [B, 3, r, r] for r = R, R/2, ..., 16; their upsampled sum is `images`."""
    levels = []
    current = images.float()
    for _ in levels_of(images.shape[-1])[1:]:
        coarse = _blur(current, step=2)
        spread = torch.zeros_like(current)
        spread[..., ::2, ::2] = coarse
        levels.append(current - 4 * _blur(spread))
        current = coarse
    return [*levels, current]


class PatchDescriptors:
    """Keeps the patches of one image set at every level; images arrive in batches of any size.

    That takes count x 128 x 147 x 2 bytes (38 kB an image) and level, on `device`.
    """

    def __init__(self, resolution: int, count: int, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.count, self.seed, self.filled = count, seed, 0
        self.indices = torch.zeros(count, dtype=torch.int64)  # numbers of the images, which decide the patches' places
        shape = (count, PATCHES_PER_IMAGE, FEATURES)
        self.levels = {r: torch.empty(shape, dtype=torch.float16, device=device) for r in levels_of(resolution)}

    def add(self, indices: range, images: Tensor) -> None:
        """Adds images uint8 [B, 3, R, R] and their numbers in the set. Raises ValueError for images that do not fit."""
        batch = images.shape[0]
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"swd takes uint8 images [B, 3, R, R], got {images.dtype} {list(images.shape)}")
        resolution = max(self.levels)
        if images.shape[-2:] != (resolution, resolution) or self.filled + batch > self.count:
            got = f"{self.filled + batch} images of {list(images.shape[-2:])} px"
            raise ValueError(f"got {got} for a set of {self.count} of {resolution} px")
        rows = slice(self.filled, self.filled + batch)
        self.indices[rows] = torch.tensor(indices)
        for level in laplacian_pyramid(images.to(next(iter(self.levels.values())).device)):
            self.levels[level.shape[-1]][rows] = self._patches(level, indices)
        self.filled += batch

    def gather(self) -> PatchDescriptors | None:
        """Joins the sets of all ranks to one in the order of the images, on rank 0; returns None elsewhere."""
        if distributed.world_size() == 1:
            return self
        device = self.levels[min(self.levels)].device
        places = distributed.gather_rows(self.indices)
        whole = None
        for r, own in self.levels.items():
            parts = distributed.gather_rows(own.cpu())
            if parts is None or places is None:
                continue
            order = torch.cat(places)
            whole = whole or PatchDescriptors(max(self.levels), len(order), self.seed, device)
            whole.filled, whole.indices = len(order), order.sort().values
            whole.levels[r][order.to(device)] = torch.cat(parts).to(device)
        return whole

    def _patches(self, level: Tensor, indices: range) -> Tensor:
        """Cuts [B, 128, 147], channel-major, from [B, 3, r, r], at places that depend on (seed, image index) alone."""
        r = level.shape[-1]
        corners = random.uniform(self.seed, f"metric/swd/patch/{r}", indices, (PATCHES_PER_IMAGE, 2)).to(level.device)
        corners = (corners * (r - PATCH + 1)).long()  # [B, 128, 2] x, y
        inside = torch.arange(PATCH, device=level.device)
        offsets = torch.arange(3, device=level.device)[:, None, None] * r * r + inside[:, None] * r + inside
        first = corners[..., 1] * r + corners[..., 0]
        places = first[..., None] + offsets.reshape(-1)  # [B, 128, 147]
        return level.flatten(1).gather(1, places.flatten(1)).view(len(indices), PATCHES_PER_IMAGE, FEATURES)


@dataclass(frozen=True)
class _Normalised:
    """Projects one level of one set, whose descriptors it normalises on the way."""

    descriptors: Tensor  # [M, 147] float16
    mean: Tensor  # [147]
    std: Tensor  # [147]

    @staticmethod
    def of(level: Tensor) -> _Normalised:
        """Measures mean and deviation of a level [N, 128, 147], per channel."""
        descriptors = level.flatten(0, 1)
        total = torch.zeros(2, FEATURES, dtype=torch.float64)
        for chunk in descriptors.split(ROWS_AT_ONCE):
            # Blocks summed in float32, the blocks in float64: the order is fixed by the set, not by the batches.
            values = chunk.float()
            total += torch.stack([values.sum(0), values.square().sum(0)]).cpu().double()
        count = len(descriptors) * PATCH * PATCH
        mean, square = total.view(2, 3, PATCH * PATCH).sum(-1) / count
        std = (square - mean.square()).clamp_min(0).sqrt()
        std = torch.where(std > 1e-6, std, torch.ones_like(std))  # a channel that never changes stays 0
        per_feature = [v.repeat_interleave(PATCH * PATCH).float().to(level.device) for v in (mean, std)]
        return _Normalised(descriptors, *per_feature)

    def project(self, directions: Tensor, block: Tensor, out: Tensor) -> Tensor:
        """Projects on directions [D, 147], into out [D, M]; block [ROWS_AT_ONCE, 147] is room to work in."""
        weights = directions / self.std  # [D, 147]
        for start in range(0, len(self.descriptors), ROWS_AT_ONCE):
            chunk = self.descriptors[start : start + ROWS_AT_ONCE]
            values = block[: len(chunk)].copy_(chunk)
            torch.mm(weights, values.T, out=out[:, start : start + len(chunk)])
        return out.sub_((weights @ self.mean)[:, None])


def _wasserstein_rows(a: Tensor, b: Tensor) -> float:
    """Sums the 1-D Wasserstein-1 distances of the rows of a and b [D, M], which it overwrites."""
    if a.device.type != "cpu":
        return float((a.sort(-1).values - b.sort(-1).values).abs_().mean(-1).double().sum())

    # NumPy sorts float32 15 to 20 times as fast as torch.sort on CPUs with AVX2 or AVX-512, and frees the GIL.
    def one(row_a: np.ndarray, row_b: np.ndarray) -> float:
        row_a.sort()
        row_b.sort()
        np.subtract(row_a, row_b, out=row_a)
        return float(np.abs(row_a, out=row_a).mean(dtype=np.float64))

    with ThreadPoolExecutor(max(1, min(torch.get_num_threads(), os.cpu_count() or 1))) as pool:
        return sum(pool.map(one, a.numpy(), b.numpy()))


def distance(a: PatchDescriptors, b: PatchDescriptors) -> dict[str, float]:
    """Returns {"swd_64": ..., "swd_32": ..., "swd_16": ..., "mean": ...} of two full sets of equal count, times 1000.

    It is Wasserstein-1 over 512 directions, which depend on a's seed alone. Raises ValueError if the sets do not match.
    """
    if a.filled != b.filled or a.filled != a.count or b.filled != b.count or a.levels.keys() != b.levels.keys():
        described = [f"{s.filled} of {s.count} images of {max(s.levels)} px" for s in (a, b)]
        raise ValueError(f"swd needs two full sets of the same count and size, got {described[0]} and {described[1]}")
    directions = random.normal(a.seed, "metric/swd/directions", range(DIRECTIONS), (FEATURES,))
    directions = directions / directions.norm(dim=1, keepdim=True)
    values = {}
    for r in a.levels:
        sets = [_Normalised.of(s.levels[r]) for s in (a, b)]
        device = a.levels[r].device
        patches = len(sets[0].descriptors)
        at_once = min(DIRECTIONS, max(1, PROJECTIONS_AT_ONCE // patches))
        buffers = torch.empty(2, at_once, patches, device=device)
        block = torch.empty(ROWS_AT_ONCE, FEATURES, device=device)
        total = 0.0
        for some in directions.to(device).split(at_once):
            projected = [s.project(some, block, room[: len(some)]) for s, room in zip(sets, buffers, strict=True)]
            total += _wasserstein_rows(*projected)
        values[f"swd_{r}"] = 1e3 * total / DIRECTIONS
    return {**values, "mean": sum(values.values()) / len(values)}


def describe(images: Tensor, seed: int = 0, batch_size: int = 64) -> PatchDescriptors:
    """Cuts all patches of images uint8 [N, 3, R, R] (a set measured against several others needs it once)."""
    descriptors = PatchDescriptors(images.shape[-1], len(images), seed, images.device)
    for batch in images.split(batch_size):
        descriptors.add(range(descriptors.filled, descriptors.filled + len(batch)), batch)
    return descriptors


def swd(images_a: Tensor | np.ndarray, images_b: Tensor | np.ndarray, seed: int = 0) -> dict[str, float]:
    """Measures two sets of as many uint8 images [N, 3, R, R]: one figure per level and their mean, see `distance`."""
    a, b = (describe(torch.as_tensor(images), seed) for images in (images_a, images_b))
    return distance(a, b)


def sliced_wasserstein(spec: MetricSpec, sampling: Sampling) -> Outcome:
    """Computes `swd<N>` and `swd3d_<N>` of as many reals as fakes, min(N, size of the set).

    swd3d is ours: the mapping is conditioned on the frontal camera, as in FID3D. Samples, cameras and patches are those
    of swd, so the two are equal bit for bit for a generator that ignores the condition.
    """
    frontal = spec.kind == "swd3d"
    count = min(spec.count, len(sampling.dataset))
    values = _between(sampling, random_items(sampling, count), fake_images(sampling, count, frontal))
    protocol = {"num_real": count, "num_fake": count, "conditioning": conditioning(frontal)}
    return Outcome(values["mean"], values, protocol)


def swd_yaw(spec: MetricSpec, sampling: Sampling) -> Outcome:
    """Computes `swd_yaw<N>`: SWD of each of 5 yaw bins, min(N, smallest bin) reals and as many fakes per bin; ours."""
    bins = YawBins.of(sampling)
    count = min(spec.count, *(len(items) for items in bins.items))
    values = {}
    for b, items in enumerate(bins.items):
        some = items[random.permutation(sampling.seed, "metric/swd_yaw/real", b, len(items))[:count]]
        fakes = fake_images(sampling, count, pool=items, first=b * count)
        values[f"{spec.kind}_bin{b + 1}"] = _between(sampling, some, fakes)["mean"]
    numbers = {"num_real": count * YAW_BINS, "num_fake": count * YAW_BINS}
    return Outcome(sum(values.values()) / YAW_BINS, values, {**numbers, **bins.protocol()}, bins.note())


def _between(sampling: Sampling, items: np.ndarray, fakes: Batches) -> dict[str, float]:
    """Returns the `distance` of the data items `items` and as many fakes, on all ranks."""
    mine = sum(len(batch) for batch in sampling.batches(len(items)))
    try:
        own = [PatchDescriptors(sampling.G.resolution, mine, sampling.seed, sampling.device) for _ in range(2)]
    except ValueError as error:  # a resolution without a pyramid
        raise MetricUnavailable(str(error)) from None
    for descriptors, images in zip(own, (real_images(sampling, items), fakes), strict=True):
        each(images, descriptors.add)
    real, fake = (descriptors.gather() for descriptors in own)

    def measure() -> dict[str, float]:
        assert real is not None and fake is not None
        return distance(real, fake)

    return distributed.on_main(measure)
