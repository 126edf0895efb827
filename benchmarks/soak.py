"""Kills training at random instants and compares its end with an uninterrupted run's: `python -m benchmarks.soak`.

Three parts, each with its figures in the JSON file of --out:

    kills     one process, killed by SIGKILL --kills times, every third time while it writes a checkpoint; it goes on
              with --resume=latest. Weights, moving averages, optimiser states and statistics must end bit-equal.
    rank      two ranks, of which one is killed: how long until all have ended, and what the launcher said.
    restart   the same with --max-restarts=1: the run completes by itself and ends bit-equal to two undisturbed ranks.

In short it is part of the suite (tests/faults). With --work a reference run that is there already is used again.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from torch import Tensor

from dnnlib import ROOT
from torch_utils import distributed
from training.checkpoint import SNAPSHOT_PATTERN, STATE_NAME, load_checkpoint
from training.data.synthetic.synthesize import synthesize_heads
from training.presets import resolve

IMAGES = 256
EVERY_WRITE = 3  # every so many kills one waits for a checkpoint to be under way
PATIENCE = 600.0  # seconds for anything that should happen


@dataclass(frozen=True)
class Run:
    """Is a training command; the same one starts a run and goes on with it."""

    data: Path
    outdir: Path
    preset: str
    kimg: float
    state_minutes: float
    flags: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Returns what train.py is told."""
        return [
            *(f"--data={self.data}", f"--outdir={self.outdir}"),
            *(f"--preset={self.preset}", f"--kimg={self.kimg}", f"--state-minutes={self.state_minutes}"),
            *("--metrics=none", "--device=cpu", "--network-snap=1000", "--img-snap=1000", "--no-validate"),
            *self.flags,
        ]

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Starts a new process group, so that a kill reaches the workers too."""
        command = [sys.executable, str(ROOT / "train.py"), *self.arguments(), *more]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def folder(self) -> Path:
        """Returns the run folder, of which there must be one."""
        (only,) = self.outdir.glob("*-*")
        return only

    def finish(self, *more: str) -> None:
        """Trains to the end. Raises RuntimeError with what was said last if that fails."""
        process = self.start(*more)
        _, said = process.communicate(timeout=3600)
        if process.returncode:
            raise RuntimeError(f"training ended with {process.returncode}: {said[-2000:]}")

    def end(self) -> dict[str, Any]:
        """Returns the records of the last snapshot, and the statistics without the clock's."""
        snapshots = [load_checkpoint(path) for path in self.folder().glob(SNAPSHOT_PATTERN)]
        last = max(snapshots, key=lambda state: state["progress"]["nimg"])
        lines = [json.loads(line) for line in (self.folder() / "stats.jsonl").read_text().splitlines()]
        return {"state": last, "stats": [{k: v for k, v in line.items() if k != "timing"} for line in lines]}


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names everything in which two ends are not bit-equal."""
    a, b = one["state"], other["state"]
    found = [] if a["progress"]["nimg"] == b["progress"]["nimg"] else ["progress"]
    one_tensors, other_tensors = _tensors(a), _tensors(b)
    found += sorted(one_tensors.keys() ^ other_tensors.keys())
    found += [k for k in one_tensors if k in other_tensors and not torch.equal(one_tensors[k], other_tensors[k])]
    return found + ([] if one["stats"] == other["stats"] else ["stats.jsonl"])


def _tensors(records: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Returns all tensors of nested records by their full names, "opt.G._xyz.exp_avg"."""
    found: dict[str, Tensor] = {}
    for name, value in records.items():
        if isinstance(value, dict):
            found |= _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
    return found


def kill_at_random(run: Run, kills: int, spread_s: tuple[float, float], seed: int = 0) -> dict[str, Any]:
    """Starts `run` again and again and kills it `spread_s` seconds after its first step, then lets it end."""
    draw = random.Random(seed)
    lost: list[float] = []
    writing = 0
    for number in range(kills):
        process = run.start("--resume=latest")
        _wait_for(partial(_ended_or_resumable, run, process))
        time.sleep(draw.uniform(*spread_s))
        if number % EVERY_WRITE == EVERY_WRITE - 1:
            _wait_for(partial(_ended_or_writes, run, process), pause=0.0)
            writing += _is_writing(run.outdir)
        if process.poll() is not None:
            raise RuntimeError(f"the run ended after {number} kills with {process.returncode}: take a larger --kimg")
        lost.append(_age_of_newest(run.outdir, process))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    run.finish("--resume=latest")
    return {"kills": kills, "while_writing": writing, "worst_lost_s": max(lost, default=0.0)}


