"""Starts the ranks of one machine, watches them, and restarts them after a crash, in place of torchrun.

It sets torchrun's environment variables, so that a script does not see which of the two started it. Unlike torchrun it
names the failed rank, the host and the signal in one line, lets the surviving ranks print theirs, passes a stop signal
on once and waits for three times the duration of a snapshot, and restarts only after a crash, not after an error that
the script reports itself.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from torch_utils.distributed import LAUNCH_DIR, SNAPSHOT_NOTE

EXIT_RANK_LOST = 76  # exit code of a rank whose collective failed (EX_PROTOCOL of sysexits.h)
LEAST_GRACE = 60.0  # seconds that ranks get to finish a step and write their state after a stop signal
GRACE_SNAPSHOTS = 3  # least time to stop as a multiple of the last measured snapshot's duration
_SURVIVORS = 10.0  # seconds that ranks get to notice the loss of another one, and again after SIGTERM
_POLL = 0.1  # seconds between two looks at the processes
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def launch(ranks: int, arguments: Sequence[str], max_restarts: int = 0) -> int:
    """Runs `python ARGUMENTS` as `ranks` processes and returns the exit status of the run.

    A rank that is killed, or whose collective failed, ends all; up to `max_restarts` times they are started anew with
    `distributed.restarts()` counting up, and the script resumes. A stop signal is passed on, and the ranks' own status
    is returned.
    """
    with tempfile.TemporaryDirectory(prefix="splatgan-launch-") as notes:
        group = _Ranks(ranks, arguments, Path(notes), max_restarts)
        previous = {number: signal.signal(number, group.on_signal) for number in _STOP}
        try:
            for attempt in range(max_restarts + 1):
                status, crashed = group.run(attempt)
                if not crashed or group.stopped:
                    return status
                if attempt < max_restarts:
                    _say(f"Restart {attempt + 1} of {max_restarts} from the latest state")
            return status
        finally:
            group.kill()
            for number, handler in previous.items():
                signal.signal(number, handler)


def leave_lost() -> NoReturn:
    """Ends a rank whose collective failed, at once: threads of the broken process group may wait for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_RANK_LOST)


class _Ranks:
    """Holds the processes of one launch."""

    def __init__(self, count: int, arguments: Sequence[str], notes: Path, max_restarts: int):
        self.count, self.command, self.notes, self.max_restarts = (
            count,
            [sys.executable, *arguments],
            notes,
            max_restarts,
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped = 0.0  # time of the first stop signal

    def run(self, attempt: int) -> tuple[int, bool]:
        """Starts all ranks, waits for their end, and returns the exit status and whether a restart may help."""
        # The ranks meet in a store of this process, on a port that the system chooses, so that runs do not collide.
        # Each attempt has its own store: in an old one, ranks find the addresses of dead ones and wait for them.
        self.store = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=10)
        )
        self.processes = [self._start(rank, attempt) for rank in range(self.count)]
        while True:
            codes = [process.poll() for process in self.processes]
            if self.stopped and None in codes and time.monotonic() - self.stopped > self.grace():
                _say(f"Error: ranks did not stop within {self.grace():.0f} s of the signal and were killed")
                self.kill()
            elif not self.stopped and any(codes):
                return self._fail(codes)
            elif None not in codes:
                return max((_status(code) for code in codes if code is not None), default=0), False
            time.sleep(_POLL)

    def _start(self, rank: int, attempt: int) -> subprocess.Popen[bytes]:
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": self.count,
            "LOCAL_WORLD_SIZE": self.count,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.store.port,
            "TORCHELASTIC_RUN_ID": "splatgan",
            "TORCHELASTIC_USE_AGENT_STORE": True,  # the ranks are clients of the store at MASTER_PORT
            "TORCHELASTIC_RESTART_COUNT": attempt,
            "TORCHELASTIC_MAX_RESTARTS": self.max_restarts,
            LAUNCH_DIR: self.notes,
        }
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
        return subprocess.Popen(
            self.command, env=os.environ | {k: str(v) for k, v in environment.items()}, start_new_session=True
        )

    def _fail(self, codes: list[int | None]) -> tuple[int, bool]:
        """Reports which rank has failed, ends the others, and returns as `run` does."""
        # Of several that ended between two looks, a killed one is the cause and a failed collective the effect.
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        rank, code = min(failed, key=lambda item: (item[1] > 0, item[1] == EXIT_RANK_LOST))
        process = self.processes[rank]
        for nudge in (lambda: None, lambda: self._send(signal.SIGTERM)):
            nudge()
            if self._wait(_SURVIVORS):
                break
        self.kill()
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        _say(
            f"Error: rank {rank} of {self.count} on {socket.gethostname()} (process {process.pid}) {how}; "
            "all ranks have ended, and the last written state is whole"
        )
        return _status(code), code < 0 or code == EXIT_RANK_LOST

    def grace(self) -> float:
        """Returns the seconds that ranks get after a stop signal."""
        notes = [float(path.read_text() or 0) for path in self.notes.glob(f"{SNAPSHOT_NOTE}.*")]
        return max(LEAST_GRACE, GRACE_SNAPSHOTS * max(notes, default=0.0))

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Passes a stop signal on to the ranks, which count them themselves."""
        self.stopped = self.stopped or time.monotonic()
        self._send(number)

    def kill(self) -> None:
        """Ends the processes that still run."""
        self._send(signal.SIGKILL)
        self._wait(_SURVIVORS)

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _wait(self, seconds: float) -> bool:
        """Returns whether all ranks ended within `seconds`."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL)
        return True


def _status(code: int) -> int:
    """Returns a shell's exit status: 128 + n for a process that signal n ended."""
    return code if code >= 0 else 128 - code


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
