"""Computes FID, FID3D and FID by yaw: Fréchet distances between the features of reals and fakes."""

from __future__ import annotations

from metrics.detectors import Detector
from metrics.errors import MetricUnavailable, one_line
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.real_features import Arrays, real_statistics
from metrics.results import MetricSpec, Outcome
from metrics.samples import Batches, Sampling, conditioning, each, fake_images
from metrics.yaw_bins import YAW_BINS, YawBins
from torch_utils import distributed


def fid(spec: MetricSpec, sampling: Sampling, detector: Detector) -> Outcome:
    """Computes `fid<N>_full` and `fid3d_<N>_full` (Heusel et al. 2017; FID3D came with CGS-GAN)."""
    frontal = spec.kind == "fid3d"
    reals, found = real_statistics(sampling, detector)
    value = _distance(sampling, detector, reals, fake_images(sampling, spec.count, frontal_conditioning=frontal))
    protocol = {
        "num_real": len(sampling.dataset),
        "num_fake": spec.count,
        "conditioning": conditioning(frontal),
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


def fid_yaw(spec: MetricSpec, sampling: Sampling, detector: Detector) -> Outcome:
    """Computes `fid_yaw<N>`: FID of each of 5 yaw bins, N fakes per bin from the cameras of that bin's reals; ours."""
    bins = YawBins.of(sampling)
    values, found = {}, ""
    for b, items in enumerate(bins.items):
        reals, found = real_statistics(sampling, detector, items)
        fakes = fake_images(sampling, spec.count, pool=items, first=b * spec.count)
        values[f"{spec.kind}_bin{b + 1}"] = _distance(sampling, detector, reals, fakes)
    numbers = {"num_real": len(sampling.dataset), "num_fake": spec.count * YAW_BINS}
    return Outcome(sum(values.values()) / YAW_BINS, values, {**numbers, **bins.protocol()}, bins.note(), found)
