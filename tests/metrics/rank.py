"""What each rank of test_ranks.py does. Collectives time out after TIMEOUT_S there."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from metrics import MetricUnavailable, compute_metric, load_detector
from metrics.detectors import Detector
from tests.metrics.toys import ToyGenerator
from torch_utils import distributed
from training.dataset import ImageDataset

METRICS = (
    "fid60_full",
    "fid3d_60_full",
    "kid60_full",
    "pr_inception60k3_full",
    "is60",
    "swd40",
    "view_drift30",
    "fid_yaw20",
    "swd3d_40",
    "swd_yaw8",
)
TIMEOUT_S = 3  # by which no rank may lag at a collective


class SlowOnRank0(torch.nn.Module):
    """Is the small detector, with one pause that is longer than the timeout of a collective."""

    def __init__(self, network):
        super().__init__()
        self.network, self.rested = network, distributed.rank() > 0

    def forward(self, images):
        if not self.rested:
            time.sleep(TIMEOUT_S + 1.5)
            self.rested = True
        return self.network(images)


class BlackOnRank1(ToyGenerator):
    """Gives images that are not finite, on one rank only."""

    def render(self, *arguments, **options):
        if distributed.rank() == 1:
            self.brightness = float("nan")
        return super().render(*arguments, **options)


def measure(dataset, world):
    """Computes all metrics; with several ranks it also finds what a slow and a failing one do."""
    tiny = load_detector("tiny")
    G = ToyGenerator(leak=0.3)
    results = {}
    for name in METRICS:
        # 7 does not divide 60, and leaves the ranks unequal shares.
        results[name] = compute_metric(name, G, dataset, detector=tiny, batch_size=7).values
    if world > 1:
        slow = Detector("slow", "slow", SlowOnRank0(tiny.network), tiny.num_features)
        results["slow"] = compute_metric("fid60_full", G, dataset, detector=slow, batch_size=7).values
        distributed.barrier()  # the collectives of training still work
        try:
            compute_metric("swd40", BlackOnRank1(), dataset, batch_size=7)
        except MetricUnavailable as reason:
            results["refused"] = str(reason)
    return results


def act(rank: int, data: Path) -> dict[str, Any]:
    """Measures; of two ranks the second leaves then, and the first waits for it."""
    results = measure(ImageDataset(data), distributed.world_size())
    if distributed.world_size() == 2:
        if rank == 1:
            os._exit(0)  # without a word to the others
        start = time.monotonic()
        try:
            distributed.wait_for_all()
        except RuntimeError:
            results["noticed_the_loss_after_s"] = time.monotonic() - start
    return results
