"""Finds, checks and loads feature extractors, before any image is made."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import dnnlib
from metrics import inception, tiny, vgg
from metrics.errors import MetricUnavailable, one_line

DetectorKind = Literal["inception", "vgg"]
INCEPTION: DetectorKind = "inception"
VGG: DetectorKind = "vgg"
UNTRAINED, TINY = "untrained", "tiny"
VERSION = 1  # raise it when the weights of an untrained detector change
NOTES = {
    UNTRAINED: "untrained detector: a smoke test, not comparable with any other value",
    TINY: "tiny detector: a smoke test, not comparable with any other value",
}


@dataclass(frozen=True)
class Detector:
    """Turns uint8 images [B, 3, H, W] into features float32 [B, num_features]."""

    name: str  # as results give it
    key: str  # changes whenever the features do
    network: nn.Module  # in evaluation mode, on the device of the images
    num_features: int  # per image
    note: str | None = None  # why its values must not be compared with others; part of every result line
    classifier: Tensor | None = None  # [classes, num_features]: features to logits without bias

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)


@dataclass(frozen=True)
class _Registered:
    """Holds what is known about a kind of detector."""

    title: str  # for messages
    flag: str  # the option that names its weights
    environment: str  # the variable that does so where the option is not given
    file: str  # name under which the weights are published, without what ports put before it
    num_features: int  # per image
    make: Callable[[], nn.Module]  # the network that the published weights fit
    untrained: Callable[[], nn.Module]  # the same with seeded random weights


REGISTRY: dict[DetectorKind, _Registered] = {
    INCEPTION: _Registered(
        "2015 Inception network",
        "--detector",
        "SPLATGAN_DETECTOR",
        "inception-2015-12-05-6726825d.pth",
        inception.NUM_FEATURES,
        inception.Inception2015,
        inception.untrained,
    ),
    VGG: _Registered(
        "VGG-16 network",
        "--detector-vgg",
        "SPLATGAN_DETECTOR_VGG",
        "vgg16-397923af.pth",
        vgg.NUM_FEATURES,
        vgg.VGG16,
        vgg.untrained,
    ),
}


def load_detector(
    source: str | Detector | None = None, device: torch.device | str = "cpu", kind: DetectorKind = INCEPTION
) -> Detector:
    """Loads the detector at a path or URL, or "untrained" or "tiny".

    None takes $SPLATGAN_DETECTOR ($SPLATGAN_DETECTOR_VGG for kind "vgg"), else the published file where the download
    cache holds it.
    Where a file's name ends in a hash, as in NAME-6726825d.pth, that must be the start of its SHA-256.
    Raises MetricUnavailable with one line: none given, no such file, no network, wrong hash, wrong content.
    """
    if isinstance(source, Detector):
        return source
    known = REGISTRY[kind]
    where = f"{known.flag}={source}"
    if not source and (source := os.environ.get(known.environment)):
        where = f"${known.environment}={source}"
    if not source and (source := _downloaded(known)):
        where = source
    if not source:
        raise MetricUnavailable(
            f"it needs the weights of the {known.title}: {known.flag}=PATH|URL or ${known.environment}"
            f" (or {known.flag}={TINY} or {UNTRAINED} for a smoke test)"
        )
    if source == TINY:
        small = tiny.TinyDetector().to(device)
        key = f"{TINY}-{VERSION}"
        return Detector(f"{kind}-{TINY}", key, small, tiny.NUM_FEATURES, NOTES[TINY], small.classifier)
    if source == UNTRAINED:
        network = _placed(known.untrained(), device)
        key = f"{kind}-{UNTRAINED}-{VERSION}"
        return Detector(f"{kind}-{UNTRAINED}", key, network, known.num_features, NOTES[UNTRAINED], _classifier(network))
    path, name = _local_file(source, where)
    if "://" in source:
        where = f"{where}: {path}"
    digest = _check_hash(path, name, where)
    network = _placed(_read_weights(path, known, where), device)
    return Detector(Path(name).stem, f"sha256:{digest}", network, known.num_features, None, _classifier(network))


def _placed(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Moves a network to its device, with weights in channels last, which convolutions are fastest in.

    What that gives, and what bfloat16 would give and cost, is measured by `benchmarks/metrics.py --only=detectors`.
    """
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _classifier(network: nn.Module) -> Tensor | None:
    layer = getattr(network, "fc", None)
    return layer.weight if isinstance(layer, nn.Linear) else None


def _downloaded(known: _Registered) -> str | None:
    """Finds the published weights in the download cache, put there by an earlier run or by hand."""
    found = sorted(dnnlib.cache_dir("downloads").glob(f"*{known.file}"))
    return str(found[0]) if found else None


def _local_file(source: str, where: str) -> tuple[Path, str]:
    """Returns the file on this machine and the name it was published under. where: for messages."""
    if "://" in source:
        try:
            path = dnnlib.download(source)
        except (OSError, ValueError) as error:
            raise MetricUnavailable(f"{where}: {one_line(error)}") from None
        return path, source.rsplit("/", 1)[-1].split("?")[0]
    path = Path(source).expanduser()
    if not path.is_file():
        what = "is a folder; a file of weights is legal" if path.is_dir() else "no such file"
        raise MetricUnavailable(f"{where}: {what}")
    return path, path.name


def _check_hash(path: Path, name: str, where: str) -> str:
    """Returns the file's SHA-256 in hexadecimal. Raises MetricUnavailable if the name has the start of another."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stated = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if stated and not digest.startswith(stated[1]):
        raise MetricUnavailable(
            f"{where}: is damaged or not what its name says: SHA-256 {digest[:16]}..., expected {stated[1]}..."
        )
    return digest


def _read_weights(path: Path, known: _Registered, where: str) -> nn.Module:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile):
        reason = "it is none, is damaged, or holds more than tensors"
        raise MetricUnavailable(f"{where}: does not load as a PyTorch state dict: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise MetricUnavailable(f"{where}: holds no state dict of tensors")
    network = known.make()
    # The batch counters mean nothing outside training, and not every port of the weights has them.
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    if differences := _differences(state, network.state_dict()):
        raise MetricUnavailable(f"{where}: is not the {known.title}: {differences}")
    network.load_state_dict(state)
    return network


def _differences(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Says in a few words which tensors of a state dict keep it out of a network; nothing if none does."""
    kinds = (
        ("it lacks", [name for name in wanted if name not in state]),
        ("of another shape is", [n for n, value in wanted.items() if n in state and state[n].shape != value.shape]),
        ("unknown is", [name for name in state if name not in wanted]),
    )
    return "; ".join(
        f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for what, names in kinds
        if names
    )
