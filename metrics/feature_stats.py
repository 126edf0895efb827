"""Collects features of a stream of images over all ranks: mean and covariance in bounded memory, or the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_utils import distributed


class FeatureStats:
    """Adds up raw moments of features [., F]: F (F + 1) float64 values on their device, however many arrive."""

    def __init__(self, num_features: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._sum = torch.zeros(num_features, dtype=torch.float64, device=device)
        self._outer = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Adds the next features [B, F]."""
        x = features.to(self._sum)
        self._sum += x.sum(0)
        self._outer.addmm_(x.T, x)
        self.count += len(x)

    def mean_cov(self) -> tuple[Tensor, Tensor]:
        """Returns mean [F] and covariance [F, F] = E[x x^T] - mean mean^T, the biased estimate of published FIDs.

        It is of the features of all ranks, on all ranks, float64 on the CPU. Raises ValueError below 2 features.
        """
        count = sum(distributed.gather_objects(self.count))
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {count}")
        # Copies, so that more features may follow.
        total, outer = (t.to("cpu", copy=True) for t in (self._sum, self._outer))
        distributed.add_over_ranks_(total)
        distributed.add_over_ranks_(outer)
        mean = total / count
        return mean, outer / count - torch.outer(mean, mean)


class FeatureRows:
    """Keeps the features [count, F] themselves, float32; each rank has those that it computed until `gather`."""

    def __init__(self, count: int, num_features: int) -> None:
        self.count, self.num_features = count, num_features
        self._indices: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, indices: range, features: Tensor) -> None:
        """Adds features [B, F] of the samples `indices`, which may come in any order."""
        self._indices.append(torch.tensor(indices))
        self._rows.append(features.float().cpu())

    def gather(self) -> Tensor | None:
        """Returns [count, F] in the order of the samples on rank 0, None elsewhere."""
        places = distributed.gather_rows(torch.cat([torch.zeros(0, dtype=torch.int64), *self._indices]))
        parts = distributed.gather_rows(torch.cat([torch.zeros(0, self.num_features), *self._rows]))
        if places is None or parts is None:
            return None
        rows = torch.empty(self.count, self.num_features)
        for indices, part in zip(places, parts, strict=True):
            rows[indices] = part
        return rows
