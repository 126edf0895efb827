"""Trains presets for equal time, one after the other, each by train.py in a process of its own; what ends goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dnnlib import ROOT
from training import presets
from training.checkpoint import STATE_NAME, CheckpointError, read_progress
from training.comparison.store import write_whole
from training.comparison.systems import newest_network
from training.dataset import ImageDataset
from training.runs.report import read_records
from training.runs.resume import newest_run
from training.safety.requests import EXIT_STOPPED, SIGNALS

DONE = "equal-time.json"  # in the folder of a run that has had its time
ENDLESS_KIMG = 1e6  # so that the clock ends a run, not the preset's length
STATE_MINUTES = 1  # what a run that is killed loses at most


class TrainingFailed(ValueError):
    """Says which preset could not be trained."""


def check_presets(names: Sequence[str], dataset: ImageDataset, data: str) -> None:
    """Raises ValueError, before any is trained, for a preset that is unknown or of another resolution."""
    for name in names:
        try:
            config = presets.resolve(name, data="")
        except ValueError as error:
            raise ValueError(f"--train={name}: {error}") from None
        if config.resolution != dataset.resolution:
            raise ValueError(
                f"--train={name}: the preset is for {config.resolution} px, the images in --data={data} have "
                f"{dataset.resolution} px"
            )


def train_presets(
    names: Sequence[str],
    minutes: float,  # of each
    outdir: Path,  # of the run folders
    arguments: Sequence[str],  # of train.py besides these
    say: Callable[[str], None],
) -> list[Path]:
    """Trains each preset until it has trained for `minutes`, and returns their newest checkpoints.

    A run that was interrupted goes on with the time that it has left. Raises TrainingFailed.
    """
    found = []
    for name in names:
        desc = f"{name}-{minutes:g}min"
        run_dir = newest_run(outdir, desc)
        if run_dir is None or not (run_dir / DONE).is_file():
            spent = 0.0 if run_dir is None else seconds_trained(run_dir)
            left = minutes - spent / 60
            if left > 0:
                say(f"{name}: {f'{spent / 60:.1f} minutes trained, ' if spent else ''}trains for {left:.1f} minutes")
                _train(name, desc, outdir, left, arguments)
            run_dir = newest_run(outdir, desc)
            assert run_dir is not None
            write_whole(run_dir / DONE, json.dumps({"minutes": minutes}) + "\n")
        found.append(newest_network(run_dir))
    return found


def _train(name: str, desc: str, outdir: Path, minutes: float, arguments: Sequence[str]) -> None:
    command = [sys.executable, str(ROOT / "train.py"), f"--preset={name}", f"--desc={desc}", f"--outdir={outdir}"]
    command += ["--resume=latest", f"--minutes={minutes:.4f}", f"--kimg={ENDLESS_KIMG:g}", "--metrics=none"]
    command += [f"--state-minutes={STATE_MINUTES}", *arguments]
    code = _run(command)
    if code != 0:
        how = "was stopped" if code == EXIT_STOPPED else f"ended with exit code {code}"
        raise TrainingFailed(f"--train={name}: train.py {how}; the same command goes on")


def _run(command: Sequence[str]) -> int:
    """Runs a process to its end and returns its exit code. Stop signals are passed on, so that it keeps its state."""
    # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
    process = subprocess.Popen(command, start_new_session=True)
    previous = {number: signal.signal(number, lambda n, _: process.send_signal(n)) for number in SIGNALS}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def seconds_trained(run_dir: Path) -> float:
    """Returns the seconds of the steps that the run's newest state holds: statistics, pictures and starts are left out.

    Every tick counts as its images at the pace measured in it, also where its first part was made before a stop.
    """
    seen = _images_seen(run_dir)
    seconds, before, pace = 0.0, 0.0, 0.0
    for record in read_records(run_dir / "stats.jsonl"):
        if record["nimg"] > seen:
            break
        pace = record["timing"]["sec_per_kimg"]
        seconds += pace * (record["nimg"] - before) / 1000
        before = record["nimg"]
    return seconds + pace * (seen - before) / 1000


def _images_seen(run_dir: Path) -> int:
    seen = [0]
    for path in (run_dir / STATE_NAME, *run_dir.glob("network-snapshot-*.pkl")):
        try:
            seen.append(read_progress(path)["nimg"])
        except CheckpointError:  # train.py skips a damaged one, and says so
            continue
    return max(seen)
