"""One bad input, run through its script's click command or as a process of its own, and what every answer must keep."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from dnnlib import ROOT

LONGEST_MESSAGE = 500  # characters, after the paths of the test are out: a line that can be read
INTERNALS = (
    r"\[Errno|Error\(|<urlopen|\b[A-Z]\w+Error\b|PytorchStreamReader|to unpack|load_state_dict|\(\d+\)$|\btorch\.\w"
)


@dataclass(frozen=True)
class Place:
    """What a case finds: an empty folder of its own, which is also its working directory, and shared good inputs."""

    tmp: Path
    data: Path  # images of a good 32 px set, to be copied and not changed: see spoil.py
    network: Path  # a good checkpoint of the 32 px member, likewise

    def fill(self, text: str) -> str:
        """`text` with TMP, DATA and NETWORK in braces replaced by the paths."""
        for name, path in self._paths():
            text = text.replace("{" + name + "}", str(path))
        return text

    def blank(self, text: str) -> str:
        """Inverse of `fill`, with the names alone: the same text wherever the test runs."""
        for name, path in sorted(self._paths(), key=lambda item: -len(str(item[1]))):
            text = text.replace(str(path), name).replace(str(path.resolve()), name)
        return text

    def _paths(self) -> list[tuple[str, Path]]:
        return [("TMP", self.tmp), ("DATA", self.data), ("NETWORK", self.network)]


@dataclass(frozen=True)
class Case:
    """A command line that must end with one clear line."""

    name: str  # says what is bad, in a few words; unique
    script: str  # module of the script in the root folder: "train" is train.py
    argv: tuple[str, ...]  # {TMP}, {DATA} and {NETWORK} stand for the paths of `Place`
    message: str  # regular expression that the error line must contain, after `Place.blank`
    make: Callable[[Place], None] | None = None  # makes the bad input in `Place.tmp`
    leaves: str | None = None  # regular expression of the files below TMP that the command may add
    real: bool = False  # also run as a process of its own: one case for each script

    @property
    def command(self) -> str:
        return re.sub(r"\{(TMP|DATA|NETWORK)\}", r"\1", " ".join([f"{self.script}.py", *self.argv]))


@dataclass(frozen=True)
class Answer:
    """What a command that failed said and did."""

    exit_code: int
    stderr: str


def run_in_process(case: Case, place: Place) -> Answer:
    """Through click's test runner. An exception that click does not turn into a line is raised."""
    result = CliRunner().invoke(importlib.import_module(case.script).main, [place.fill(a) for a in case.argv])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stderr)


def run_as_process(case: Case, place: Place) -> Answer:
    command = [sys.executable, str(ROOT / f"{case.script}.py"), *(place.fill(a) for a in case.argv)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place.tmp, env=environment, capture_output=True, text=True, timeout=900)
    return Answer(done.returncode, done.stderr)


def check(case: Case, place: Place, run: Callable[[Case, Place], Answer]) -> str:
    """Makes the input, runs the command, and returns its error line without the test's paths.

    Asserts what holds for all: a failing exit code, one error line as the last one, no traceback, the expected words,
    and that what was there before is there unchanged, with nothing beside it.
    """
    if case.make is not None:
        case.make(place)
    before = _contents(place.tmp)
    answer = run(case, place)
    assert answer.exit_code in (1, 2), f"{case.command}: exit code {answer.exit_code}, said {answer.stderr!r}"
    assert "Traceback" not in answer.stderr, answer.stderr
    lines = [line for line in answer.stderr.split("\n") if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], f"{case.command}: not one line at the end: {answer.stderr!r}"
    line = place.blank(errors[0].removeprefix("Error: ")).strip()
    assert len(line) <= LONGEST_MESSAGE, f"{case.command}: {len(line)} characters: {line}"
    assert re.search(case.message, line), f"{case.command}: {line!r} lacks {case.message!r}"
    assert not re.search(INTERNALS, line), f"{case.command}: {line!r} is the language of Python or of a library"
    assert _says_where(case, line), f"{case.command}: {line!r} names no option, no argument and no file"
    after = _contents(place.tmp)
    changed = [name for name, content in before.items() if after.get(name) != content]
    assert not changed, f"{case.command}: changed or removed {changed}"
    added = [n for n in sorted(after.keys() - before.keys()) if not (case.leaves and re.fullmatch(case.leaves, n))]
    assert not added, f"{case.command}: left {added}"
    return line


def _says_where(case: Case, line: str) -> bool:
    """Whether the line names an option, an argument or a file: the user may have given many."""
    words = [word for argument in case.argv for word in argument.rsplit("=", 1)[-1].split(",") if word[:1] != "{"]
    return re.search(r"--[a-z]|\b(TMP|DATA|NETWORK)\b", line) is not None or any(word in line for word in words if word)


def empty(folder: Path) -> Path:
    """`folder`, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _contents(folder: Path) -> dict[str, str]:
    """Of every entry below `folder`, by its relative path: what kind it is, and of a file the hash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found
