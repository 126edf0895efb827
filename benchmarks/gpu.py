"""Runs everything that waits for a GPU, in one call that ends within its limit and leaves at most three files.

    python -m benchmarks.gpu --list
    python -m benchmarks.gpu --out=$OUT --seconds=540              # on a machine with a GPU, from the repository's root
    python -m benchmarks.gpu --out=try --device=cpu --preset=micro    # tries the driver where there is none

Each part is a process with a limit of its own. One that raises, crashes or hangs is reported, and the next one starts;
what a part leaves of its time goes to those behind it. results.jsonl gets every figure as soon as it is known, log.txt
everything that is printed, fakes.png the pictures of the learning run; a summary of at most 60 lines is printed last.

The folder .gpu/ of the repository is looked at, if it is there: .gpu/site goes on the path of imports (a gsplat built
by benchmarks/build_gsplat.sh), and .gpu/heads.zip is what the learning run learns from (made by dataset_tool.py;
otherwise a small set is made on the spot). Parts are forked from one process that has imported PyTorch and has never
touched the GPU: on a lent machine ten imports would be a minute.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / ".gpu" / "site"
SUMMARY_LINES = 60
LINE = 180  # characters of a line of the summary
GRACE = 5.0  # seconds kept for the summary
LEAST = 3.0  # seconds under which a part is not started


@dataclass(frozen=True)
class Part:
    """Names a part of the run, the function that is it, and its limit."""

    name: str
    module: str
    seconds: float
    shows: str  # what it will tell

    @property
    def function(self) -> str:
        """Returns the function's name in the module."""
        return self.name.replace("-", "_")


_KERNELS, _STEPS, _CORRECT = "benchmarks.gpu_kernels", "benchmarks.gpu_steps", "benchmarks.gpu_correctness"
# In the order of their value: what a limit cuts off is what is missed least. --parts chooses for a shorter call.
PARTS = (
    Part("machine", _KERNELS, 20, "card, driver and versions; TB/s of a copy and TFLOP/s of a bfloat16 product, the "
         "ceilings of all shares; which gsplat renders, and how long its first splat takes"),
    Part("correctness", _CORRECT, 60, "tests of the CUDA back ends; gradients of a whole step of `micro` in float32, "
         "CUDA against CPU, worst relative error of each phase; waits in a step, by file and line"),
    Part("families", _CORRECT, 60, "the same gradients and waits for the small preset of every other family"),
    Part("kernels", _KERNELS, 30, "the 4x4 filter, its transpose, bias + leaky ReLU + clamp: PyTorch's kernels against "
         "Triton's in ms, GB/s and largest difference; convolutions, attention, weights, Adam, averages"),
    Part("rasteriser", _KERNELS, 40, "8 scenes of 240,128 splats from 4 views at 512 px: intersections, forward and "
         "backward, tiles of 8 and 16 px, with and without depth, one call against 32; 256 and 1024 px"),
    Part("step-cgs512", _STEPS, 100, "ms of a step after the blur, without waits inside: bf16 at 32, 16 and 8 samples "
         "at a time, fp16 at 16; R1 apart; peak memory; a profile: launches, idle share, longest kernels"),
    Part("step-families", _STEPS, 70, "ms of a step of a published size of every other family, and its peak memory"),
    Part("step-cgs256", _STEPS, 30, "the same for 256 px, bf16 at 32 samples at a time"),
    Part("published-loop", _STEPS, 40, "the same networks and kernels with the published loop: a render for each scene "
         "and view, a D call for each view, fp16 with a float32 generator, TF32 off; ours in the same process"),
    Part("compile", _STEPS, 80, "seconds that compiling the generator takes, the step's time before and after"),
    Part("inference", _STEPS, 25, "images/s of generator and renderer, 1 and 8 at a time, 512 and 1024 px"),
    Part("learning", _STEPS, 110, "a run of train.py from nothing: kimg reached, s/kimg, swd at its end, fakes"),
)  # fmt: skip


