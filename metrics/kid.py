"""Computes the kernel Inception distance (Binkowski et al. 2018, "Demystifying MMD GANs"), unbiased for few images too.

k(x, y) = (x . y / F + 1)^3
KID = mean over subsets of  sum_{i != j} k(x_i, x_j) / (m (m - 1)) + the same of y  - 2 sum_{i, j} k(x_i, y_j) / m^2
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from metrics.detectors import Detector
from metrics.errors import MetricUnavailable
from metrics.feature_stats import FeatureRows
from metrics.real_features import real_rows
from metrics.results import MetricSpec, Outcome
from metrics.samples import Sampling, each, fake_images
from torch_utils import distributed, random

SUBSETS = 100
SUBSET_SIZE = 1000  # at most


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Estimates it without bias from as many rows of x and y, float64 [m, F], m at least 2; it can be negative."""
    m = len(x)
    within = [(k.sum() - k.diagonal().sum()) / (m * (m - 1)) for k in (_kernel(x, x), _kernel(y, y))]
    return float(within[0] + within[1] - 2 * _kernel(x, y).sum() / m**2)


def kid_of(real: Tensor, fake: Tensor, subsets: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Returns mean and deviation over subsets: rows (of real [N, F], of fake [M, F]), as many of each."""
    values = torch.tensor([squared_mmd(real[i].double(), fake[j].double()) for i, j in subsets], dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def seeded_subsets(seed: int, num_real: int, num_fake: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Draws 100 pairs of `min(1000, num_real, num_fake)` rows without repetition, functions of the seed."""
    size = min(SUBSET_SIZE, num_real, num_fake)
    for subset in range(SUBSETS):
        real, fake = (
            random.permutation(seed, f"metric/kid/{whose}", subset, count)[:size]
            for whose, count in (("real", num_real), ("fake", num_fake))
        )
        yield torch.from_numpy(real), torch.from_numpy(fake)


def kid(spec: MetricSpec, sampling: Sampling, detector: Detector) -> Outcome:
    """Computes `kid<N>_full`."""
    reals, found = real_rows(sampling, detector)
    rows = FeatureRows(spec.count, detector.num_features)
    each(fake_images(sampling, spec.count), lambda indices, images: rows.add(indices, detector(images)))
    fake = rows.gather()
    num_real = len(sampling.dataset)

    def measure() -> tuple[float, float]:
        assert fake is not None
        real, other = torch.from_numpy(reals["rows"]).to(sampling.device), fake.to(sampling.device)
        return kid_of(real, other, seeded_subsets(sampling.seed, num_real, spec.count))

    mean, std = distributed.on_main(measure)
    if math.isnan(mean):
        raise MetricUnavailable("the features hold NaN or infinite values")
    protocol = {
        "num_real": num_real,
        "num_fake": spec.count,
        "subsets": SUBSETS,
        "subset_size": min(SUBSET_SIZE, num_real, spec.count),
    }
    return Outcome(mean, {spec.name: mean, "std": std}, protocol, None, found)
