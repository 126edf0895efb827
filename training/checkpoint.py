"""Writes and reads checkpoints: tensors and JSON-able values only, one file, whole or absent. Nothing in one is run.

`network-snapshot-NNNNNN.pkl` is written by `torch.save` and opens with `torch.load(weights_only=True)`. Top-level keys:

    format      2; a file of format 1 is upgraded when read
    config      resolved TrainingConfig as a dict, with the records generator, discriminator and objective of its family
    geometry    Geometry of the data set as a dict
    progress    {nimg, step, tick, tick_nimg, threads, ranks, data, files}: tick is the last finished one, tick_nimg
                the images seen at its end; files the sizes of the run folder's growing files (training/runs/resume.py)
    G, D, G_ema state dicts; further moving averages of G have the names that their objective gives them, or
                training/averages.py
    opt         optimiser -> parameter name -> {step, exp_avg, exp_avg_sq}
    grid        {z [rows, z_dim], labels [columns, 25]} of the pictures
    best        metric name -> {value, nimg}
    revision    version of the code that wrote the file
    checksum    SHA-256 over all other records
    objective   optional: what else the objective changes, by name (the probability of adaptive augmentation); files
                from before it, and published ones, lack it, and a run that goes on from them starts it anew
    statistics  optional: what every rank has reported since the last tick (torch_utils/training_stats.py)

`state-latest.pkl` is the same, written between snapshots and overwritten each time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dnnlib
from gaussian import Cameras, Geometry
from torch_utils import distributed
from training.averages import average_name, kept_lengths
from training.config import TrainingConfig, upgraded
from training.families import family
from training.families.base import CheckpointInfo, Discriminator, Generator
from training.published.records import is_published, read_published

FORMAT = 2
READABLE_FORMATS = (1, 2)
REVISION = f"splatgan {dnnlib.__version__}"
STATE_NAME = "state-latest.pkl"
SNAPSHOT_PATTERN = "network-snapshot-*.pkl"
_ZIP = b"PK\x03\x04"  # the first bytes of every file of torch.save
RECORDS = {  # that every checkpoint has
    "format", "config", "geometry", "progress", "G", "D", "G_ema", "opt", "grid", "best", "revision", "checksum",
}  # fmt: skip
OPTIONAL_RECORDS = {"objective", "statistics"}  # whatever else a checkpoint has are further averages of G


class CheckpointError(ValueError):
    """Says in one line for the user why a file cannot be used as a checkpoint."""


def snapshot_path(run_dir: str | os.PathLike, nimg: int) -> Path:
    """Returns `network-snapshot-NNNNNN.pkl` with whole kimg; a second file within one kimg appends the images seen.

    A file of the same images seen, or one that is no checkpoint, is in nobody's way: it will be replaced.
    """
    path = Path(run_dir) / f"network-snapshot-{nimg // 1000:06d}.pkl"
    if not path.exists():
        return path
    try:
        taken = read_progress(path)["nimg"] != nimg
    except CheckpointError:
        taken = False
    return path.with_name(f"{path.stem}_{nimg:08d}.pkl") if taken else path


def save_checkpoint(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Writes `state` (all top-level keys but format, revision and checksum) so that the file is whole or absent.

    Raises OSError if it cannot be written, before anything is written where the disk is too full for it, and
    distributed.RankLost in a rank whose collective failed: what it holds may be half a step.
    """
    distributed.require_ranks()
    state = {"format": FORMAT, "revision": REVISION, **map_tensors(state, lambda t: t.detach().cpu())}
    if missing := RECORDS - set(state) - {"checksum"}:
        raise ValueError(f"checkpoint: missing {', '.join(sorted(missing))}")
    state["checksum"] = checksum(state)
    path = Path(path)
    _check_space(path.parent, _num_bytes(state))
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's writer hides what the file system said
                raise OSError(errno.EIO, f"the file system took only a part ({_first_line(error)})") from error
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_PARTIAL = ".part"