@dataclass
class Job:
    """Tells a part where it runs and how long, and takes its figures."""

    part: str
    out: Path
    device: str  # "cuda" or "cpu"
    preset: str | None  # stands in for every preset of a part; sizes of tensors are then small, too
    deadline: float  # of time.monotonic()

    @property
    def small(self) -> bool:
        """Whether this is a trial run: nothing large, one repetition."""
        return self.preset is not None

    def left(self) -> float:
        """Returns the seconds until the part is ended."""
        return self.deadline - time.monotonic()

    def say(self, text: str, **values: Any) -> None:
        """Prints a line for the summary and appends it, with its figures, to results.jsonl."""
        print(f"{self.part}: {text}", flush=True)
        append(self.out, {"part": self.part, "text": text} | values)

    def attempt(self, name: str, run: Any, *args: Any) -> None:
        """Runs a piece of a part; what it raises is reported and does not end the part."""
        try:
            run(*args)
        except Exception as error:
            traceback.print_exc()
            self.say(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", failed=name)


def append(out: Path, record: dict[str, Any]) -> None:
    """Adds a line to results.jsonl, whole and on the disk."""
    with open(out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def results(out: Path) -> list[dict[str, Any]]:
    """Returns the records of results.jsonl."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---------------------------------------------------------------- processes


@dataclass
class Child:
    """Is a part under way in a process group of its own."""

    pid: int
    output: int  # file descriptor of what it prints
    status: int | None = field(default=None)

    def ended(self) -> bool:
        """Looks whether the process has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start(job: Job, part: Part) -> Child:
    """Forks a part. Its output comes through a pipe."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    status = 1
    try:
        os.setsid()
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        getattr(importlib.import_module(part.module), part.function)(job)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_part(job: Job, part: Part, log: Any) -> str:
    """Runs a part until it ends or its time is over; copies what it prints. Returns how it ended, "" if well."""
    child = start(job, part)
    try:
        while not child.ended() and job.left() > 0:
            if select.select([child.output], [], [], 0.05)[0]:
                copy(child.output, log)
        late = not child.ended()
    finally:
        child.kill()  # also what an ended part has left behind in its group
    while select.select([child.output], [], [], 0)[0] and copy(child.output, log):
        pass
    os.close(child.output)
    if late:
        return "was stopped at its limit"
    return f"ended with status {child.status}" if child.status else ""


def copy(output: int, log: Any) -> bool:
    """Copies what is there to be read; returns whether there was anything."""
    block = os.read(output, 65536)
    log.write(block)
    log.flush()
    sys.stdout.buffer.write(block)
    sys.stdout.flush()
    return bool(block)


def prepare_environment() -> None:
    """Sets what must stand before PyTorch is imported, for this process and all that it starts."""
    paths = [str(SITE)] if SITE.exists() else []
    sys.path[:0] = paths
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT), *([inherited] if inherited else [])])
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("MAX_JOBS", "16")  # compilers, if gsplat has to be built there
    importlib.import_module("torch")


def summarise(out: Path, seconds: float) -> list[str]:
    """Returns the lines that are printed last: the figures in order, cut to what a reply shows."""
    records = results(out)
    lines = [f"{record['part']}: {record['text']}"[:LINE] for record in records if not record.get("detail")]
    failed = [record["part"] for record in records if record.get("ended")]
    end = f"{len(records)} results in {seconds:.0f} s in {out}; " + (
        f"not whole: {', '.join(failed)}" if failed else "all parts ended well"
    )
    room = SUMMARY_LINES - 2
    if len(lines) > room:
        lines = [*lines[: room - 1], f"... {len(lines) - room + 1} lines more in results.jsonl"]
    return ["== summary", *lines, end]


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--preset", help="Stands in for every preset, with small tensors: tries the driver out.")
@click.option("--parts", default=",".join(part.name for part in PARTS), help="Comma-separated.  [default: all]")
@click.option("--seconds", default=540.0, show_default=True, help="Limit of the whole call.")
@click.option("--list", "only_list", is_flag=True, help="Say what each part will show, and end.")
def main(out: Path | None, device: str, preset: str | None, parts: str, seconds: float, only_list: bool) -> None:
    """Measure on a GPU, part by part."""
    if only_list:
        for part in PARTS:
            print(f"{part.name} ({part.seconds:.0f} s): {part.shows}")
        return
    if out is None:
        raise click.UsageError("--out: the results need a folder")
    by_name = {part.name: part for part in PARTS}
    names = [name.strip() for name in parts.split(",")]
    if unknown := [name for name in names if name not in by_name]:
        raise click.ClickException(f"--parts={parts}: {unknown[0]} is none of {', '.join(by_name)}")
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    prepare_environment()
    spare = 0.0  # seconds that parts have left over
    with open(out / "log.txt", "ab") as log:
        for name in names:
            part, begun = by_name[name], time.monotonic()
            limit = min(part.seconds + spare, started + seconds - GRACE - begun)
            if limit < LEAST:
                append(out, {"part": name, "text": "not started: no time was left", "ended": "not started"})
                continue
            job = Job(name, out, device, preset, begun + limit)
            problem = run_part(job, part, log)
            if problem:
                append(out, {"part": name, "text": problem, "ended": problem})
            spent = time.monotonic() - begun
            spare = max(limit - spent, 0.0)
            log.write(f"== {name} took {spent:.1f} s of {limit:.0f}\n".encode())
    lines = summarise(out, time.monotonic() - started)
    print("\n".join(lines), flush=True)
    sys.exit(sum(1 for record in results(out) if record.get("ended")))


if __name__ == "__main__":
    main()
