"""Finds where a run goes on from: which checkpoint, in which folder, with what changed. docs/resume.md has the rest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

import dnnlib
from torch_utils import distributed
from training import checkpoint
from training.checkpoint import CheckpointError
from training.config import TrainingConfig, upgraded
from training.dataset import ImageDataset

LATEST = "latest"
GROWING = ("log.txt", "stats.jsonl", "metric-*.jsonl")  # files of a run folder that a run appends to
RECORD = "resumes.jsonl"  # one line per resume; never cut
_NETWORKS = ("generator", "discriminator")


@dataclass
class Start:
    """Holds the checkpoint that a run goes on from; without a `state` the run starts anew."""

    run_dir: Path | None = None  # to go on in; None: a new folder
    path: Path | None = None  # the file of the checkpoint
    state: dict[str, Any] | None = None  # the records of the checkpoint
    notes: list[str] = field(default_factory=list)  # lines for the user

    @property
    def config(self) -> TrainingConfig | None:
        """The configuration that the checkpoint holds."""
        return None if self.state is None else checkpoint.config_of(self.path or "", self.state)


def find_start(resume: str | None, outdir: Path, name: str, kimg: float | None = None) -> Start:
    """Finds what --resume means: None, a file, or "latest" for the newest run called `name` under `outdir`.

    `outdir` may be a run folder itself; `kimg`: thousands of images that a file counts as. Every rank calls
    this; rank 0 chooses. Raises CheckpointError for a file that cannot be used.
    """
    if resume is None:
        return Start()
    if resume != LATEST:
        whole = checkpoint.load_checkpoint(resume)
        if kimg is not None:
            _count_as(Path(resume), whole, kimg)
        return Start(None, Path(resume), whole)
    if kimg is not None:
        raise CheckpointError("--resume-kimg is for a file; --resume=latest knows how far its run was")
    found: list[dict[str, Any] | None] = [None]

    def choose() -> tuple[Path | None, Path | None, list[str]]:
        run_dir = newest_run(outdir, name)
        if run_dir is None:
            return None, None, [f"--resume=latest: no run called {name} in {outdir}; this is a new one"]
        path, found[0], skipped = newest_checkpoint(run_dir)
        if path is None and skipped:
            return None, None, [*skipped, f"--resume=latest: {run_dir} has no whole checkpoint; this is a new run"]
        if path is None:
            return run_dir, None, [f"--resume=latest: {run_dir} has no checkpoint yet; it starts again"]
        return run_dir, path, skipped

    run_dir, path, notes = distributed.on_main(choose)
    state = found[0] if path is None or found[0] is not None else checkpoint.load_checkpoint(path)
    return Start(run_dir, path, state, notes)


def _count_as(path: Path, state: dict[str, Any], kimg: float) -> None:
    """Lets published weights, also converted ones, count as `kimg` thousand images, at a whole number of batches.

    They know nothing of their images, and published commands always say it. Raises CheckpointError for a checkpoint of
    ours that has seen another number: latents, cameras and the order of the data follow from it.
    """
    own, batch = state["progress"]["nimg"], state["config"]["batch"]
    step = round(kimg * 1000 / batch)
    if "checksum" not in state or "imported" in state["progress"]:
        state["progress"] |= {"nimg": step * batch, "step": step, "tick": -1, "tick_nimg": step * batch}
    elif step * batch != own:
        raise CheckpointError(
            f"--resume-kimg={kimg:g}: {path} is ours and has seen {own / 1000:g} kimg; leave the option out, or take "
            "--init-from to start at 0 with its weights"
        )


def nothing_left(start: Start, config: TrainingConfig) -> str | None:
    """Returns the line for a run that has nothing left to do: all images seen, and its last tick closed."""
    if start.state is None:
        return None
    progress = start.state["progress"]
    nimg = progress["nimg"]
    if nimg < config.total_kimg * 1000 or nimg > progress.get("tick_nimg", nimg):
        return None
    return f"Nothing to do: {start.path} has seen {nimg / 1000:g} kimg, and --kimg is {config.total_kimg:g}"


def newest_run(outdir: Path, name: str) -> Path | None:
    """Finds the folder `NNNNN-<name>[_jobid-ID]` that has the highest number; `outdir` itself if it is a run's."""
    if is_run_dir(outdir):
        return outdir
    if not outdir.is_dir():
        return None
    pattern = re.compile(rf"(\d{{5}})-{re.escape(run_name(name))}(_jobid-.*)?")
    runs = [(m[1], p) for p in outdir.iterdir() if (m := pattern.fullmatch(p.name)) and p.is_dir()]
    return max(runs)[1] if runs else None


def latest_config(outdir: Path, desc: str | None) -> TrainingConfig | None:
    """Reads the configuration of the run that --resume=latest means; None if there is none, or it cannot be told."""
    run_dir = newest_run(outdir, desc) if desc else outdir
    try:
        values = json.loads(((run_dir or outdir) / "training_options.json").read_text(encoding="utf-8"))
        return TrainingConfig.from_dict(values if "family" in values else upgraded(values))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # find_start has the last word
        return None


def is_run_dir(path: Path) -> bool:
    """Tells whether a folder is that of a run."""
    return (path / "training_options.json").is_file() or (path / checkpoint.STATE_NAME).is_file()


def run_name(desc: str, job_id: str = "") -> str:
    """Returns what follows the number in a run folder's name."""
    return re.sub(r"[^\w.=+-]+", "-", f"{desc}_jobid-{job_id}" if job_id else desc).strip("-") or "run"