def remove_partial(run_dir: str | os.PathLike) -> None:
    """Removes what a process that was killed while it wrote a checkpoint left behind. Nobody may be writing there."""
    for path in Path(run_dir).glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the file system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_space(folder: Path, size: int) -> None:
    """Raises OSError if a checkpoint of `size` bytes of tensors does not fit."""
    needed = int(size * 1.01) + 2**20  # names, alignment and the like
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{dnnlib.format_bytes(needed)} are needed and {dnnlib.format_bytes(free)} free", str(folder)
        )


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Returns the same records with every tensor changed."""
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_tensors(item, change) for item in value]
    return change(value) if isinstance(value, torch.Tensor) else value


def _num_bytes(state: dict[str, Any]) -> int:
    sizes: list[int] = []
    map_tensors(state, lambda t: sizes.append(t.numel() * t.element_size()))
    return sum(sizes)


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the records of a checkpoint onto the CPU and verifies the checksum. Raises CheckpointError with the reason.

    A published file (training/published/records.py) gives the same records but revision and checksum; what it lacks
    is empty.
    """
    if is_published(path):
        return _read_published(path)
    state = _read(path)
    if missing := RECORDS - set(state):
        raise CheckpointError(f"{path}: incomplete checkpoint, missing {', '.join(sorted(missing))}")
    try:
        whole = checksum(state) == state["checksum"]
    except (TypeError, ValueError, RuntimeError) as error:  # damage can leave values of types that we never write
        raise CheckpointError(f"{path}: damaged, it holds unknown values ({_first_line(error)})") from None
    if not whole:
        raise CheckpointError(f"{path}: damaged, its checksum does not match its content")
    return _upgraded(path, state)


def _upgraded(path: str | os.PathLike, state: dict[str, Any]) -> dict[str, Any]:
    """Returns the records of any readable format as those of the newest."""
    if not isinstance(state.get("config"), dict):
        raise CheckpointError(f"{path}: damaged, it does not say what its run was")
    if state["format"] == 1:
        state |= {"format": FORMAT, "config": upgraded(state["config"])}
    return state


def read_config(path: str | os.PathLike) -> TrainingConfig:
    """Reads the configuration of a checkpoint, of ours without its tensors and unverified. Raises CheckpointError."""
    if is_published(path):
        return config_of(path, _read_published(path, ema_only=True))
    return config_of(path, _upgraded(path, _read(path, mmap=True)))


def read_progress(path: str | os.PathLike) -> dict[str, Any]:
    """Reads `progress` of a checkpoint without its tensors; nothing is verified. Raises CheckpointError."""
    progress = _read(path, mmap=True).get("progress")
    if not isinstance(progress, dict) or not all(type(progress.get(key)) is int for key in ("nimg", "step", "tick")):
        raise CheckpointError(f"{path}: damaged, it does not say how far its run was")
    return progress


def _read(path: str | os.PathLike, mmap: bool = False) -> dict[str, Any]:
    if problem := _unreadable(path):
        raise CheckpointError(f"{path}: {problem}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = _first_line(error)
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values ({reason})") from None
    except Exception as error:  # a damaged file can make the unpickler stumble over anything
        raise CheckpointError(f"{path}: is damaged, it cannot be unpacked ({_first_line(error)})") from None
    found = state.get("format") if isinstance(state, dict) else type(state).__name__
    if type(found) is not int or found not in READABLE_FORMATS:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT} (found {found!r})")
    return state


