"""Compares two checkouts of this project on one machine: a process for each, which take turns.

A worker runs the benchmark's file of this checkout over the packages of its own one, so that the other may be older
than the benchmark. Every turn is timed in seconds of the process's own processor time (and those of its children that
have ended), which other programs disturb less than the clock on the wall; compare ratios alone.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TURNS = "SPLATGAN_TURNS"  # set in the environment of a worker
HERE = Path(__file__).resolve().parent
WORKER = """
import runpy, sys
import benchmarks
benchmarks.__path__.insert(0, sys.argv.pop(1))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""  # run in the root of a checkout: its packages, but the benchmarks of this one


def is_worker() -> bool:
    """Tells whether this process is a worker."""
    return TURNS in os.environ


def serve(turn: Callable[[], object]) -> None:
    """Does a turn for every line of standard input, and answers with its seconds of processor and of wall."""
    for _ in sys.stdin:
        start = clocks()
        turn()
        print(json.dumps([now - then for now, then in zip(clocks(), start, strict=True)]), flush=True)


def clocks() -> tuple[float, float]:
    """Returns the seconds of processor time, of this process and of its children that have ended, and those of wall."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages), time.perf_counter()


def compare(script: str, arguments: Sequence[str], other: Path, rounds: int) -> dict[str, Any]:
    """Lets this checkout and the `other` take turns, and returns the medians of their seconds, and of the ratios.

    Raises ValueError if there is no checkout, or a worker ends before its time.
    """
    if not (other / "training").is_dir():
        raise ValueError(f"--against={other}: holds no checkout of this project")
    workers = [_start(script, arguments, root) for root in (other.resolve(), HERE.parent)]
    try:
        for worker in workers:
            _turn(worker)  # warm-up
        seconds: list[list[list[float]]] = [[], []]
        for index in range(rounds):
            for i in (0, 1) if index % 2 else (1, 0):
                seconds[i].append(_turn(workers[i]))
    finally:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
    result: dict[str, Any] = {"rounds": rounds}
    for k, clock in enumerate(("processor", "wall")):
        old, new = ([turn[k] for turn in turns] for turns in seconds)
        result[clock] = {
            "other_s": statistics.median(old),
            "this_s": statistics.median(new),
            "ratio": statistics.median(b / a for a, b in zip(old, new, strict=True)),
        }
    return result


def report(result: dict[str, Any], what: str, pieces: int = 1) -> None:
    """Prints what `compare` returns; milliseconds are those of one of a turn's pieces."""
    for clock in ("processor", "wall"):
        values = result[clock]
        print(
            f"{what}, {clock} time: other {values['other_s'] / pieces * 1e3:.1f} ms, "
            f"this {values['this_s'] / pieces * 1e3:.1f} ms, "
            f"ratio {values['ratio']:.3f} (medians of {result['rounds']} rounds)"
        )


def _start(script: str, arguments: Sequence[str], root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(HERE), str(Path(script).resolve()), *arguments]
    environment = os.environ | {TURNS: "1"}
    return subprocess.Popen(
        command, cwd=root, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _turn(worker: subprocess.Popen[str]) -> list[float]:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise ValueError("a worker has ended before its time; see above")
    seconds: list[float] = json.loads(line)
    return seconds