def kill_one_rank(run: Run, after_s: float = 2.0) -> dict[str, Any]:
    """Kills the second of two ranks; returns the launcher's status and lines, and the seconds until all had ended."""
    process = run.start("--gpus=2")
    _wait_for(lambda: process.poll() is not None or (len(ranks_of(process)) == 2 and _resumable(run, process)))
    time.sleep(after_s)
    if process.poll() is not None:
        _, said = process.communicate()
        raise RuntimeError(f"the run ended before a rank was killed, with {process.returncode}: {said[-2000:]}")
    ranks = ranks_of(process)
    ranks[1].kill()
    begun = time.monotonic()
    _, said = process.communicate(timeout=PATIENCE)
    psutil.wait_procs(ranks, timeout=PATIENCE)
    return {
        "seconds": time.monotonic() - begun,
        "status": process.returncode,
        "lines": [line for line in said.splitlines() if line.startswith(("Error:", "Restart"))],
    }


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Returns the rank processes of a launcher, in the order of their start."""
    return sorted(psutil.Process(process.pid).children(), key=lambda child: child.create_time())


def _steps(run: Run, process: subprocess.Popen[str]) -> bool:
    """Says whether `process` itself has made its first step: it has written statistics or a state."""
    started = psutil.Process(process.pid).create_time()
    paths = [p for pattern in ("*/stats.jsonl", f"*/{STATE_NAME}") for p in run.outdir.glob(pattern)]
    return any(p.stat().st_size and p.stat().st_mtime > started + 1.0 for p in paths)


def _resumable(run: Run, process: subprocess.Popen[str]) -> bool:
    """Says whether `process` has made a step and a restart finds a checkpoint: it would begin anew without one."""
    return any(any(run.outdir.glob(f"*/{name}")) for name in (STATE_NAME, SNAPSHOT_PATTERN)) and _steps(run, process)


def _ended_or_resumable(run: Run, process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or _resumable(run, process)


def _ended_or_writes(run: Run, process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or _is_writing(run.outdir)


def _is_writing(outdir: Path) -> bool:
    return any(outdir.glob("*/.*.part"))


def _age_of_newest(outdir: Path, process: subprocess.Popen[str]) -> float:
    """Returns the seconds that a kill now would lose: since the newest checkpoint, or a later start of the process.

    So a process that has not written yet counts its start-up too, and the figure can exceed --state-minutes by that.
    """
    paths = [*outdir.glob(f"*/{STATE_NAME}"), *outdir.glob(f"*/{SNAPSHOT_PATTERN}")]
    started = psutil.Process(process.pid).create_time()
    return time.time() - max([started, *(p.stat().st_mtime for p in paths)])


def _wait_for(condition: Callable[[], object], pause: float = 0.05) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened within {PATIENCE:.0f} s")
        time.sleep(pause)


@click.command(context_settings={"show_default": True})
@click.option("--kills", type=click.IntRange(min=0), default=30, help="of the part `kills`")
@click.option("--preset", default="tiny", help="micro or tiny")
@click.option("--kimg", type=float, default=6.0, help="length of each run; long enough for all kills")
@click.option("--state-minutes", type=float, default=0.08, help="between two states, which a kill loses at most")
@click.option("--parts", default="kills,rank,restart", help="which, with commas")
@click.option("--seed", type=int, default=0, help="of the instants")
@click.option("--work", metavar="DIR", help="folder of the runs; by default one that is removed again")
@click.option("--out", default=str(ROOT / "benchmarks" / "results" / "soak-cpu.json"), help="where the figures go")
def main(
    kills: int,
    preset: str,
    kimg: float,
    state_minutes: float,
    parts: str,
    seed: int,
    work: str | None,
    out: str,
) -> None:
    """Kill training at random instants and compare the ends."""
    chosen = parts.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise click.ClickException(f"--parts={parts}: unknown {', '.join(unknown)}; legal are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(work or temporary)
        data = synthesize_heads(folder / "heads", IMAGES, resolve(preset, data="").generator.resolution, seed=0).images

        def run(name: str, *flags: str) -> Run:
            return Run(data, folder / name, preset, kimg, state_minutes, flags)

        result: dict[str, Any] = {
            "cores": distributed.usable_cores(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "run": {"preset": preset, "kimg": kimg, "state_minutes": state_minutes, "seed": seed},
        }
        begun = time.monotonic()
        for part in chosen:
            result[part] = PARTS[part](run, kills, seed)
            click.echo(json.dumps({part: result[part]}))
        result["minutes"] = round((time.monotonic() - begun) / 60, 1)
        Path(out).write_text(json.dumps(result, indent=2) + "\n")
        failed = [part for part in PARTS if result.get(part, {}).get("different")]
    if failed:
        raise click.ClickException(f"not bit-equal to the uninterrupted run: {', '.join(failed)}")


MakeRun = Callable[..., Run]  # from a name and further flags of train.py


def _reference(run: Run) -> dict[str, Any]:
    if not run.outdir.exists():
        run.finish()
    return run.end()


def _kills(run: MakeRun, kills: int, seed: int) -> dict[str, Any]:
    whole, killed = run("whole"), run("killed")
    reference = _reference(whole)
    figures = kill_at_random(killed, kills, (0.0, 6.0), seed)
    return figures | {"different": different(reference, killed.end())}


def _rank(run: MakeRun, kills: int, seed: int) -> dict[str, Any]:
    return kill_one_rank(run("lost-rank"))


def _restart(run: MakeRun, kills: int, seed: int) -> dict[str, Any]:
    whole, disturbed = run("two-ranks", "--gpus=2"), run("restarted", "--max-restarts=1")
    reference = _reference(whole)
    return kill_one_rank(disturbed, after_s=8.0) | {"different": different(reference, disturbed.end())}


PARTS: dict[str, Callable[[MakeRun, int, int], dict[str, Any]]] = {"kills": _kills, "rank": _rank, "restart": _restart}

if __name__ == "__main__":
    main()
