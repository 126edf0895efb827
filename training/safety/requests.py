"""Collects what a run is asked for while it trains: to stop, to end, to write its state. All ranks agree on a step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from torch_utils import distributed

EXIT_STOPPED = 75  # of a process that was asked to stop and wrote its state; EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 5.0  # under torchrun: Ctrl-C reaches a rank from the terminal and again from the launcher


class Stopped(Exception):
    """Ends a run for a stop signal; the message says where it can go on from."""


class Requests:
    """Collects a rank's requests between two steps and keeps what all ranks have agreed on.

    A request becomes an agreement by travelling with a gradient (`GanStep.run`), so no step waits for one more message.
    """

    def __init__(self, minutes: float | None, state_minutes: float):
        self._end = None if minutes is None else time.monotonic() + minutes * 60
        self._state_seconds = state_minutes * 60
        self._state_time = time.monotonic()
        self._signal: int | None = None
        self._signal_time = 0.0
        self._failed = False
        self._interruptible = False
        self.stop = self.out_of_time = self.state_due = False  # agreed by all ranks

    def own(self) -> list[bool]:
        """Returns this rank's requests: to stop for a signal or failure, to end after --minutes, to write the state."""
        now = time.monotonic()
        ended = self._end is not None and now >= self._end
        return [self._failed or self._signal is not None, ended, now - self._state_time >= self._state_seconds]

    def agree(self, requests: Sequence[bool]) -> None:
        """Takes in what any rank has requested in one step."""
        stop, ended, state = requests
        self.stop |= stop
        self.out_of_time |= ended
        self.state_due |= state

    def state_written(self) -> None:
        """Starts the clock of --state-minutes again."""
        self.state_due = False
        self._state_time = time.monotonic()

    def fail(self) -> None:
        """Requests that all ranks stop after a whole step, with their state, as this one cannot go on for long."""
        self._failed = True

    def reason(self) -> str:
        """Says why all ranks have agreed to stop: the signal that this rank got, or that another rank asked."""
        return "asked by another rank" if self._signal is None else signal.Signals(self._signal).name

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Answers SIGTERM and SIGINT inside the block: the first is a request, a second ends the process at once."""
        if threading.current_thread() is not threading.main_thread():  # Python delivers signals to that one only
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal raise Stopped at once inside the block: for work that a resumed run does again."""
        self._interruptible = True
        try:
            if self._signal is not None:
                raise Stopped(f"{self.reason()}: stopped")
            yield
        finally:
            self._interruptible = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is not None:
            if distributed.is_launched() and now - self._signal_time < ECHO_SECONDS:
                return
            os._exit(128 + number)
        self._signal, self._signal_time = number, now
        name = signal.Signals(number).name
        if self._interruptible:
            raise Stopped(f"{name}: stopped")
        # print() may be under way in this very thread; the descriptor always takes a line.
        os.write(2, f"{name}: finishing the step and writing the state; a second signal exits at once\n".encode())
