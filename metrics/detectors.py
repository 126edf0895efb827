"""Feature extractors for FID, found, checked and loaded before any image is made."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import dnnlib
from metrics import inception
from metrics.errors import MetricUnavailable

ENVIRONMENT = "SPLATGAN_DETECTOR"
UNTRAINED = "untrained"
UNTRAINED_VERSION = 1  # raise it when `inception.untrained` changes its weights
UNTRAINED_NOTE = "untrained detector: a smoke test, not comparable with any other FID"


@dataclass(frozen=True)
class Detector:
    """A network from uint8 images [B, 3, H, W] to features float32 [B, num_features]."""

    name: str
    key: str  # changes whenever the features do
    network: nn.Module
    num_features: int
    note: str | None = None  # why its values must not be compared with others; part of every result line

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images)


def load_detector(source: str | Detector | None = None, device: torch.device | str = "cpu") -> Detector:
    """The detector at a path or URL, or "untrained"; None takes $SPLATGAN_DETECTOR.

    Where a file's name ends in a hash, as in NAME-6726825d.pth, that must be the start of its SHA-256.
    Raises MetricUnavailable with one line: none given, no such file, no network, wrong hash, wrong content.
    """
    if isinstance(source, Detector):
        return source
    source = source or os.environ.get(ENVIRONMENT)
    if not source:
        raise MetricUnavailable(
            f"it needs the weights of the 2015 Inception network: --detector=PATH|URL or ${ENVIRONMENT}"
            f" (or --detector={UNTRAINED} for a smoke test)"
        )
    if source == UNTRAINED:
        network: nn.Module = inception.untrained()
        key, note = f"{UNTRAINED}-{UNTRAINED_VERSION}", UNTRAINED_NOTE
        return Detector(f"inception-{UNTRAINED}", key, network.to(device), inception.NUM_FEATURES, note)
    path, name = _local_file(source)
    digest = _check_hash(path, name)
    network = _read_weights(path).to(device)
    return Detector(Path(name).stem, f"sha256:{digest}", network, inception.NUM_FEATURES)


def _local_file(source: str) -> tuple[Path, str]:
    """The file on this machine and the name it was published under."""
    if "://" in source:
        try:
            path = dnnlib.download(source)
        except (OSError, ValueError) as error:
            raise MetricUnavailable(f"detector: {_one_line(error)}") from None
        return path, source.rsplit("/", 1)[-1].split("?")[0]
    path = Path(source).expanduser()
    if not path.is_file():
        raise MetricUnavailable(f"detector: no such file: {source}")
    return path, path.name


def _check_hash(path: Path, name: str) -> str:
    """SHA-256 of the file in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stated = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    if stated and not digest.startswith(stated[1]):
        raise MetricUnavailable(
            f"detector: {path} is damaged or not what its name says: SHA-256 {digest[:16]}..., expected {stated[1]}..."
        )
    return digest


def _read_weights(path: Path) -> inception.Inception2015:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise MetricUnavailable(f"detector: {path} does not load as a PyTorch state dict: {_one_line(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise MetricUnavailable(f"detector: {path} holds no state dict of tensors")
    network = inception.Inception2015()
    # The batch counters mean nothing outside training, and not every port of the weights has them.
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counters, **state})
    except RuntimeError as error:
        raise MetricUnavailable(f"detector: {path} is not the 2015 Inception network: {_one_line(error)}") from None
    return network


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
