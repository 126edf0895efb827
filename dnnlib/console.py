"""Keeps what a run prints in a file beside its results."""

import contextlib
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO


class Logger:
    """Copies stdout and stderr to a file while the `with` block runs; the console sees everything unchanged.

    The file receives whole lines, each as soon as it ends. A progress bar redraws its line with carriage returns: of
    such a line only the last state is kept, and none when the bar wiped itself.
    """

    def __init__(self, path: str | Path, mode: Literal["a", "w"] = "a"):
        """Opens nothing yet. path: the log file; mode: "a" to append to it, "w" to overwrite it."""
        if mode not in ("a", "w"):
            raise ValueError(f"mode is {mode!r}; legal are 'a' (append) and 'w' (overwrite)")
        self._path = Path(path)
        self._mode: Literal["a", "w"] = mode
        self._file: TextIO | None = None
        self._tees: list[_Tee] = []

    def __enter__(self) -> "Logger":
        self._file = open(self._path, self._mode, encoding="utf-8")
        lock = threading.Lock()
        self._tees = [_Tee(sys.stdout, self._file, lock), _Tee(sys.stderr, self._file, lock)]
        sys.stdout, sys.stderr = self._tees
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        out, err = self._tees
        # Someone else may have replaced the streams inside the block; then they are theirs to restore.
        if sys.stdout is out:
            sys.stdout = out.console
        if sys.stderr is err:
            sys.stderr = err.console
        out.finish()
        err.finish()
        assert self._file is not None
        with contextlib.suppress(OSError):  # as in _Tee._log
            self._file.close()


class _Tee:
    """Writes text to a console and, line by line, to a file."""

    def __init__(self, console: TextIO, file: TextIO, lock: threading.Lock):
        self.console, self._file, self._lock, self._pending = console, file, lock, ""

    def write(self, text: str) -> int:
        self.console.write(text)
        with self._lock:
            *lines, self._pending = (self._pending + text).split("\n")
            # What stands before the last carriage return of an unfinished line can no longer be seen.
            self._pending = self._pending[max(self._pending.rfind("\r", 0, -1), 0) :]
            self._log(lines)
        return len(text)

    def _log(self, lines: list[str]) -> None:
        if self._file.closed:
            return
        shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
        text = "".join(s + "\n" for s, line in zip(shown, lines, strict=True) if s or "\r" not in line)
        # A full disk must not end the program that prints. What it refuses stays in the file object's buffer, and is
        # written with a later line.
        with contextlib.suppress(OSError):
            if text:
                self._file.write(text)
            if lines:
                self._file.flush()

    def finish(self) -> None:
        """Writes what stands on an unfinished line."""
        with self._lock:
            if self._pending.strip():
                self._log([self._pending])
            self._pending = ""

    def flush(self) -> None:
        self.console.flush()

    def __getattr__(self, name: str) -> object:
        # isatty, fileno, encoding and the like are the console's own.
        return getattr(self.console, name)