def _unreadable(path: str | os.PathLike) -> str | None:
    """Says why a file cannot be what torch.save writes, a whole zip; None if it may be one."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_ZIP))
    except FileNotFoundError:
        return "no such checkpoint"
    except IsADirectoryError:
        return "is a folder; a file of it, such as network-snapshot-000000.pkl, is legal"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if start != _ZIP:
        return "is no checkpoint" if start else "is an empty file and no checkpoint"
    try:
        whole = zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        whole = False
    return None if whole else "is damaged or cut short; copy it again or take another snapshot"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_published(path: str | os.PathLike, ema_only: bool = False) -> dict[str, Any]:
    try:
        return {"format": FORMAT, **read_published(path, ema_only=ema_only)}
    except (ValueError, OSError) as error:
        raise CheckpointError(str(error)) from None


def load_generator(path: str | os.PathLike, device: str | torch.device = "cpu") -> Generator:
    """Loads G_ema of a checkpoint in eval mode, without gradients. Raises CheckpointError.

    Its `info` holds what the file knows besides: the run's configuration, the data's geometry and yaw range, and the
    background, so that nobody needs to read the file again.
    """
    state = _read_published(path, ema_only=True) if is_published(path) else load_checkpoint(path)
    return _generator(path, state, "G_ema", device)


def load_averages(
    path: str | os.PathLike, lengths: Sequence[float], device: str | torch.device = "cpu"
) -> Iterator[Generator]:
    """Yields the averages of G with these half-lives in kimg, as `load_generator` loads G_ema; the file is read once.

    Raises CheckpointError for a file that does not have them.
    """
    state = {} if is_published(path) else load_checkpoint(path)
    for name in [require_average(path, state, kimg) for kimg in lengths]:
        yield _generator(path, state, name, device)


def require_average(path: str | os.PathLike, state: Mapping[str, Any], kimg: float) -> str:
    """Returns the record of an average of G among those read at `path`. Raises CheckpointError if it is not there."""
    if average_name(kimg) in state:
        return average_name(kimg)
    kept = ", ".join(f"{length:g}" for length in kept_lengths(state)) or "none"
    raise CheckpointError(
        f"{path}: it has no average of {kimg:g} kimg besides G_ema; those it has: {kept}. "
        "train.py --ema=LIST keeps them"
    )


def _generator(path: str | os.PathLike, state: dict[str, Any], record: str, device: str | torch.device) -> Generator:
    config = config_of(path, state)
    G = family(config.family).generator(config.generator)
    G.load_state_dict(state[record])
    G.rasterizer = config.rasterizer
    G.info = run_info(config, Geometry.from_dict(state["geometry"]), state["grid"]["labels"])
    return G.to(device).eval().requires_grad_(False)


def run_info(config: TrainingConfig, geometry: Geometry, grid_labels: torch.Tensor) -> CheckpointInfo:
    """Returns what a generator of the run knows. grid_labels [columns, 25]: the cameras of the training pictures."""
    yaw, _ = Cameras.from_labels(grid_labels).yaw_pitch(geometry)
    limits = (float(yaw.min()), float(yaw.max()))
    return CheckpointInfo(config.to_dict(), geometry, limits, config.shown_background)


def config_of(path: str | os.PathLike, state: dict[str, Any]) -> TrainingConfig:
    """Returns the configuration among the records that were read at `path`. Raises CheckpointError if none knows it."""
    try:
        return TrainingConfig.from_dict(state["config"])
    except ValueError as error:  # of a family or a version that this one does not know
        raise CheckpointError(f"{path}: {error}") from None


def load_discriminator(path: str | os.PathLike, device: str | torch.device = "cpu") -> Discriminator:
    """Loads the discriminator of a checkpoint in eval mode and float32, without gradients. Raises CheckpointError."""
    state = load_checkpoint(path)
    if not state["D"]:
        raise CheckpointError(f"{path}: it holds no discriminator")
    config = config_of(path, state)
    D = family(config.family).discriminator(config.discriminator)
    D.load_state_dict(state["D"])
    return D.to(device).eval().requires_grad_(False)


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """Returns Adam's moments by parameter name; parameters that never had a gradient have none."""
    return {name: dict(optimizer.state[p]) for name, p in module.named_parameters() if optimizer.state.get(p)}


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Inverts `optimizer_state`. Raises CheckpointError for names that the module does not have."""
    parameters = dict(module.named_parameters())
    if unknown := sorted(set(state) - set(parameters)):
        raise CheckpointError(f"optimiser state for unknown parameters: {', '.join(unknown)}")
    for name, values in state.items():
        p = parameters[name]
        optimizer.state[p] = {key: value.to(p.device).clone() for key, value in values.items()}


def load_objective_state(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copies the record `objective` into an objective's own tensors; an empty one, of an older file, changes nothing.

    Raises CheckpointError for names or shapes that are not the objective's.
    """
    if not state:
        return
    if differ := sorted(set(state) ^ set(own)):
        raise CheckpointError(f"state of the objective: {differ[0]} is in the file or in this objective, not in both")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"state of the objective: {name} is {list(state[name].shape)}, not {list(tensor.shape)}"
            )
        tensor.copy_(state[name])


def checksum(state: dict[str, Any]) -> str:
    """Returns the SHA-256 over every record but `checksum`: structure, plain values, tensor types, shapes and bytes."""
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
