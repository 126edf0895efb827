"""Mean and covariance of a stream of feature vectors, in float64 and bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureStats:
    """Raw moments of features [., F]; F (F + 1) float64 values on the features' device, however many arrive."""

    def __init__(self, num_features: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._sum = torch.zeros(num_features, dtype=torch.float64, device=device)
        self._outer = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """The next features [B, F]."""
        x = features.to(self._sum)
        self._sum += x.sum(0)
        self._outer.addmm_(x.T, x)
        self.count += len(x)

    def mean_cov(self) -> tuple[Tensor, Tensor]:
        """Mean [F] and covariance [F, F] = E[x x^T] - mean mean^T, the biased estimate that published FIDs use.

        float64 on the CPU. ValueError with fewer than 2 features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        mean = self._sum / self.count
        cov = self._outer / self.count - torch.outer(mean, mean)
        return mean.cpu(), cov.cpu()
