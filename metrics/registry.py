"""Knows all metrics by name and has the one function that computes them, for training and offline alike."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import dnnlib
from metrics.control import VARIATIONS, control
from metrics.detectors import INCEPTION, VGG, Detector, DetectorKind, load_detector
from metrics.errors import MetricUnavailable, named, one_line
from metrics.fid import fid, fid_yaw
from metrics.generators import Generator
from metrics.head_check import head_check
from metrics.head_check import image_counts as head_check_images
from metrics.inception_score import SPLITS, inception_score
from metrics.kid import kid
from metrics.precision_recall import NEIGHBOURS, precision_and_recall
from metrics.results import MetricResult, MetricSpec, Outcome
from metrics.samples import Sampling
from metrics.swd import sliced_wasserstein, swd_yaw
from metrics.view_drift import LABELS, view_drift
from metrics.yaw_bins import YAW_BINS
from torch_utils import distributed
from torch_utils.precision import exact_float32
from training.dataset import ImageDataset


@dataclass(frozen=True)
class _Kind:
    """Describes the metrics whose names differ in the count alone."""

    form: str  # how the name is written, <N> for the count
    meaning: str  # in a few words, for the header of a table
    compute: Callable[[MetricSpec, Sampling, Any], Outcome]  # the third argument is a Detector or None
    detector: DetectorKind | None = None  # the network whose features it takes
    optional: bool = False  # works without the detector too
    larger_is_better: bool = False  # how snapshots are ranked
    least: int = 2  # smallest count
    # From the count in its name and the size of the data set: how many images it generates, how many reals it looks at.
    images: Callable[[int, int], tuple[int, int]] = lambda count, size: (count, size)

    def match(self, name: str) -> str | None:
        """Returns the count as it is written in `name`, or None for the name of another kind."""
        found = re.fullmatch(re.escape(self.form).replace("<N>", "([1-9][0-9]*k?)"), name)
        return found[1] if found else None


def _as_many(count: int, size: int) -> tuple[int, int]:
    return min(count, size), min(count, size)


def _as_many_a_bin(count: int, size: int) -> tuple[int, int]:
    own = YAW_BINS * min(count, size // YAW_BINS)
    return own, own


def _swd(spec: MetricSpec, sampling: Sampling, _: None) -> Outcome:
    return sliced_wasserstein(spec, sampling)


def _control(spec: MetricSpec, sampling: Sampling, _: None) -> Outcome:
    return control(spec, sampling)


def _head_check(spec: MetricSpec, sampling: Sampling, _: None) -> Outcome:
    return head_check(spec, sampling)


def _swd_yaw(spec: MetricSpec, sampling: Sampling, _: None) -> Outcome:
    return swd_yaw(spec, sampling)


KINDS = {
    "fid": _Kind("fid<N>_full", "Fréchet distance of Inception features", fid, INCEPTION),
    "fid3d": _Kind("fid3d_<N>_full", "FID of a generator told the frontal camera", fid, INCEPTION),
    "fid_yaw": _Kind(
        "fid_yaw<N>",
        "FID by the yaw of the camera, mean of 5 bins",
        fid_yaw,
        INCEPTION,
        images=lambda count, size: (YAW_BINS * count, size),
    ),
    "kid": _Kind("kid<N>_full", "kernel distance of Inception features", kid, INCEPTION),
    "pr": _Kind(
        "pr<N>k3_full",
        "precision and recall, harmonic mean",
        precision_and_recall,
        VGG,
        larger_is_better=True,
        least=NEIGHBOURS + 1,
    ),
    "pr_inception": _Kind(
        "pr_inception<N>k3_full",
        "precision and recall of Inception features",
        precision_and_recall,
        INCEPTION,
        larger_is_better=True,
        least=NEIGHBOURS + 1,
    ),
    "is": _Kind(
        "is<N>",
        "Inception score",
        inception_score,
        INCEPTION,
        larger_is_better=True,
        least=SPLITS,
        images=lambda count, size: (count, 0),
    ),
    "view_drift": _Kind(
        "view_drift<N>",
        "how far the camera told moves an identity",
        view_drift,
        INCEPTION,
        optional=True,
        images=lambda count, size: (LABELS * count, 0),
    ),
    "control": _Kind(
        "control<N>",
        "disentanglement of a latent's blocks",
        _control,
        larger_is_better=True,
        images=lambda count, size: (5 * VARIATIONS * count, min(VARIATIONS * count, size)),
    ),
    "swd": _Kind("swd<N>", "distance of image patches", _swd, images=_as_many),
    "swd3d": _Kind("swd3d_<N>", "SWD of a generator told the frontal camera", _swd, images=_as_many),
    "swd_yaw": _Kind("swd_yaw<N>", "SWD by the yaw of the camera, mean of 5 bins", _swd_yaw, images=_as_many_a_bin),
    "head_check": _Kind(
        "head_check<N>",
        "share of heads with two eyes and a mouth",
        _head_check,
        larger_is_better=True,
        images=head_check_images,
    ),
}
# This published name means 50,000 images and 3 neighbours. Here k3 is part of every name, so that 200 images can be
# asked for as pr200k3_full; the published name keeps its meaning, and other thousands are written pr20kk3_full.
PUBLISHED = {"pr50k3_full": 50_000, "pr_inception50k3_full": 50_000}


def parse_metric(name: str) -> MetricSpec:
    """Parses `fid50k_full` into MetricSpec("fid", 50000, ...). Raises ValueError that lists the legal forms."""
    for kind, entry in KINDS.items():
        if (digits := entry.match(name)) is not None:
            count = int(digits.rstrip("k")) * (1000 if digits.endswith("k") else 1)
            count = PUBLISHED.get(name, count)
            if count < entry.least:
                raise ValueError(f"metric {name!r} needs a count of at least {entry.least}")
            return MetricSpec(kind, count, name)
    forms = ", ".join(entry.form for entry in KINDS.values())
    raise ValueError(f"metric {name!r} does not exist; legal are {forms} with <N> like 200 or 50k")


def parse_metrics(text: str) -> tuple[str, ...]:
    """Splits names of metrics at commas and spaces. Raises ValueError for one that is unknown or there twice."""
    names = tuple(name for name in re.split(r"[,\s]+", text) if name)
    for i, name in enumerate(names):
        parse_metric(name)
        if name in names[:i]:
            raise ValueError(f"{name} is there twice; leave one out")
    return names


def image_counts(name: str, size: int) -> tuple[int, int]:
    """Returns how many images a metric generates, and how many reals it looks at, for a data set of `size` images.

    Raises ValueError as `parse_metric` does.
    """
    spec = parse_metric(name)
    return KINDS[spec.kind].images(spec.count, size)


def larger_is_better(name: str) -> bool:
    """Says whether more of the metric is better. Raises ValueError as `parse_metric` does."""
    return KINDS[parse_metric(name).kind].larger_is_better


def meaning(name: str) -> str:
    """Says in a few words what the metric is. Raises ValueError as `parse_metric` does."""
    return KINDS[parse_metric(name).kind].meaning


def needs_detector(name: str) -> Literal["inception", "vgg"] | None:
    """Returns the network whose features the metric cannot do without. Raises ValueError as `parse_metric` does."""
    entry = KINDS[parse_metric(name).kind]
    return None if entry.optional else entry.detector


def check_detectors(
    names: Iterable[str], detector: str | Detector | None = None, detector_vgg: str | Detector | None = None
) -> list[str]:
    """Loads every detector that the metrics `names` need, as training does before its first step.

    Returns one line for each metric that has to be left out because no detector was given. Raises MetricUnavailable
    where one was given and cannot be used.
    """
    sources: dict[str, str | Detector | None] = {INCEPTION: detector, VGG: detector_vgg}
    missing: dict[str, str] = {}
    for kind in sorted({kind for name in names if (kind := needs_detector(name))}):
        try:
            load_on_all_ranks(sources[kind], kind, torch.device("cpu"))
        except MetricUnavailable as reason:
            if sources[kind] is not None:
                raise
            missing[kind] = str(reason)
    return [f"{name} will be left out: {missing[kind]}" for name in names if (kind := needs_detector(name)) in missing]


def load_detectors(
    names: Iterable[str],
    detector: str | Detector | None,
    detector_vgg: str | Detector | None,
    device: torch.device,
) -> tuple[str | Detector | None, str | Detector | None]:
    """Loads Inception and VGG-16 once where metrics take their features; else returns what names their weights.

    A metric that can do without a detector does so where none was named and none is found.
    Raises MetricUnavailable, which begins with the name of the metric.
    """
    sources: dict[str, str | Detector | None] = {INCEPTION: detector, VGG: detector_vgg}
    for name in names:
        entry = KINDS[parse_metric(name).kind]
        if entry.detector is not None:
            with named(name):
                found = _detector_for(entry, sources[entry.detector], device)
            sources[entry.detector] = found or sources[entry.detector]
    return sources[INCEPTION], sources[VGG]


def features_key(name: str, detector: str | Detector | None, detector_vgg: str | Detector | None) -> str | None:
    """Returns what the features of a metric depend on, given what `load_detectors` returned; None for a metric of none.

    Raises ValueError as `parse_metric` does.
    """
    used = used_detector(name, detector, detector_vgg)
    return None if used is None else used.key


def used_detector(name: str, detector: str | Detector | None, detector_vgg: str | Detector | None) -> Detector | None:
    """Returns the network whose features a metric takes, given what `load_detectors` returned; None if it takes none.

    Raises ValueError as `parse_metric` does.
    """
    sources: dict[str | None, str | Detector | None] = {INCEPTION: detector, VGG: detector_vgg}
    used = sources.get(KINDS[parse_metric(name).kind].detector)
    return used if isinstance(used, Detector) else None


AT_ITS_WIDEST = {"truncation_psi": 1.0, "mirror": False}  # what no protocol changes


@exact_float32()
def compute_metric(
    name: str,  # see parse_metric
    G: Generator,
    dataset: ImageDataset,  # unmirrored
    *,
    seed: int = 0,
    detector: str | Detector | None = None,  # path, URL, "tiny" or "untrained"; None: see load_detector
    detector_vgg: str | Detector | None = None,  # the same for the metrics of VGG-16 features
    device: torch.device | str | None = None,  # where G is; None: as it says
    batch_size: int = 32,
    cache_dir: str | Path | None = None,  # for features of reals; None: the user's cache folder
    cache: bool = True,
    background: str | None = None,  # of reals and fakes: white, black or R,G,B; None: that of G's training, or white
    weights: str = "ema",  # recorded: which weights G holds, "ema" or "raw"
    progress: Callable[[str, int, int], None] | None = None,  # called with ("reals" or "fakes", done, total)
) -> MetricResult:
    """Computes metric `name` for generator G against `dataset`. docs/metrics.md has the protocols.

    With several ranks all of them call it with equal arguments; they share the images and all get the result.
    Raises MetricUnavailable (on all ranks) with a one-line reason if it cannot run, ValueError for an illegal argument.
    """
    spec = parse_metric(name)
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    background = _background(G, background)
    _check_inputs(G, dataset)
    start = time.perf_counter()
    where = torch.device(device) if device is not None else G.device
    entry = KINDS[spec.kind]
    network = _detector_for(entry, detector_vgg if entry.detector == VGG else detector, where)
    folder = (Path(cache_dir) if cache_dir is not None else dnnlib.cache_dir("metrics")) if cache else None
    sampling = Sampling(G, dataset, seed, where, batch_size, background, folder, progress, _content_key(dataset))
    outcome = entry.compute(spec, sampling, network)
    protocol = {
        "background": background if dataset.has_masks else f"{background}; reals as stored (no masks)",
        **AT_ITS_WIDEST,
        "seed": seed,
        "cameras": f"of random data items{', with their classes' if G.num_classes else ''}",
        "conditioning": "the rendering camera",
        "weights": weights,
        "detector": None if network is None else network.name,
        **({} if network is None else {"detector_key": network.key}),
        "data": dataset.name,
        "index_list": dataset.index_list,
        "data_key": sampling.data_key,
        "resolution": dataset.resolution,
        **outcome.protocol,
    }
    notes = [note for note in (None if network is None else network.note, outcome.note) if note]
    return MetricResult(
        name,
        outcome.value,
        outcome.values,
        protocol,
        time.perf_counter() - start,
        "; ".join(notes) or None,
        outcome.real_statistics,
        entry.larger_is_better,
    )


def compute_on_few(name: str, sampling: Sampling, detector: Detector | None, count: int) -> None:
    """Computes metric `name` with at most `count` images in place of its own number, and forgets the value.

    It serves to see what memory a metric takes. One that keeps something of every image keeps less here: swd 38 kB an
    image, level and set; kid and pr one float32 row of features.
    """
    spec = parse_metric(name)
    entry = KINDS[spec.kind]
    entry.compute(replace(spec, count=min(spec.count, count)), sampling, detector)


def _background(G: Generator, asked: str | None) -> str:
    """Returns the one background of this metric. Raises MetricUnavailable if G was trained over another fixed one."""
    trained = "random" if G.info is None else G.info.config.get("background", "random")
    if asked is None:
        return "white" if G.info is None else G.info.background
    if dnnlib.parse_color(asked) != dnnlib.parse_color(asked if trained == "random" else trained):
        raise MetricUnavailable(f"the network was trained over {trained}, the metric asks for {asked}")
    return asked


def _check_inputs(G: Generator, dataset: ImageDataset) -> None:
    if G.resolution != dataset.resolution:
        raise MetricUnavailable(f"the generator makes {G.resolution} px, the data set has {dataset.resolution} px")
    if G.num_classes and G.num_classes != dataset.num_classes:
        why = f" ({dataset.class_problem})" if dataset.class_problem is not None else ""
        raise MetricUnavailable(
            f"the network knows {G.num_classes} classes, and the images of {dataset.name} have "
            f"{dataset.num_classes or 'none'}{why}; classes are drawn as the data have them"
        )
    if len(dataset) < 2:
        raise MetricUnavailable(f"the data set {dataset.name} has {len(dataset)} image; a metric needs at least 2")


def _detector_for(entry: _Kind, source: str | Detector | None, device: torch.device) -> Detector | None:
    if entry.detector is None:
        return None
    try:
        return load_on_all_ranks(source, entry.detector, device)
    except MetricUnavailable:
        if entry.optional and source is None:
            return None
        raise


def load_on_all_ranks(source: str | Detector | None, kind: DetectorKind, device: torch.device) -> Detector:
    """Calls `load_detector` on rank 0 first, so that one process downloads. What fails on one rank fails on all."""
    if distributed.world_size() > 1:
        distributed.on_main(lambda: load_detector(source, device, kind).name)
    found, reason = None, None
    try:
        found = load_detector(source, device, kind)
    except MetricUnavailable as error:
        reason = str(error)
    reasons = [r for r in distributed.gather_objects(reason) if r is not None]
    if found is None or reasons:
        raise MetricUnavailable(reasons[0])
    return found


def _content_key(dataset: ImageDataset) -> str:
    try:
        return distributed.on_main(dataset.content_key)
    except (OSError, ValueError) as error:  # an image that is gone
        raise MetricUnavailable(one_line(error)) from None
