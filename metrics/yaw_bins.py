"""Sorts the reals by where on the turntable their cameras stand, for metrics that say where quality is lost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from gaussian import Cameras
from metrics.errors import MetricUnavailable
from metrics.samples import Sampling

YAW_BINS = 5
FEW_REALS = 500  # in a bin; fewer are marked


@dataclass(frozen=True)
class YawBins:
    """Holds the data items in bins of equal count by the yaw of their cameras."""

    items: list[np.ndarray]  # data items of each bin, ascending
    edges: list[float]  # the bins' limits in degrees, one more than bins

    @staticmethod
    def of(sampling: Sampling) -> YawBins:
        """Sorts the data set of a metric. Raises MetricUnavailable if it does not fill the bins."""
        dataset = sampling.dataset
        if len(dataset) < 2 * YAW_BINS:
            raise MetricUnavailable(f"{len(dataset)} images do not fill {YAW_BINS} yaw bins with 2 each")
        cameras = Cameras.from_labels(torch.as_tensor(dataset.labels).double())
        yaw = cameras.yaw_pitch(dataset.geometry)[0].rad2deg().numpy()
        order = np.argsort(yaw, kind="stable")
        bins = np.array_split(order, YAW_BINS)
        inner = [(yaw[low[-1]] + yaw[high[0]]) / 2 for low, high in pairwise(bins)]
        edges = [round(float(edge), 3) for edge in (yaw[order[0]], *inner, yaw[order[-1]])]
        return YawBins([np.sort(items) for items in bins], edges)

    def _few(self) -> list[int]:
        return [b + 1 for b, items in enumerate(self.items) if len(items) < FEW_REALS]

    def protocol(self) -> dict[str, Any]:
        """Returns what a result records of the bins."""
        return {
            "yaw_edges_deg": self.edges,
            "reals_per_bin": [len(items) for items in self.items],
            "bins_with_few_reals": self._few(),
        }

    def note(self) -> str | None:
        """Says which bins hold too few reals to be compared; None if none does."""
        few = self._few()
        return f"under {FEW_REALS} reals in bin {', '.join(map(str, few))}: too few to compare" if few else None
