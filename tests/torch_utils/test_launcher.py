"""Tests starting ranks, the death of one, a stop by signal and a restart, with ranks that need no torch."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from dnnlib import ROOT
from torch_utils import launcher

RANK = """
import os, pathlib, signal, sys, time
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
def stop(number, frame):
    (folder / f"signal-{rank}").write_text(str(number))
    time.sleep(0.3)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(folder / f"{attempt}-{rank}").write_text(str(os.getpid()))
def wait():
    time.sleep(900)
if what == "kill" and rank == 1 and attempt == 0:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "always" and rank == 1:
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "error" and rank == 1:
    sys.exit("Error: a mistake")
if what == "lost":
    sys.exit(76) if rank == 0 else os.kill(os.getpid(), signal.SIGKILL)
if what in ("always", "error", "wait") or (what == "kill" and attempt == 0):
    wait()
"""


@pytest.fixture
def start(tmp_path, monkeypatch, capfd):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    monkeypatch.setattr(launcher, "_SURVIVORS", 0.5)

    def start(what, restarts=0):
        status = launcher.launch(2, [str(script), str(tmp_path), what], restarts)
        return status, capfd.readouterr().err

    return start


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_all_end_well(start, tmp_path):
    assert start("nothing") == (0, "")
    assert {p.name for p in tmp_path.iterdir()} == {"rank.py", "0-0", "0-1"}


def test_a_killed_rank_is_named_and_the_others_end(start, tmp_path):
    status, said = start("kill")
    assert status == 128 + 9
    assert re.fullmatch(
        rf"Error: rank 1 of 2 on {socket.gethostname()} \(process \d+\) was ended by SIGKILL; all ranks .*\n", said
    )
    assert gone(int((tmp_path / "0-0").read_text()))


def test_a_crash_is_restarted_and_an_error_is_not(start, tmp_path):
    status, said = start("kill", restarts=1)
    assert status == 0 and "Restart 1 of 1" in said and (tmp_path / "1-1").exists()
    status, said = start("always", restarts=2)
    assert status == 128 + 11 and said.count("was ended by SIGSEGV") == 3 and "Restart 2 of 2" in said
    status, said = start("error", restarts=2)
    assert status == 1 and "Restart" not in said and "rank 1 of 2" in said and "ended with exit code 1" in said


def test_the_killed_rank_is_the_cause_and_the_lost_collective_the_effect(start, monkeypatch):
    original = launcher._Ranks._start

    def start_and_wait(self, rank, attempt):
        """Lets both have ended when the launcher looks."""
        process = original(self, rank, attempt)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process

    monkeypatch.setattr(launcher._Ranks, "_start", start_and_wait)
    status, said = start("lost")
    assert status == 128 + 9 and "rank 1 of 2" in said


def test_a_stop_signal_is_passed_on_once_and_waited_for(tmp_path):
    """In a process of its own, since it gets a signal."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    arguments = [str(script), str(tmp_path), "wait"]
    launching = f"import sys; from torch_utils import launcher; sys.exit(launcher.launch(2, {arguments}))"
    process = subprocess.Popen([sys.executable, "-c", launching], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not all((tmp_path / f"0-{rank}").exists() for rank in (0, 1)):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 75 and said == ""
    assert (tmp_path / "signal-0").read_text() == (tmp_path / "signal-1").read_text() == str(int(signal.SIGTERM))


def test_the_wait_after_a_stop_signal_is_three_snapshots_long(tmp_path):
    ranks = launcher._Ranks(1, [], tmp_path, 0)
    assert ranks.grace() == launcher.LEAST_GRACE
    for rank, seconds in enumerate((40.0, 25.5)):
        (tmp_path / f"{launcher.SNAPSHOT_NOTE}.{rank}").write_text(repr(seconds))
    assert ranks.grace() == 120.0
