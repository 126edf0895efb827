"""Counts the seeds that learn: objectives of a GAN x settings x seeds, one run of train.py each.

    python -m benchmarks.convergence --outdir=training-runs/convergence --seeds=0-5
    python -m benchmarks.convergence --outdir=training-runs/convergence --list

A run has learnt if `way` and `diversity` of docs/learning.md meet their bars. The hostile setting has a tenth of the
penalties' weight and four times the learning rates: what still learns there forgives a bad choice. Every core gets one
run at a time, pinned to it, on one thread. What is stopped goes on with the same command: runs by --resume=latest,
and a run that was judged is not judged again. Writes --json, --plot and a table in Markdown.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import dnnlib
from benchmarks import machine
from benchmarks.learning import BARS, Reference, fakes, frontal, mean_swd, pairwise_rms, passes, snapshots_of
from dnnlib import ROOT
from training import presets
from training.checkpoint import load_generator
from training.comparison.store import write_whole
from training.data.synthetic.synthesize import synthesize_heads
from training.dataset import ImageDataset
from training.families.adversarial_config import AdversarialConfig
from training.runs.resume import newest_run
from training.safety.watchdog import DIAGNOSIS_NAME

# Name -> the loss, and whether generated images are penalised too. R1 is everywhere.
OBJECTIVES = {
    "logistic+R1": ("logistic", False),
    "logistic+R1+R2": ("logistic", True),
    "relativistic+R1": ("relativistic", False),
    "relativistic+R1+R2": ("relativistic", True),
}
SETTINGS = {"normal": (1.0, 1.0), "hostile": (0.1, 4.0)}  # factors on the penalties' weights and the learning rates
JUDGED = ("way", "diversity")
VERDICT = "verdict.json"  # in the folder of a run that was judged
IMAGES, DATA_SEED, IDENTITY_SEED = 4000, 0, 1000
COLORS = {"normal": "#0072b2", "hostile": "#d55e00"}


@dataclass(frozen=True)
class Job:
    """Is one run."""

    objective: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.setting}-{self.seed}".replace("+", "-")

    def options(self, preset: str) -> list[str]:
        """Returns what the run asks of train.py beyond its preset and seed."""
        config = presets.resolve(preset, data="")
        loss, both = OBJECTIVES[self.objective]
        weight, rate = SETTINGS[self.setting]
        assert isinstance(config.objective, AdversarialConfig)
        gamma = config.objective.gamma * weight
        rates = [f"--glr={config.g_lr * rate:g}", f"--dlr={config.d_lr * rate:g}"]
        return [f"--objective={loss}", f"--r1-gamma={gamma:g}", f"--r2-gamma={gamma if both else 0:g}", *rates]


def jobs(seeds: Sequence[int], only: str) -> list[Job]:
    """Returns all runs whose names match, the seeds outermost, so that a part of the sweep is a whole table.

    Raises ValueError if none matches.
    """
    found = [Job(o, s, seed) for seed in seeds for s in SETTINGS for o in OBJECTIVES]
    chosen = [job for job in found if any(fnmatch(job.name, pattern.strip()) for pattern in only.split(","))]
    if not chosen:
        raise ValueError(f"--only={only}: matches no run; the first of {len(found)} is {found[0].name}")
    return chosen


# ---------------------------------------------------------------- one run


class Failed(RuntimeError):
    """Says which process of the sweep failed, for another reason than a run that diverged."""


class Pinned:
    """Runs processes, each on one core and one thread, and ends them all when asked to stop."""

    def __init__(self) -> None:
        self.stopped = False
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, command: Sequence[str], core: int, log: Path) -> int:
        """Runs a command to its end, with its output appended to `log`; returns the exit code."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(log, "ab") as output:
            with self._lock:
                if self.stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
                )
                self._live.add(process)
            if hasattr(os, "sched_setaffinity"):  # Linux; threads that start later inherit it
                os.sched_setaffinity(process.pid, {core})
            code = process.wait()
        with self._lock:
            self._live.discard(process)
        return code

    def stop(self) -> None:
        """Asks all processes to stop; train.py then writes its state first."""
        with self._lock:
            self.stopped = True
            for process in self._live:
                process.send_signal(signal.SIGTERM)


