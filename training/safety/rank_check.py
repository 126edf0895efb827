"""Checks before the first step that all ranks train the same run: several machines start theirs one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import torch

from dnnlib import ROOT
from torch_utils import distributed
from training.config import TrainingConfig
from training.dataset import ImageDataset

PIXELS_OF = 16  # images whose pixels go into the data's key; reading all of a large set would take minutes
_PACKAGES = ("dnnlib", "torch_utils", "gaussian", "training", "metrics")
_MAY_DIFFER = {"data", "index_list", "detector", "detector_vgg"}  # paths: a node may have its own copy


def require_equal_runs(config: TrainingConfig, dataset: ImageDataset, device: torch.device) -> None:
    """Tests the process group. Raises ValueError naming rank and field, or distributed.RankLost."""
    if distributed.world_size() == 1:
        return
    fields = {f"configuration field {n}": json.dumps(v) for n, v in config.to_dict().items() if n not in _MAY_DIFFER}
    versions = {"PyTorch": torch.__version__, "code revision": code_revision(), "data key": data_key(dataset)}
    distributed.self_test(fields | versions, device)


def code_revision(names: Iterable[str] = _PACKAGES) -> str:
    """Hashes source files, wherever they lie and whether or not they are in a repository.

    names: folders and files below the root; those that training uses unless others are asked for.
    """
    digest = hashlib.sha256()
    inside = [p for name in names for p in (ROOT / name, *(ROOT / name).rglob("*"))]
    for path in sorted(p for p in inside if p.suffix in (".py", ".cpp", ".h") and p.is_file()):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def data_key(dataset: ImageDataset) -> str:
    """Hashes the number and resolution of images, all labels and classes, and the pixels of a few, evenly spread."""
    digest = hashlib.sha256(f"{len(dataset)} {dataset.resolution} {dataset.has_masks}\n".encode())
    digest.update(np.ascontiguousarray(dataset.labels).tobytes())
    digest.update(dataset.classes.tobytes())
    batch = dataset.load(np.linspace(0, len(dataset) - 1, min(PIXELS_OF, len(dataset))).round().astype(np.int64))
    for pixels in (batch.images, batch.masks):
        if pixels is not None:
            digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