def newest_checkpoint(run_dir: Path) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """Finds the checkpoint of `run_dir` that is whole and furthest on, its records, and a line for each damaged one."""
    order, skipped = [], []
    for path in [run_dir / checkpoint.STATE_NAME, *sorted(run_dir.glob(checkpoint.SNAPSHOT_PATTERN))]:
        if not path.exists():
            continue
        try:
            progress = checkpoint.read_progress(path)
            # A state can be of the same images as a snapshot, and from before the tick's statistics and metrics.
            order.append((progress["nimg"], progress["tick"], path))
        except CheckpointError as error:
            skipped.append(f"Skipped: {error}")
    for _, _, path in sorted(order, reverse=True):
        try:
            return path, checkpoint.load_checkpoint(path), skipped
        except CheckpointError as error:
            skipped.append(f"Skipped: {error}")
    return None, None, skipped


def check_compatible(start: Start, config: TrainingConfig, data: dict[str, Any]) -> None:
    """Raises CheckpointError if a run cannot go on from `start` with `config` on the data marked by `data`."""
    if start.state is None:
        return
    if empty := [name for name in ("G", "D", "G_ema") if not start.state[name]]:
        raise CheckpointError(
            f"--resume={start.path}: it holds no {' and no '.join(empty)}; use --init-from for the rest"
        )
    before, now = start.state["config"], config.to_dict()
    if before["family"] != now["family"]:
        raise CheckpointError(
            f"--resume={start.path}: its networks are of the family {before['family']}, --preset={config.preset} is of "
            f"{now['family']}; leave --preset out"
        )
    for network in _NETWORKS:
        if changed := differences(before[network], now[network]):
            raise CheckpointError(
                f"--resume={start.path}: its {network} cannot become another one ({'; '.join(changed[:3])}); "
                "leave the networks' options and --preset as they were"
            )
    mark = start.state["progress"].get("data")
    if mark is not None and mark != data:
        what = f"{mark['items']} items" if mark["items"] != data["items"] else "other labels"
        raise CheckpointError(
            f"--resume={start.path}: its run has seen other data ({what}) than {config.data} ({data['items']} items); "
            "a resumed run needs the same images in the same order"
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns `field: old -> new` for every field that differs; fields that the older record lacks are left out."""
    found = []
    for key in sorted(before):
        if key not in now or before[key] == now[key]:
            continue
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            found += [f"{key}.{change}" for change in differences(before[key], now[key])]
        else:
            found.append(f"{key}: {before[key]} -> {now[key]}")
    return found


def describe(start: Start, config: TrainingConfig) -> list[str]:
    """Says what was skipped, where the run goes on, what changed, and whether it stays bit-equal."""
    if start.state is None:
        return start.notes
    progress = start.state["progress"]
    lines = [*start.notes, f"Resumes     {start.path} at {progress['nimg'] / 1000:.3f} kimg, step {progress['step']}"]
    lines += [f"Changed     {change}" for change in differences(start.state["config"], config.to_dict())]
    now = {"threads": torch.get_num_threads(), "ranks": distributed.world_size()}
    for key, value in now.items():
        if key in progress and progress[key] != value:
            lines.append(
                f"Changed     {key}: {progress[key]} -> {value}; sums round otherwise, so the run goes on correctly "
                "but no longer bit-equal to an uninterrupted one"
            )
    return lines


def record(start: Start, run_dir: Path, config: TrainingConfig) -> None:
    """Appends what `describe` says of a resume to the run folder's resumes.jsonl."""
    if start.state is None:
        return
    progress = start.state["progress"]
    line = {
        "from": str(start.path),
        "nimg": progress["nimg"],
        "step": progress["step"],
        "changed": differences(start.state["config"], config.to_dict()),
        "threads": torch.get_num_threads(),
        "ranks": distributed.world_size(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with open(run_dir / RECORD, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def file_sizes(run_dir: Path) -> dict[str, int]:
    """Returns the bytes of every growing file of a run folder, by name."""
    return {p.name: p.stat().st_size for pattern in GROWING for p in sorted(run_dir.glob(pattern))}


def cut_back(run_dir: Path, state: dict[str, Any] | None) -> None:
    """Removes from the growing files what came after `state`, and what a killed process left half written.

    Without a state, everything goes. A state from before file sizes were recorded leaves the files as they are.
    """
    checkpoint.remove_partial(run_dir)
    sizes = {} if state is None else state["progress"].get("files")
    if sizes is None:
        return
    for name, size in file_sizes(run_dir).items():
        keep = sizes.get(name, 0)
        if size > keep:
            os.truncate(run_dir / name, keep)


@contextlib.contextmanager
def open_run(run_dir: Path, start: Start) -> Iterator[None]:
    """Holds `run_dir` for this process and keeps its log; a folder that is gone on in is cut back to `start` first."""
    held = lock(run_dir)
    try:
        if start.run_dir is not None:
            cut_back(run_dir, start.state)
        with dnnlib.Logger(run_dir / "log.txt"):
            yield
    finally:
        if held is not None:
            held.close()


def lock(run_dir: Path) -> IO[str] | None:
    """Makes this process the only one that trains in `run_dir`, until it ends or closes the result.

    None where the platform or the file system has no locks. Raises ValueError if another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = open(run_dir / ".lock", "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ValueError(f"{run_dir}: another process trains in this folder; stop it first") from None
        return None
    return file


def data_mark(dataset: ImageDataset) -> dict[str, Any]:
    """Returns what a resumed run needs of its data: as many items, with the same labels and classes in order."""
    known = dataset.raw_labels.tobytes() + (dataset.classes.tobytes() if dataset.num_classes else b"")
    return {"items": len(dataset), "labels": hashlib.sha256(known).hexdigest()}
