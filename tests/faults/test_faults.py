"""Real training processes that are killed, in short; benchmarks/soak.py is the long version."""

import json
import socket

from benchmarks.soak import Run, different, kill_at_random, kill_one_rank
from tests.faults.runs import FLAGS, RUN, EndlessRun, ForkedRun


def test_killed_at_random_it_ends_bit_equal(data, tmp_path):
    """Three kills, the last while it writes."""
    endless = {**RUN, "kimg": 1000}
    killed = EndlessRun(data, tmp_path / "killed", **endless, flags=FLAGS)
    figures = kill_at_random(killed, kills=3, spread_s=(0.0, 0.4))
    assert figures["kills"] == 3
    kimg = killed.end()["state"]["progress"]["nimg"] / 1000
    whole = ForkedRun(data, tmp_path / "whole", **{**RUN, "kimg": kimg}, flags=FLAGS)
    whole.finish()
    assert different(whole.end(), killed.end()) == []
    assert (killed.folder() / "resumes.jsonl").read_text().count("\n") >= 3  # in one folder, from its own states


def test_a_killed_rank_is_named_and_the_restarted_run_ends_bit_equal(data, two_ranks, tmp_path):
    """Under the elastic launcher the run completes by itself. States are written after each step."""
    killed = Run(data, tmp_path / "killed", **{**RUN, "state_minutes": 0}, flags=(*FLAGS, "--max-restarts=1"))
    figures = kill_one_rank(killed, after_s=0.0)
    assert figures["status"] == 0, figures
    assert any(f"rank 0 of 2 on {socket.gethostname()}: " in line for line in figures["lines"]), figures
    named = f"Error: rank 1 of 2 on {socket.gethostname()} (process "
    assert any(line.startswith(named) and "was ended by SIGKILL" in line for line in figures["lines"]), figures
    assert "Restart 1 of 1 from the latest state" in figures["lines"]
    assert different(two_ranks.end(), killed.end()) == []
    lines = (killed.folder() / "resumes.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["ranks"] == 2
