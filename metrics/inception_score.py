"""Computes the Inception score (Salimans et al. 2016).

It is high where a classifier is sure of each image and finds many classes among them:

IS = exp( mean over images of KL( p(class | image) || mean of p ) ), per split of the images
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metrics.detectors import Detector
from metrics.errors import MetricUnavailable
from metrics.results import MetricSpec, Outcome
from metrics.samples import Sampling, each, fake_images
from torch_utils import distributed

SPLITS = 10


class SplitScores:
    """Streams class probabilities into 10 consecutive splits of `count` images, in float64 and bounded memory."""

    def __init__(self, count: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.edges = torch.tensor([split * count // SPLITS for split in range(1, SPLITS)])  # first images of splits
        self._images = torch.zeros(SPLITS, dtype=torch.float64, device=device)
        self._information = torch.zeros(SPLITS, dtype=torch.float64, device=device)  # sum of p log p
        self._probability = torch.zeros(SPLITS, num_classes, dtype=torch.float64, device=device)

    def add(self, indices: range, logits: Tensor) -> None:
        """Adds logits [B, classes] of the images `indices`."""
        log_p = logits.to(self._probability).log_softmax(1)
        p = log_p.exp()
        split = torch.searchsorted(self.edges, torch.tensor(indices), right=True).to(p.device)
        self._images.index_add_(0, split, torch.ones_like(p[:, 0]))
        self._information.index_add_(0, split, (p * log_p).sum(1))
        self._probability.index_add_(0, split, p)

    def mean_std(self) -> tuple[float, float]:
        """Returns mean and deviation of the splits' scores over the images of all ranks, on all ranks."""
        images, information, probability = (
            t.to("cpu", copy=True) for t in (self._images, self._information, self._probability)
        )
        for sums in (images, information, probability):
            distributed.add_over_ranks_(sums)
        mean_p = probability / images[:, None]
        entropy = -torch.xlogy(mean_p, mean_p).sum(1)
        scores = (information / images + entropy).exp()
        return float(scores.mean()), float(scores.std(correction=0))


def inception_score(spec: MetricSpec, sampling: Sampling, detector: Detector) -> Outcome:
    """Computes `is<N>`, which takes no reals.

    The logits leave the classifier's bias out, as in the first implementation.
    """
    weight = detector.classifier
    if weight is None:
        raise MetricUnavailable(f"the detector {detector.name} has no classifier")
    scores = SplitScores(spec.count, len(weight), sampling.device)
    each(
        fake_images(sampling, spec.count),
        lambda indices, images: scores.add(indices, detector(images) @ weight.T),
    )
    mean, std = scores.mean_std()
    if math.isnan(mean):
        raise MetricUnavailable("the features hold NaN or infinite values")
    protocol = {"num_real": 0, "num_fake": spec.count, "splits": SPLITS}
    return Outcome(mean, {"mean": mean, "std": std}, protocol)
