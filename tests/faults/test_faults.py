"""Real training processes that are killed, in short; benchmarks/soak.py is the long version."""

import json
import os
import socket

import pytest

from benchmarks.soak import Run, different, kill_at_random, kill_one_rank
from training.data.synthetic.synthesize import synthesize_heads

# 20 steps; a state every 0.3 s.
RUN = {"preset": "micro", "kimg": 0.16, "state_minutes": 0.005}
FLAGS = ("--batch=8", "--batch-gpu=4", "--tick=0.04", "--precision=fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("faults") / "heads", 16, 32, seed=0, workers=1).images


@pytest.fixture(autouse=True)
def one_core():
    """Processes started here train with one thread each: two that spin on shared cores are many times slower."""
    before = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(before)[worker % len(before)]})
    yield
    os.sched_setaffinity(0, before)


def test_killed_at_random_it_ends_bit_equal(data, tmp_path):
    """Three kills, the last while it writes."""
    whole, killed = (Run(data, tmp_path / name, **RUN, flags=FLAGS) for name in ("whole", "killed"))
    whole.finish()
    figures = kill_at_random(killed, kills=3, spread_s=(0.0, 0.4))
    assert figures["kills"] == 3
    assert different(whole.end(), killed.end()) == []
    assert (killed.folder() / "resumes.jsonl").read_text().count("\n") >= 3  # in one folder, from its own states


def test_a_killed_rank_is_named_and_the_restarted_run_ends_bit_equal(data, tmp_path):
    """Under the elastic launcher the run completes by itself."""
    whole = Run(data, tmp_path / "whole", **RUN, flags=(*FLAGS, "--gpus=2"))
    killed = Run(data, tmp_path / "killed", **RUN, flags=(*FLAGS, "--max-restarts=1"))
    whole.finish()
    figures = kill_one_rank(killed, after_s=0.5)
    assert figures["status"] == 0, figures
    assert any(f"rank 0 of 2 on {socket.gethostname()}: " in line for line in figures["lines"]), figures
    named = f"Error: rank 1 of 2 on {socket.gethostname()} (process "
    assert any(line.startswith(named) and "was ended by SIGKILL" in line for line in figures["lines"]), figures
    assert "Restart 1 of 1 from the latest state" in figures["lines"]
    assert different(whole.end(), killed.end()) == []
    lines = (killed.folder() / "resumes.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["ranks"] == 2
