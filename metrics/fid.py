"""Computes FID, FID3D and FID by yaw: Fréchet distances between the features of reals and fakes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from gaussian import Cameras
from metrics.detectors import Detector
from metrics.errors import MetricUnavailable, one_line
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.real_features import Arrays, real_statistics
from metrics.results import MetricSpec, Outcome
from metrics.samples import Batches, Sampling, each, fake_images
from torch_utils import distributed

YAW_BINS = 5
FEW_REALS = 500  # in a bin; fewer are marked


def fid(spec: MetricSpec, sampling: Sampling, detector: Detector) -> Outcome:
    """Computes `fid<N>_full` and `fid3d_<N>_full` (Heusel et al. 2017; FID3D came with CGS-GAN)."""
    frontal = spec.kind == "fid3d"
    reals, found = real_statistics(sampling, detector)
    value = _distance(sampling, detector, reals, fake_images(sampling, spec.count, frontal_conditioning=frontal))
    protocol = {
        "num_real": len(sampling.dataset),
        "num_fake": spec.count,
        "conditioning": "the data's frontal camera" if frontal else "the rendering camera",
    }
    return Outcome(value, {spec.name: value}, protocol, None, found)


def _distance(sampling: Sampling, detector: Detector, reals: Arrays, fakes: Batches) -> float:
    """Returns the Fréchet distance between `reals` and the features of `fakes`, on all ranks."""
    stats = FeatureStats(detector.num_features, sampling.device)
    each(fakes, lambda _, images: stats.add(detector(images)))
    mean, cov = stats.mean_cov()
    try:
        return distributed.on_main(lambda: frechet_distance(mean, cov, reals["mean"], reals["cov"]))
    except ValueError as error:  # features that are not finite
        raise MetricUnavailable(one_line(error)) from None


def yaw_bins(sampling: Sampling) -> tuple[list[np.ndarray], list[float]]:
    """Sorts the data items into 5 bins of equal count by their cameras' yaw; returns the 6 edges in degrees too."""
    cameras = Cameras.from_labels(torch.as_tensor(sampling.dataset.labels).double())
    yaw = cameras.yaw_pitch(sampling.dataset.geometry)[0].rad2deg().numpy()
    order = np.argsort(yaw, kind="stable")
    bins = np.array_split(order, YAW_BINS)
    inner = [(yaw[low[-1]] + yaw[high[0]]) / 2 for low, high in pairwise(bins)]
    return bins, [round(float(edge), 3) for edge in (yaw[order[0]], *inner, yaw[order[-1]])]


def fid_yaw(spec: MetricSpec, sampling: Sampling, detector: Detector) -> Outcome:
    """Computes `fid_yaw<N>`: FID of each of 5 yaw bins, N fakes per bin from the cameras of that bin's reals; ours."""
    if len(sampling.dataset) < 2 * YAW_BINS:
        raise MetricUnavailable(f"{len(sampling.dataset)} images do not fill {YAW_BINS} yaw bins with 2 each")
    bins, edges = yaw_bins(sampling)
    values, found = {}, ""
    for b, items in enumerate(bins):
        reals, found = real_statistics(sampling, detector, np.sort(items))
        fakes = fake_images(sampling, spec.count, pool=np.sort(items), first=b * spec.count)
        values[f"fid_yaw_bin{b + 1}"] = _distance(sampling, detector, reals, fakes)
    few = [b + 1 for b, items in enumerate(bins) if len(items) < FEW_REALS]
    protocol = {
        "num_real": len(sampling.dataset),
        "num_fake": spec.count * YAW_BINS,
        "yaw_edges_deg": edges,
        "reals_per_bin": [len(items) for items in bins],
        "bins_with_few_reals": few,
    }
    note = f"under {FEW_REALS} reals in bin {', '.join(map(str, few))}: too few to compare" if few else None
    return Outcome(sum(values.values()) / YAW_BINS, values, protocol, note, found)
