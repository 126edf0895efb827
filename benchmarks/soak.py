"""Kills training at random instants and compares its end with an uninterrupted run's: `python -m benchmarks.soak`.

Three parts, each with its figures in the JSON file of --out:

    kills     one process, killed by SIGKILL --kills times, every third time while it writes a checkpoint; it goes on
              with --resume=latest. Weights, moving average, optimiser state and statistics must end bit-equal.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from torch_utils import distributed  # noqa: E402
from training.checkpoint import SNAPSHOT_PATTERN, STATE_NAME, load_checkpoint  # noqa: E402
from training.data.synthetic.synthesize import synthesize_heads  # noqa: E402
from training.presets import resolve  # noqa: E402

IMAGES = 256
NETWORKS, OPTIMISERS = ("G", "D", "G_ema"), ("G", "D")
EVERY_WRITE = 3  # every so many kills one waits for a checkpoint to be under way
PATIENCE = 600.0  # seconds for anything that should happen


@dataclass(frozen=True)
class Run:
    """A training command; the same one starts it and goes on with it."""

    data: Path
    outdir: Path
    preset: str
    kimg: float
    state_minutes: float
    flags: tuple[str, ...] = ()

    def start(self, *more: str) -> subprocess.Popen[str]:
        """A new process group, so that a kill reaches the workers too."""
        command = [
            *(sys.executable, str(ROOT / "train.py"), f"--data={self.data}", f"--outdir={self.outdir}"),
            *(f"--preset={self.preset}", f"--kimg={self.kimg}", f"--state-minutes={self.state_minutes}"),
            *("--metrics=none", "--device=cpu", "--network-snap=1000", "--img-snap=1000", "--no-validate"),
            *(*self.flags, *more),
        ]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def folder(self) -> Path:
        (only,) = self.outdir.glob("*-*")
        return only

    def finish(self, *more: str) -> None:
        process = self.start(*more)
        _, said = process.communicate(timeout=3600)
        if process.returncode:
            raise RuntimeError(f"training ended with {process.returncode}: {said[-2000:]}")

    def end(self) -> dict[str, Any]:
        """The records of the last snapshot, and the statistics without the clock's."""
        snapshots = [load_checkpoint(path) for path in self.folder().glob(SNAPSHOT_PATTERN)]
        last = max(snapshots, key=lambda state: state["progress"]["nimg"])
        lines = [json.loads(line) for line in (self.folder() / "stats.jsonl").read_text().splitlines()]
        return {"state": last, "stats": [{k: v for k, v in line.items() if k != "timing"} for line in lines]}


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of everything in which two ends are not bit-equal."""
    a, b = one["state"], other["state"]
    found = [] if a["progress"]["nimg"] == b["progress"]["nimg"] else ["progress"]
    for name in NETWORKS:
        found += [f"{name}.{key}" for key, value in a[name].items() if not torch.equal(value, b[name][key])]
    for name in OPTIMISERS:
        for key, moments in a["opt"][name].items():
            other_moments = b["opt"][name][key]
            found += [f"opt.{name}.{key}.{k}" for k, v in moments.items() if not torch.equal(v, other_moments[k])]
    return found + ([] if one["stats"] == other["stats"] else ["stats.jsonl"])


def kill_at_random(run: Run, kills: int, spread_s: tuple[float, float], seed: int = 0) -> dict[str, Any]:
    """Starts `run` again and again and kills it `spread_s` seconds after its first step, then lets it end."""
    draw = random.Random(seed)
    lost, writing = [], 0
    for number in range(kills):
        process = run.start("--resume=latest")
        _wait_for(lambda p=process: p.poll() is not None or _steps(run, p))
        time.sleep(draw.uniform(*spread_s))
        if number % EVERY_WRITE == EVERY_WRITE - 1:
            _wait_for(lambda p=process: p.poll() is not None or _is_writing(run.outdir), pause=0.0)
            writing += _is_writing(run.outdir)
        if process.poll() is not None:
            raise RuntimeError(f"the run ended after {number} kills with {process.returncode}: take a larger --kimg")
        lost.append(_age_of_newest(run.outdir, process))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    run.finish("--resume=latest")
    return {"kills": kills, "while_writing": writing, "worst_lost_s": max(lost, default=0.0)}


def kill_one_rank(run: Run, after_s: float = 2.0) -> dict[str, Any]:
    """Kills the second of two ranks; the launcher's status and last line, and the seconds until all had ended."""
    process = run.start("--gpus=2")
    _wait_for(lambda: process.poll() is not None or (len(ranks_of(process)) == 2 and _steps(run, process)))
    time.sleep(after_s)
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
    """The rank processes of a launcher, in the order of their start."""
    return sorted(psutil.Process(process.pid).children(), key=lambda child: child.create_time())


def _steps(run: Run, process: subprocess.Popen[str]) -> bool:
    """Whether `process` itself has made its first step: it has written statistics or a state."""
    started = psutil.Process(process.pid).create_time()
    paths = [p for pattern in ("*/stats.jsonl", f"*/{STATE_NAME}") for p in run.outdir.glob(pattern)]
    return any(p.stat().st_size and p.stat().st_mtime > started + 1.0 for p in paths)


def _is_writing(outdir: Path) -> bool:
    return any(outdir.glob("*/.*.part"))


def _age_of_newest(outdir: Path, process: subprocess.Popen[str]) -> float:
    """Seconds that a kill now would lose: since the newest checkpoint, or the process's start where that is later.

    So a process that has not written yet counts its start-up too, and the figure can exceed --state-minutes by that.
    """
    paths = [*outdir.glob(f"*/{STATE_NAME}"), *outdir.glob(f"*/{SNAPSHOT_PATTERN}")]
    started = psutil.Process(process.pid).create_time()
    return time.time() - max([started, *(p.stat().st_mtime for p in paths)])


def _wait_for(condition, pause: float = 0.05) -> None:
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
def main(kills, preset, kimg, state_minutes, parts, seed, work, out):
    """Kill training at random instants and compare the ends."""
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
        for part in parts.split(","):
            result[part] = PARTS[part](run, kills, seed)
            click.echo(json.dumps({part: result[part]}))
        result["minutes"] = round((time.monotonic() - begun) / 60, 1)
        Path(out).write_text(json.dumps(result, indent=2) + "\n")
        failed = [part for part in PARTS if result.get(part, {}).get("different")]
    if failed:
        raise click.ClickException(f"not bit-equal to the uninterrupted run: {', '.join(failed)}")


def _reference(run: Run) -> dict[str, Any]:
    if not run.outdir.exists():
        run.finish()
    return run.end()


def _kills(run, kills: int, seed: int) -> dict[str, Any]:
    whole, killed = run("whole"), run("killed")
    reference = _reference(whole)
    figures = kill_at_random(killed, kills, (0.0, 6.0), seed)
    return figures | {"different": different(reference, killed.end())}


def _rank(run, kills: int, seed: int) -> dict[str, Any]:
    return kill_one_rank(run("lost-rank"))


def _restart(run, kills: int, seed: int) -> dict[str, Any]:
    whole, disturbed = run("two-ranks", "--gpus=2"), run("restarted", "--max-restarts=1")
    reference = _reference(whole)
    return kill_one_rank(disturbed, after_s=8.0) | {"different": different(reference, disturbed.end())}


PARTS = {"kills": _kills, "rank": _rank, "restart": _restart}

if __name__ == "__main__":
    main()