def run_job(job: Job, core: int, pinned: Pinned, sweep: Sweep) -> dict[str, Any] | None:
    """Trains and judges one run, as far as that is not done. Returns the verdict; None if it was stopped.

    Raises Failed.
    """
    if (verdict := sweep.verdict(job)) is not None:
        return verdict
    log = sweep.outdir / f"{job.name}.log"
    command = [sys.executable, str(ROOT / "train.py"), f"--preset={sweep.preset}", f"--data={sweep.data}"]
    command += [f"--outdir={sweep.outdir}", f"--desc={job.name}", f"--seed={job.seed}", f"--kimg={sweep.kimg:g}"]
    command += ["--resume=latest", "--metrics=none", "--no-validate", *job.options(sweep.preset)]
    code = pinned.run(command, core, log)
    if pinned.stopped:
        return None
    run_dir = newest_run(sweep.outdir, job.name)
    if code and (run_dir is None or not (run_dir / DIAGNOSIS_NAME).is_file()):
        raise Failed(f"{job.name}: train.py ended with exit code {code}; see {log}")
    assert run_dir is not None
    if code:
        write_whole(run_dir / VERDICT, json.dumps({"diverged": True}) + "\n")
    else:
        judge = [sys.executable, "-m", "benchmarks.convergence", f"--outdir={sweep.outdir}", f"--judge={run_dir}"]
        code = pinned.run([*judge, f"--data={sweep.data}", f"--floor={sweep.floor!r}"], core, log)
        if pinned.stopped:
            return None
        if code:
            raise Failed(f"{job.name}: could not be judged; see {log}")
    return sweep.verdict(job)


def judge(run_dir: Path, data: str, floor: float) -> dict[str, Any]:
    """Returns way and diversity of a run that is trained; floor: swd of real images against real ones."""
    torch.set_num_threads(1)
    reference = Reference(ImageDataset(data), IDENTITY_SEED)
    (_, first), *_, (nimg, last) = snapshots_of(run_dir)
    labels, distances = reference.labels[reference.items], []
    for path in (first, last):
        G = load_generator(path)
        distances.append(mean_swd(fakes(G, labels), reference.set))
    images, _ = frontal(G, reference.dataset.geometry)
    return {
        "kimg": nimg / 1000,
        "swd": distances,
        "floor": floor,
        "way": (distances[0] - distances[1]) / (distances[0] - floor),
        "diversity": pairwise_rms(images) / reference.diversity,
    }


def learnt(verdict: dict[str, Any]) -> bool:
    """Says whether a run meets both bars. One that diverged, or whose figures are not finite, does not."""
    values = [float(verdict.get(name, np.nan)) for name in JUDGED]
    return all(np.isfinite(value) and passes(name, value) for name, value in zip(JUDGED, values, strict=True))


# ---------------------------------------------------------------- the sweep


@dataclass(frozen=True)
class Sweep:
    """Says what all runs have in common, and finds what is done."""

    outdir: Path
    preset: str
    data: str
    kimg: float

    @functools.cached_property
    def floor(self) -> float:
        """Returns the swd of real images against real ones, measured once for all runs."""
        return Reference(ImageDataset(self.data), IDENTITY_SEED).floor

    def verdict(self, job: Job) -> dict[str, Any] | None:
        """Returns what was found of a run that is judged; None for another. Raises ValueError for another length."""
        run_dir = newest_run(self.outdir, job.name)
        if run_dir is None or not (run_dir / VERDICT).is_file():
            return None
        found = json.loads((run_dir / VERDICT).read_text())
        made = json.loads((run_dir / "training_options.json").read_text())
        if (made["preset"], made["total_kimg"]) != (self.preset, self.kimg):
            raise ValueError(
                f"{run_dir}: was judged as {made['preset']} after {made['total_kimg']:g} kimg, and this sweep is of "
                f"{self.preset} and {self.kimg:g} kimg; choose another --outdir"
            )
        return {**found, "converged": learnt(found)}

    def state(self, job: Job) -> str:
        """Says in a few words how far a run is."""
        verdict = self.verdict(job)
        if verdict is None:
            return "started" if newest_run(self.outdir, job.name) else "to do"
        if verdict.get("diverged"):
            return "diverged"
        figures = ", ".join(f"{name} {verdict[name]:.3f}" for name in JUDGED)
        return f"{'learnt' if verdict['converged'] else 'FAILED'}: {figures}"


def run_all(chosen: Sequence[Job], sweep: Sweep, cores: Sequence[int]) -> None:
    """Runs what is not done, one run a core at a time. Raises Failed for the first process that failed."""
    todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in chosen:
        todo.put(job)
    pinned, errors = Pinned(), list[BaseException]()

    def work(core: int) -> None:
        while not pinned.stopped:
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                run_job(job, core, pinned, sweep)
                if not pinned.stopped:
                    click.echo(f"{job.name}: {sweep.state(job)}")
            except (Failed, ValueError, OSError) as error:
                errors.append(error)
                pinned.stop()

    threads = [threading.Thread(target=work, args=(core,)) for core in cores]
    with dnnlib.stoppable():
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            pinned.stop()
            for thread in threads:
                thread.join()
    if errors:
        raise Failed(str(errors[0]))


