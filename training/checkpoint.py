"""Checkpoints: tensors and JSON-able values only, one file, whole or absent. Loading never executes code.

`network-snapshot-NNNNNN.pkl` is written by `torch.save` and opens with `torch.load(weights_only=True)`. Top-level keys:

    format      1
    config      resolved TrainingConfig as a dict
    geometry    Geometry of the data set as a dict
    progress    {nimg, step, tick, ...}
    G, D, G_ema state dicts
    opt         {G, D}: parameter name -> {step, exp_avg, exp_avg_sq}
    grid        {z [rows, z_dim], labels [columns, 25]} of the pictures
    best        metric name -> {value, nimg}
    revision    version of the code that wrote the file
    checksum    SHA-256 over all other records
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gaussian import Geometry
from torch_utils import distributed
from training.config import TrainingConfig
from training.discriminator import Discriminator
from training.generator import Generator

FORMAT = 1
REVISION = "splatgan 0.1.0"
_KEYS = {"format", "config", "geometry", "progress", "G", "D", "G_ema", "opt", "grid", "best", "revision", "checksum"}


class CheckpointError(ValueError):
    """A file that is not a whole checkpoint of ours; the message is one line for the user."""


def snapshot_path(run_dir: str | os.PathLike, nimg: int) -> Path:
    """`network-snapshot-NNNNNN.pkl` with whole kimg; a second file within one kimg appends the images seen."""
    path = Path(run_dir) / f"network-snapshot-{nimg // 1000:06d}.pkl"
    return path.with_name(f"{path.stem}_{nimg:08d}.pkl") if path.exists() else path


def save_checkpoint(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Writes `state` (all top-level keys but format, revision and checksum) so that the file is whole or absent.

    Raises distributed.RankLost in a rank whose collective failed: what it holds may be half a step.
    """
    distributed.require_ranks()
    state = {"format": FORMAT, "revision": REVISION, **state}
    if missing := _KEYS - set(state) - {"checksum"}:
        raise ValueError(f"checkpoint: missing {', '.join(sorted(missing))}")
    state["checksum"] = checksum(state)
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The records of a checkpoint, on the CPU, checksum verified. Raises CheckpointError with the reason."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values ({reason})") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT} (found {found!r})")
    if missing := _KEYS - set(state):
        raise CheckpointError(f"{path}: incomplete checkpoint, missing {', '.join(sorted(missing))}")
    if checksum(state) != state["checksum"]:
        raise CheckpointError(f"{path}: damaged, its checksum does not match its content")
    return state


def load_generator(path: str | os.PathLike, device: str | torch.device = "cpu") -> Generator:
    """G_ema of a checkpoint in eval mode, without gradients.

    The result carries `geometry` (Geometry of its data) and `checkpoint_config` (the run's resolved TrainingConfig as a
    dict). Raises CheckpointError.
    """
    state = load_checkpoint(path)
    config = TrainingConfig.from_dict(state["config"])
    G = Generator(config.generator)
    G.load_state_dict(state["G_ema"])
    G.geometry = Geometry.from_dict(state["geometry"])
    G.rasterizer = config.rasterizer
    G.checkpoint_config = state["config"]
    return G.to(device).eval().requires_grad_(False)


def load_discriminator(path: str | os.PathLike, device: str | torch.device = "cpu") -> Discriminator:
    """The discriminator of a checkpoint in eval mode and float32, without gradients. Raises CheckpointError."""
    state = load_checkpoint(path)
    D = Discriminator(TrainingConfig.from_dict(state["config"]).discriminator)
    D.load_state_dict(state["D"])
    return D.to(device).eval().requires_grad_(False)


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """Adam's moments by parameter name; parameters that never had a gradient have none."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if optimizer.state.get(p)}


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Inverse of `optimizer_state`. Raises CheckpointError for names that the module does not have."""
    parameters = dict(module.named_parameters())
    if unknown := sorted(set(state) - set(parameters)):
        raise CheckpointError(f"optimiser state for unknown parameters: {', '.join(unknown)}")
    for name, values in state.items():
        p = parameters[name]
        optimizer.state[p] = {key: value.to(p.device).clone() for key, value in values.items()}


def checksum(state: dict[str, Any]) -> str:
    """SHA-256 over every record but `checksum`: structure, plain values, tensor types, shapes and bytes."""
    digest = hashlib.sha256()
    _update(digest, {key: value for key, value in state.items() if key != "checksum"})
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, dict):
        digest.update(b"{")
        for key in sorted(value, key=str):
            digest.update(json.dumps(str(key)).encode())
            _update(digest, value[key])
        digest.update(b"}")
    elif isinstance(value, list | tuple):
        digest.update(b"[")
        for item in value:
            _update(digest, item)
        digest.update(b"]")
    elif isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous()
        digest.update(f"<{data.dtype} {tuple(data.shape)}>".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy())
    else:
        digest.update(json.dumps(value).encode() + b",")
