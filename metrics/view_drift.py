"""Measures view drift, ours: how far the identity of one latent moves when only the conditioning camera changes.

Every latent is mapped under 8 random data labels and rendered from the one frontal camera; a consistent generator gives
the same picture 8 times. Latents are taken in groups of 8. In a group,

    within  = mean over latents of the mean distance between the 8 pictures of that latent
    between = mean over pairs of latents and over labels of the distance between their pictures under the label's slot

and view drift is the ratio of their means over all groups: 0 if the camera never reaches the identity, about 1 if it
decides as much as the latent. Distance: root mean square over the pixels of pictures area-downsampled to 64 px; and,
where there is a detector, the Euclidean distance of features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.detectors import Detector
from metrics.errors import MetricUnavailable
from metrics.results import MetricSpec, Outcome
from metrics.samples import Sampling, data_cameras, each, frontal_cameras, latents, picture
from torch_utils import distributed, random

LABELS = 8  # conditioning cameras per latent
GROUP = 8  # latents compared with each other: a fixed number, so that the batch size changes nothing
SIZE = 64  # px


def shrink(images: Tensor) -> Tensor:
    """Shrinks uint8 [B, 3, R, R] by area to float32 [B, 3 * 64 * 64]; smaller pictures keep their size."""
    return F.adaptive_avg_pool2d(images.float(), min(SIZE, images.shape[-1])).flatten(1)


def _pair_distances(x: Tensor) -> Tensor:
    """Returns the mean distance [...] of the n (n - 1) / 2 pairs of rows [..., n, F]; equal rows give exactly 0."""
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)
    return (x[..., i, :] - x[..., j, :]).square().mean(-1).sqrt().double().mean(-1)


class Drift:
    """Adds up distances within and between latents, over groups and ranks."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)  # within, latents, between, pairs of latents

    def add(self, x: Tensor) -> None:
        """Adds a group's descriptors [latents, 8, F]."""
        n = len(x)
        pairs = n * (n - 1) / 2
        between = float(_pair_distances(x.transpose(0, 1)).mean()) * pairs if n > 1 else 0.0
        within = float(_pair_distances(x).sum())
        self.sums += torch.tensor([within, n, between, pairs], dtype=torch.float64)

    def ratio(self, what: str) -> float:
        """Returns view drift over all ranks. Raises MetricUnavailable, naming `what`, if the latents do not differ."""
        distributed.add_over_ranks_(self.sums)
        within, count, between, pairs = self.sums.tolist()
        if not between > 0:
            raise MetricUnavailable(f"all latents give the same {what}, or ones that are not finite")
        return (within / count) / (between / pairs)


def group_images(sampling: Sampling, count: int) -> Iterator[tuple[range, Tensor]]:
    """Yields this rank's groups of n latents, each seen from the front under 8 labels: uint8 [8 n, 3, R, R]."""
    num_items = len(sampling.dataset)
    groups = [range(i, min(i + GROUP, count)) for i in range(0, count, GROUP)]
    mine = groups[distributed.rank() :: distributed.world_size()]
    for indices in mine:
        items = random.integers(sampling.seed, "metric/view_drift/label", indices, num_items, (LABELS,)).flatten()
        z = latents(sampling, indices).repeat_interleave(LABELS, dim=0)  # [8 n, z_dim]
        condition, cameras = data_cameras(sampling, items), frontal_cameras(sampling, len(items))
        # A latent has one class, that of its first item.
        classed = items.view(-1, LABELS)[:, :1].expand(-1, LABELS).flatten()
        parts = [slice(i, i + sampling.batch_size) for i in range(0, len(items), sampling.batch_size)]
        check = indices is mine[0]
        images = [picture(sampling, z[p], condition[p], cameras[p], classed[p], check) for p in parts]
        yield indices, torch.cat(images)
        sampling.report_progress("fakes", indices.stop, count)


def view_drift(spec: MetricSpec, sampling: Sampling, detector: Detector | None) -> Outcome:
    """Computes `view_drift<N>` of N latents; the detector is used where there is one."""
    pixels, features = Drift(), Drift()

    def consume(indices: range, images: Tensor) -> None:
        pixels.add(shrink(images).unflatten(0, (len(indices), LABELS)))
        if detector is not None:
            rows = torch.cat([detector(part) for part in images.split(sampling.batch_size)])
            features.add(rows.unflatten(0, (len(indices), LABELS)))

    each(group_images(sampling, spec.count), consume)
    value = pixels.ratio("picture")
    values = {spec.name: value}
    if detector is not None:
        values["features"] = features.ratio("features")
    protocol = {
        "num_real": 0,
        "num_fake": spec.count * LABELS,
        "labels_per_latent": LABELS,
        "cameras": "the data's frontal camera",
        "conditioning": "of random data items",
    }
    return Outcome(value, values, protocol)
