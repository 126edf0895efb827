"""The driver of everything that waits for a GPU: its processes, its files, and a trial of every part on the CPU."""

import json
import os
import subprocess
import sys

from click.testing import CliRunner

from benchmarks import gpu
from dnnlib import ROOT

WRONG = """
from benchmarks import gpu
gpu.PARTS = tuple(gpu.Part(n, "tests.benchmarks.parts", 900.0, "") for n in
                  ("raises", "dies", "hangs", "well", "talks"))
left = gpu.Job.left

def shorter(job):
    # The part that hangs has no time any more when it has started what it waits for.
    sleeper = job.out / "sleeper"
    return 0.0 if job.part == "hangs" and sleeper.exists() and sleeper.stat().st_size else left(job)

gpu.Job.left = shorter
gpu.main(["--device=cpu", "--out={out}", "--parts=raises,dies,hangs,well,talks", "--seconds=9000"])
"""
SLOWLY = """
import dataclasses
from benchmarks import gpu
gpu.PARTS = tuple(dataclasses.replace(part, seconds=20 * part.seconds) for part in gpu.PARTS)
gpu.main(["--out={out}", "--device=cpu", "--preset=micro", "--seconds=20000"])
"""


def alive(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe") != ""
    except OSError:
        return False


def test_a_part_that_goes_wrong_stops_no_other(tmp_path):
    code = WRONG.format(out=tmp_path / "out")
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    records = gpu.results(tmp_path / "out")
    ended = {r["part"]: r["ended"] for r in records if "ended" in r}
    assert ended == {
        "raises": "ended with status 1",
        "dies": "ended with status -6",
        "hangs": "was stopped at its limit",
    }
    assert records[0]["text"] == "piece: ZeroDivisionError: division by zero"
    assert any(r.get("answer") == 42 for r in records) and ran.returncode == 3
    assert "a part that raises" in (tmp_path / "out" / "log.txt").read_text()
    assert not alive(int((tmp_path / "out" / "sleeper").read_text()))  # what a part starts ends with it
    summary = ran.stdout[ran.stdout.index("== summary") :].splitlines()
    assert len(summary) == gpu.SUMMARY_LINES and "not whole: raises, dies, hangs" in summary[-1]


def test_every_part_runs_on_a_cpu(tmp_path):
    """All that a GPU would be asked, in small; what only a GPU has is left out."""
    code = SLOWLY.format(out=tmp_path)
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fakes.png", "log.txt", "results.jsonl"]
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {r["part"] for r in records} == {part.name for part in gpu.PARTS}
    assert not [r for r in records if r.get("failed")]
    summary = ran.stdout[ran.stdout.index("== summary") :].splitlines()
    assert len(summary) <= gpu.SUMMARY_LINES and summary[-1].endswith("all parts ended well")
    assert any("ours takes" in line for line in summary)


def test_what_is_listed_fits_into_a_call():
    assert sum(part.seconds for part in gpu.PARTS) == 665
    listed = CliRunner().invoke(gpu.main, ["--list"]).output
    assert [line.split(" ")[0] for line in listed.splitlines()] == [part.name for part in gpu.PARTS]