def table(rows: Sequence[tuple[Job, dict[str, Any]]]) -> str:
    """Puts the shares that learnt into a table in Markdown: an objective a row, a setting a group of columns."""
    titles = [f"{s}: learnt | way, least / median | diversity, least | swd2k, median, most" for s in SETTINGS]
    lines = ["| objective | " + " | ".join(titles) + " |", "|---" * (1 + 4 * len(SETTINGS)) + "|"]
    for objective in OBJECTIVES:
        cells = []
        for setting in SETTINGS:
            found = [v for job, v in rows if (job.objective, job.setting) == (objective, setting)]
            way, spread = ([v[name] for v in found if name in v] for name in JUDGED)
            cells.append(f"{sum(v['converged'] for v in found)} of {len(found)}" if found else "")
            cells.append(f"{min(way):.3f} / {np.median(way):.3f}" if way else "")
            cells.append(f"{min(spread):.3f}" if spread else "")
            ends = [v["swd"][-1] for v in found if "swd" in v]
            cells.append(f"{np.median(ends):.1f}, {max(ends):.1f}" if ends else "")
        lines.append(f"| {objective} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save_plot(path: Path, rows: Sequence[tuple[Job, dict[str, Any]]]) -> None:
    """Draws way and diversity of every run, a column an objective, with the bars; runs that diverged lie at 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), JUDGED, strict=True):
        for s, setting in enumerate(SETTINGS):
            mine = [(list(OBJECTIVES).index(job.objective), job.seed, v) for job, v in rows if job.setting == setting]
            x = [o + 0.25 * (s - 0.5) + 0.015 * (seed % 10 - 4.5) for o, seed, _ in mine]
            y = [max(v.get(name, 0.0), -0.1) for _, _, v in mine]
            axes.scatter(x, y, s=14, color=COLORS[setting], label=setting)
        axes.axhline(BARS[name][0], color="0.4", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(OBJECTIVES)), [o.replace("+", "\n+", 1) for o in OBJECTIVES], fontsize=8)
        axes.set(title=name, ylim=(-0.15, 1.05))
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


@click.command(context_settings={"show_default": True})
@click.option("--outdir", required=True, type=click.Path(path_type=Path), help="folder of the data set and the runs")
@click.option("--preset", default="micro", help="preset of all runs")
@click.option("--seeds", default="0-5", help="list with ranges")
@click.option("--only", default="*", help="names of runs, with * and ?, comma-separated")
@click.option("--kimg", type=float, help="length of a run; default: the preset's")
@click.option("--data", help="data set; default: heads that are made in --outdir")
@click.option("--cores", help="list of the cores to use; default: those of this process")
@click.option("--list", "list_only", is_flag=True, help="print the runs and how far they are, and do nothing else")
@click.option("--judge", "run_dir", hidden=True, type=click.Path(path_type=Path))  # a process of its own calls it
@click.option("--floor", type=float, hidden=True)  # likewise
@click.option("--json", "out", type=click.Path(path_type=Path), help="file for the figures")
@click.option("--plot", type=click.Path(path_type=Path), help="picture of the runs")
def main(
    outdir: Path,
    preset: str,
    seeds: str,
    only: str,
    kimg: float | None,
    data: str | None,
    cores: str | None,
    list_only: bool,
    run_dir: Path | None,
    floor: float | None,
    out: Path | None,
    plot: Path | None,
) -> None:
    """Train, judge and count."""
    try:
        if run_dir is not None:
            if floor is None:
                raise ValueError("--judge: needs --floor, the swd of real images against real ones")
            write_whole(run_dir / VERDICT, json.dumps(judge(run_dir, str(data), floor)) + "\n")
            return
        config = presets.resolve(preset, data="")
        folder = data or str(outdir / "heads" / str(config.resolution))
        sweep = Sweep(outdir, preset, folder, kimg or config.total_kimg)
        chosen = jobs(dnnlib.parse_flag("--seeds", seeds, dnnlib.parse_ints), only)
        if not list_only:
            dnnlib.make_folder(outdir)
            if data is None:
                synthesize_heads(outdir / "heads", IMAGES, config.resolution, seed=DATA_SEED)
            own = (
                sorted(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else list(range(os.cpu_count() or 1))
            )
            run_all(chosen, sweep, dnnlib.parse_flag("--cores", cores, dnnlib.parse_ints) if cores else own)
        for job in chosen if list_only else ():
            click.echo(f"{job.name}: {sweep.state(job)}")
        rows = [(job, verdict) for job in chosen if (verdict := sweep.verdict(job)) is not None]
    except (Failed, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from None
    if rows:
        click.echo(table(rows))
    if out:
        runs = [{"objective": j.objective, "setting": j.setting, "seed": j.seed, **verdict} for j, verdict in rows]
        record = {"machine": machine.facts(), "preset": preset, "kimg": sweep.kimg, "data": folder, "runs": runs}
        out.write_text(json.dumps(record, indent=1) + "\n")
    if plot and rows:
        save_plot(plot, rows)


if __name__ == "__main__":
    main()
