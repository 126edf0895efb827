"""Computes improved precision and recall (Kynkäänniemi et al. 2019).

Each set is covered by balls around its features, as wide as the distance to the third nearest neighbour in the set.
Precision is the share of fakes inside a ball of the reals, recall the share of reals inside a ball of the fakes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metrics.detectors import Detector
from metrics.errors import MetricUnavailable
from metrics.feature_stats import FeatureRows
from metrics.real_features import real_rows
from metrics.results import MetricSpec, Outcome
from metrics.samples import Sampling, each, fake_images
from torch_utils import distributed

NEIGHBOURS = 3
ROWS_AT_ONCE = 4096  # rows and columns of one block of distances: 64 MB


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns the squared distances [A, B] of rows [A, F] and [B, F]."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """Returns the squared distance [N] of every row [N, F] to its `neighbours`-th nearest other row."""
    radii = []
    for some in rows.split(ROWS_AT_ONCE):
        nearest = torch.empty(len(some), 0, device=rows.device, dtype=rows.dtype)
        for others in rows.split(ROWS_AT_ONCE):
            candidates = torch.cat([nearest, _squared_distances(some, others)], dim=1)
            nearest = candidates.topk(min(neighbours + 1, candidates.shape[1]), largest=False).values
        radii.append(nearest[:, neighbours])  # the nearest of all is the row itself
    return torch.cat(radii)


def _covered(rows: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Returns the share of `rows` inside a ball around one of `centres`."""
    count = 0
    for some in rows.split(ROWS_AT_ONCE):
        inside = torch.zeros(len(some), dtype=torch.bool, device=rows.device)
        for others, reach in zip(centres.split(ROWS_AT_ONCE), radii.split(ROWS_AT_ONCE), strict=True):
            inside |= (_squared_distances(some, others) <= reach).any(1)
        count += int(inside.sum())
    return count / len(rows)


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Computes both of features [N, F] and [M, F]. Raises ValueError with `neighbours` rows or fewer in a set."""
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} images of each kind")
    # Centred in float64: |a|^2 + |b|^2 - 2 a.b then loses fewer digits in float32.
    centre = real.double().mean(0)
    real, fake = ((rows.double() - centre).float() for rows in (real, fake))
    return _covered(fake, real, _radii(real, neighbours)), _covered(real, fake, _radii(fake, neighbours))


def precision_and_recall(spec: MetricSpec, sampling: Sampling, detector: Detector) -> Outcome:
    """Computes `pr<N>k3_full` (VGG-16 features) or `pr_inception<N>k3_full`; ranked by the harmonic mean of the two."""
    num_real = len(sampling.dataset)
    if min(num_real, spec.count) <= NEIGHBOURS:
        raise MetricUnavailable(f"precision and recall need more than {NEIGHBOURS} images of each kind")
    reals, found = real_rows(sampling, detector)
    rows = FeatureRows(spec.count, detector.num_features)
    each(fake_images(sampling, spec.count), lambda indices, images: rows.add(indices, detector(images)))
    fake = rows.gather()

    def measure() -> tuple[float, float]:
        assert fake is not None
        real = torch.from_numpy(reals["rows"])
        if not (real.isfinite().all() and fake.isfinite().all()):
            raise MetricUnavailable("the features hold NaN or infinite values")
        return precision_recall(real.to(sampling.device), fake.to(sampling.device))

    precision, recall = distributed.on_main(measure)
    both = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    protocol = {"num_real": num_real, "num_fake": spec.count, "neighbours": NEIGHBOURS}
    return Outcome(both, {"precision": precision, "recall": recall}, protocol, None, found)
