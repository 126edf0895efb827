"""A run that was stopped, killed or starved goes on as if nothing had happened. One whole run serves all tests."""

import contextlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import train
from training import checkpoint, resume
from training.requests import EXIT_STOPPED
from training.step import GanStep
from training.synthetic import synthesize_heads

COMMON = ["--kimg=0.08", "--tick=0.032", "--batch=8", "--batch-gpu=8", "--network-snap=1", "--img-snap=9",
          "--device=cpu", "--precision=fp32", "--no-validate", "--metrics=none", "--workers=0"]  # fmt: skip
KILLED_IN_STEP = 6  # the run has 10 steps and ticks after 1, 5, 9 and 10


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    synthesize_heads(root / "set", 24, 32, seed=0)
    return root / "set" / "32"


def run(heads, outdir, *arguments, code=0):
    result = CliRunner().invoke(train.main, [f"--data={heads}", f"--outdir={outdir}", *COMMON, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def whole(heads, tmp_path_factory):
    outdir = tmp_path_factory.mktemp("whole")
    run(heads, outdir)
    return outdir / "00000-micro"


def final(run_dir):
    return checkpoint.load_checkpoint(sorted(run_dir.glob("network-snapshot-000000_00000080.pkl"))[0])


def assert_equal(run_dir, whole):
    """Weights, averages, optimisers, pictures' grid and every line of statistics are bit-equal."""
    one, other = final(run_dir), final(whole)
    for key in ("G", "D", "G_ema", "opt", "grid", "best"):
        assert checkpoint.checksum({key: one[key]}) == checkpoint.checksum({key: other[key]}), key
    assert statistics(run_dir) == statistics(whole)
    assert (run_dir / "fakes000000.png").read_bytes() == (whole / "fakes000000.png").read_bytes()


def statistics(run_dir):
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert all(line.pop("timing") for line in lines)
    return lines


def at_step(monkeypatch, step, act):
    """Calls `act` at the start of step `step`."""
    original = GanStep.run

    def spy(self, number, *rest):
        if number == step:
            act()
        return original(self, number, *rest)

    monkeypatch.setattr(GanStep, "run", spy)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_the_run_goes_on_bit_equal(heads, whole, tmp_path, monkeypatch, number):
    """Mid-tick: the statistics of the tick so far are part of the state."""
    with monkeypatch.context() as patch:
        at_step(patch, KILLED_IN_STEP, lambda: os.kill(os.getpid(), number))
        output = run(heads, tmp_path, "--resume=latest", code=EXIT_STOPPED)
    assert "no run called micro" in output and f"stopped after step {KILLED_IN_STEP + 1}" in output
    run_dir = tmp_path / "00000-micro"
    with open(run_dir / "stats.jsonl", "a") as file:
        file.write('{"half a li')  # what a kill can leave
    (run_dir / f".x{checkpoint._PARTIAL}").write_text("")
    output = run(heads, run_dir if number == signal.SIGINT else tmp_path, "--resume=latest")
    assert f"at 0.056 kimg, step {KILLED_IN_STEP + 1}" in output
    assert [p.name for p in tmp_path.iterdir()] == [run_dir.name] and not list(run_dir.glob(".x*"))
    assert_equal(run_dir, whole)
    assert (run_dir / "log.txt").read_text().count("tick 1 ") == 1
    assert json.loads((run_dir / "resumes.jsonl").read_text())["nimg"] == 56


def test_a_kill_costs_what_came_after_the_last_state(heads, whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        """Like SIGKILL: nothing of the program gets to run."""

    def die():
        raise Killed

    for step in (3, 7):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            at_step(patch, step, die)
            run(heads, tmp_path, "--resume=latest", "--state-minutes=0")
    assert_equal_after = run(heads, tmp_path, "--resume=latest")
    assert "step 7" in assert_equal_after
    assert_equal(tmp_path / "00000-micro", whole)


def test_damaged_files_are_skipped_and_named(whole, tmp_path):
    run_dir = shutil.copytree(whole, tmp_path / "00000-micro")
    newest = run_dir / "network-snapshot-000000_00000080.pkl"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (run_dir / checkpoint.STATE_NAME).write_bytes(content[:1000])
    path, state, skipped = resume.newest_checkpoint(run_dir)
    assert path.name == "network-snapshot-000000_00000072.pkl" and state["progress"]["nimg"] == 72
    assert len(skipped) == 2 and "00000080.pkl: damaged" in skipped[1] and "state-latest.pkl" in skipped[0]
    assert resume.newest_run(tmp_path, "micro") == run_dir == resume.newest_run(run_dir, "other")
    assert resume.newest_run(tmp_path, "mic") is None


def test_a_file_goes_on_in_a_new_folder_with_changes_listed_and_recorded(heads, whole, tmp_path):
    source = whole / "network-snapshot-000000_00000072.pkl"
    output = run(heads, tmp_path, f"--resume={source}", "--gamma=3")
    run_dir = tmp_path / "00000-micro"
    assert "Changed     gamma: 2.0 -> 3.0" in output
    assert json.loads((run_dir / "resumes.jsonl").read_text())["changed"] == ["gamma: 2.0 -> 3.0"]
    assert json.loads((run_dir / "training_options.json").read_text())["gamma"] == 3.0
    assert [line["nimg"] for line in statistics(run_dir)] == [80]


def test_what_cannot_change_is_refused(heads, whole, tmp_path):
    source = whole / "network-snapshot-000000_00000072.pkl"
    for arguments, line in [
        (["--map-depth=4"], "its generator cannot become another one (map_depth"),
        (["--preset=tiny"], "--preset=tiny is for 64 px"),
    ]:
        assert line in run(heads, tmp_path, f"--resume={source}", *arguments, code=1)
    synthesize_heads(tmp_path / "other", 24, 32, seed=1)
    output = run(tmp_path / "other" / "32", tmp_path / "runs", f"--resume={source}", code=1)
    assert "has seen other data (other labels)" in output and not (tmp_path / "runs").exists()


def test_a_change_of_threads_is_announced(whole):
    start = resume.Start(whole, Path("x.pkl"), final(whole))
    torch.set_num_threads(start.state["progress"]["threads"] + 1)
    assert any("no longer bit-equal" in line for line in resume.describe(start, start.config))


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    held = resume.lock(tmp_path)
    with pytest.raises(ValueError, match="another process trains in this folder"):
        resume.lock(tmp_path)
    held.close()
    resume.lock(tmp_path).close()


@pytest.mark.parametrize("fault", ["full", "partial", "read-only"])
def test_a_disk_that_refuses_costs_the_snapshot_and_not_the_run(heads, whole, tmp_path, monkeypatch, fault):
    """Full before it starts, full while it writes, and a folder in which no file can be made."""
    real_fsync, real_usage, real_temporary = os.fsync, shutil.disk_usage, checkpoint.tempfile.mkstemp

    def refuse(*_, **__):
        raise OSError(30 if fault == "read-only" else 28, "Read-only file system" if fault == "read-only" else "full")

    def break_disk():
        if fault == "full":
            monkeypatch.setattr(shutil, "disk_usage", lambda path: real_usage(path)._replace(free=1000))
        elif fault == "partial":
            monkeypatch.setattr(os, "fsync", refuse)
        else:
            monkeypatch.setattr(checkpoint.tempfile, "mkstemp", refuse)

    def mend_disk():
        monkeypatch.setattr(shutil, "disk_usage", real_usage)
        monkeypatch.setattr(os, "fsync", real_fsync)
        monkeypatch.setattr(checkpoint.tempfile, "mkstemp", real_temporary)

    original = GanStep.run

    def spy(self, number, *rest):
        {3: break_disk, 7: mend_disk}.get(number, lambda: None)()
        return original(self, number, *rest)

    monkeypatch.setattr(GanStep, "run", spy)
    output = run(heads, tmp_path)
    run_dir = tmp_path / "00000-micro"
    assert output.count("Warning: network-snapshot-000000_00000040.pkl not written") == 1
    names = {p.name for p in run_dir.glob("*.pkl")}
    assert names == {p.name for p in whole.glob("*.pkl")} - {"network-snapshot-000000_00000040.pkl"}
    checkpoint.load_checkpoint(run_dir / "network-snapshot-000000.pkl")
    assert_equal(run_dir, whole)
    assert not list(run_dir.glob(f".*{checkpoint._PARTIAL}"))


def test_a_nan_is_named_in_its_step_and_replayed(heads, tmp_path, monkeypatch):
    """A NaN in one parameter's gradient from a sample on: the replayed step has the same weights and images."""
    original = GanStep.accumulate_D

    def spoiled(self, micro, sigma):
        original(self, micro, sigma)
        if micro.indices.start >= 32:
            dict(self.D.named_parameters())["b4.fc.weight"].grad[0, 0] = torch.nan
        seen.append((micro.indices, checkpoint.checksum({"D": self.D.state_dict(), "real": micro.real})))

    seen = []
    monkeypatch.setattr(GanStep, "accumulate_D", spoiled)
    output = run(heads, tmp_path, "--max-bad-steps=3", code=1)
    named = re.findall(r"step (\d+), phase D: not finite: (.*); skipped \((\d) in a row", output)
    assert named == [(str(n), "b4.fc.weight, norm over all", str(n - 3)) for n in (4, 5, 6)]
    assert "--replay=" in output and seen[-1][0] == range(48, 56)
    run_dir = tmp_path / "00000-micro"
    record = json.loads((run_dir / "diagnosis.json").read_text())
    assert record["step"] == 6 and record["phase"] == "D" and record["tensors"] == ["b4.fc.weight", "norm over all"]
    assert len(record["items"]) == 8 and record["ticks"]
    last = seen[-1]
    result = CliRunner().invoke(train.main, [f"--replay={run_dir / 'diagnosis.json'}"])
    assert result.exit_code == 0 and "The same tensors as in the run" in result.output, result.output
    assert seen[-1] == last  # the same weights and the same images to the bit
    monkeypatch.setattr(GanStep, "accumulate_D", original)
    result = CliRunner().invoke(train.main, [f"--replay={run_dir / 'diagnosis.json'}"])
    assert result.exit_code == 1 and "Everything is finite this time" in result.output


def test_a_bug_keeps_its_traceback_and_debug_shows_all(heads, whole, tmp_path, monkeypatch):
    def bug(*_):
        raise ValueError("shapes do not match")

    with pytest.raises(ValueError, match="unknown preset"):
        run(heads, tmp_path, "--preset=huge", "--debug")
    monkeypatch.setattr(GanStep, "run", bug)
    with pytest.raises(RuntimeError, match="a bug in SplatGAN"), contextlib.chdir(tmp_path):
        run(heads, tmp_path)
