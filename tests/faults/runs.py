"""The run that the tests of faults kill, split and resume, and forked processes that train it."""

from __future__ import annotations

import os
import signal
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import train
from benchmarks.soak import Run
from training.checkpoint import SNAPSHOT_PATTERN, STATE_NAME, read_progress

# 20 steps; a state every 0.3 s.
RUN: dict[str, Any] = {"preset": "micro", "kimg": 0.16, "state_minutes": 0.005}
TICK = 40  # images
FLAGS = ("--batch=8", "--batch-gpu=4", f"--tick={TICK / 1000}", "--precision=fp32",
         "--gaussian-num-pts=64", "--cmax=16", "--map-depth=2")  # fmt: skip
PATIENCE = 900.0  # seconds for what takes a few; a hang is the alternative


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps what is started here on the worker's core: two ranks that spin on shared cores are many times slower."""
    before = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(before)[worker % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Fork:
    """Is train.py in a fork of this process, which has imported PyTorch already; used like a subprocess.Popen."""

    def __init__(self, arguments: list[str], said: Path):
        self.said, self.returncode = said, None
        self.pid = os.fork()
        if self.pid == 0:
            self._train(arguments)

    def _train(self, arguments: list[str]) -> None:
        status = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            for stream, path in ((1, os.devnull), (2, self.said)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
            train.main(arguments)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)  # no teardown of what pytest set up

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        self._ended(0)
        return None, self.said.read_text()

    def _ended(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class ForkedRun(Run):
    """Is a run of one process each time, which needs no start of Python."""

    def start(self, *more: str) -> subprocess.Popen[str]:
        self.outdir.mkdir(parents=True, exist_ok=True)
        return Fork([*self.arguments(), *more], self.outdir / "said.txt")  # type: ignore[return-value]


class EndlessRun(ForkedRun):
    """Never ends before it is killed, however slow the one who kills is; `finish` ends it a few steps later."""

    def finish(self, *more: str) -> None:
        self.ended().finish(*more)

    def ended(self) -> ForkedRun:
        """Returns the run as it is when it stops two ticks after the newest state."""
        return ForkedRun(**vars(self) | {"kimg": self._kimg()})

    def _kimg(self) -> float:
        paths = [path for name in (STATE_NAME, SNAPSHOT_PATTERN) for path in self.folder().glob(name)]
        seen = max(read_progress(path)["nimg"] for path in paths)
        return (seen // TICK + 2) * TICK / 1000
