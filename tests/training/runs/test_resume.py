"""A run that was stopped, killed or starved goes on as if nothing had happened. One whole run serves all tests."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import metrics
import train
from tests.families.runs import keep_small
from tests.torch_utils.ranks import run_ranks
from torch_utils import distributed
from training import checkpoint, dataset, training_loop
from training.data.synthetic.synthesize import synthesize_heads
from training.runs import launch, resume
from training.runs.loggers import StatsLogger
from training.safety import alarms, run_state
from training.safety.requests import EXIT_STOPPED, Stopped
from training.step import GanStep

COMMON = ["--kimg=0.08", "--tick=0.032", "--batch=8", "--batch-gpu=8", "--network-snap=1", "--img-snap=9",
          "--device=cpu", "--precision=fp32", "--no-validate", "--metrics=none", "--workers=0",
          "--gaussian-num-pts=64", "--cmax=16", "--map-depth=2"]  # fmt: skip
KILLED_IN_STEP = 6  # the run has 10 steps and ticks after 1, 5, 9 and 10


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        keep_small(patch)
        yield


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


def test_a_data_set_that_vanishes_costs_no_step(heads, whole, tmp_path, monkeypatch):
    data = shutil.copytree(heads.parent, tmp_path / "set") / heads.name
    monkeypatch.setattr(dataset, "memory_limit", lambda: 0)  # else this small set is in memory by then
    with monkeypatch.context() as patch:
        at_step(patch, KILLED_IN_STEP, lambda: data.rename(tmp_path / "away"))
        output = run(data, tmp_path / "runs", code=1)
    line = output.splitlines()[-1]
    assert line.startswith("Error: ") and "not found; was the set moved or deleted?" in line and ".png" in line
    run_dir = tmp_path / "runs" / "00000-micro"
    # The batch was missed LOOK_AHEAD steps before its own, and that step was finished.
    assert checkpoint.load_checkpoint(run_dir / checkpoint.STATE_NAME)["progress"]["step"] == KILLED_IN_STEP + 2
    (tmp_path / "away").rename(data)
    run(data, tmp_path / "runs", "--resume=latest")
    assert_equal(run_dir, whole)


def test_an_error_between_steps_costs_no_step(heads, tmp_path, monkeypatch):
    def fail(*_):
        raise BrokenPipeError(errno.EPIPE, "nobody reads this any more")

    monkeypatch.setattr(training_loop.monitor, "print_status", fail)
    assert "nobody reads" in run(heads, tmp_path, "--kimg=0.008", code=1)
    state = checkpoint.load_checkpoint(tmp_path / "00000-micro" / checkpoint.STATE_NAME)
    assert state["progress"]["step"] == 1


def test_a_signal_during_metrics_stops_at_once(heads, tmp_path, monkeypatch):
    """The state is from before them; a resumed run measures anew."""
    measured = []

    def measure(name, *_, **__):
        measured.append(name)
        if len(measured) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(900)
        raise metrics.MetricUnavailable("not today")

    monkeypatch.setattr("metrics.evaluator.compute_metric", measure)
    arguments = ("--kimg=0.008", "--metrics=swd1k", "--resume=latest")
    begun = time.monotonic()
    run(heads, tmp_path, *arguments, code=EXIT_STOPPED)
    assert time.monotonic() - begun < 600
    run_dir = tmp_path / "00000-micro"
    assert not list(run_dir.glob("network*.pkl")) and (run_dir / checkpoint.STATE_NAME).is_file()
    assert "swd1k left out: not today" in run(heads, tmp_path, *arguments)
    assert measured == ["swd1k"] * 2 and len(list(run_dir.glob("network*.pkl"))) == 1


def test_a_second_signal_ends_the_process_at_once():
    """With the code of that signal, and inside whatever is under way."""
    program = (
        "import os, signal, time\n"
        "from training.safety.requests import Requests\n"
        "with Requests(None, 15).listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('too far', flush=True)\n"
    )
    root = Path(train.__file__).parent
    environment = {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_RUN_ID"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT and done.stdout == "goes on\n", done
    assert "SIGTERM: finishing the step" in done.stderr


def test_collapse_stops_a_run_only_if_asked(heads, tmp_path, monkeypatch):
    always = alarms.Alarm("too good", "look again", {"Loss/D/real": (float("-inf"), float("inf"))})
    monkeypatch.setattr(alarms, "COMMON_ALARMS", (always,))
    monkeypatch.setattr(alarms, "IN_A_ROW", 2)
    arguments = ("--kimg=0.024", "--tick=0.008", "--keep=last:2")
    output = run(heads, tmp_path, *arguments)
    assert "Warning: too good for 2 ticks" in output
    removed = "network-snapshot-000000.pkl"
    assert f"Removed {removed}, which --keep does not want" in output
    names = sorted(p.name for p in (tmp_path / "00000-micro").glob("network*.pkl"))
    assert names == ["network-snapshot-000000_00000016.pkl", "network-snapshot-000000_00000024.pkl"]
    output = run(heads, tmp_path, *arguments, "--stop-on-collapse", code=1)
    assert "Error: too good for 2 ticks" in output and "stopped for --stop-on-collapse" in output
    state = checkpoint.load_checkpoint(tmp_path / "00001-micro" / checkpoint.STATE_NAME)
    assert state["progress"]["nimg"] == 16


def train_until_told(rank, heads, run_dir):
    """SIGTERM reaches rank 1 in its third step; then one number of its average changes."""
    data = dataset.ImageDataset(str(heads))
    config = launch.resolve_config(
        data, str(heads), 2, fields={"batch": 8, "batch_gpu": 4, "metrics": (), "total_kimg": 0.08}
    )
    trainer = training_loop.Trainer(config, training_loop.Options(run_dir, torch.device("cpu"), workers=0), data)
    original = GanStep.run

    def spy(self, number, *rest):
        if rank == 1 and number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *rest)

    GanStep.run = spy  # this process is a fork that ends here
    try:
        trainer.run()
        message = "not stopped"
    except Stopped as stopped:
        message = str(stopped)
    distributed.barrier()  # rank 0 writes
    state = run_dir / checkpoint.STATE_NAME
    written = state.stat().st_mtime_ns
    if rank == 1:
        with torch.no_grad():
            next(trainer.G_ema.parameters()).flatten()[0] += 1e-6
    try:
        trainer._save_state()
        refusal = "not refused"
    except run_state.RanksDiffer as differ:
        refusal = str(differ)
    distributed.barrier()
    return message, trainer.state.step, refusal, state.stat().st_mtime_ns == written


def test_ranks_stop_together_and_never_write_what_differs(heads, tmp_path):
    results = run_ranks(2, train_until_told, heads, tmp_path)
    assert all(isinstance(result, tuple) for result in results), results
    (message, step, refusal, unchanged), (told, *others) = results
    assert message.startswith("asked by another rank: stopped after step") and told.startswith("SIGTERM: stopped")
    assert step in (3, 4) and others == [step, refusal, unchanged] and unchanged
    name = next(iter(checkpoint.load_generator(tmp_path / checkpoint.STATE_NAME).state_dict()))
    assert f"rank 1 and rank 0 hold different G_ema.{name} after {step} steps; nothing was written" in refusal
    assert checkpoint.load_checkpoint(tmp_path / checkpoint.STATE_NAME)["progress"]["step"] == step


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
    assert "Changed     objective.gamma: 0.5 -> 3.0" in output
    assert json.loads((run_dir / "resumes.jsonl").read_text())["changed"] == ["objective.gamma: 0.5 -> 3.0"]
    assert json.loads((run_dir / "training_options.json").read_text())["objective"]["gamma"] == 3.0
    assert [line["nimg"] for line in statistics(run_dir)] == [80]


def test_what_cannot_change_is_refused(heads, whole, tmp_path):
    source = whole / "network-snapshot-000000_00000072.pkl"
    for arguments, line in [
        (["--map-depth=4"], "its generator cannot become another one (map_depth"),
        (["--preset=tiny"], "--preset=tiny: the run to be resumed has --preset=micro; leave it out"),
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


def test_a_disk_that_refuses_costs_the_file_and_not_the_run(heads, whole, tmp_path, monkeypatch):
    """Full before a state, full while it writes a snapshot, and a folder in which no file can be made for the next."""

    def refuse(code):
        def act(*_, **__):
            raise OSError(code, os.strerror(code))

        return act

    real_usage = shutil.disk_usage
    faults = {
        1: (shutil, "disk_usage", lambda path: real_usage(path)._replace(free=1000)),
        4: (os, "fsync", refuse(errno.ENOSPC)),
        8: (checkpoint.tempfile, "mkstemp", refuse(errno.EROFS)),
    }
    original = GanStep.run

    def spy(self, number, *rest):
        patch.undo()
        if number in faults:
            patch.setattr(*faults[number])
        return original(self, number, *rest)

    monkeypatch.setattr(GanStep, "run", spy)
    with pytest.MonkeyPatch.context() as patch:
        output = run(heads, tmp_path, "--state-minutes=0")
    run_dir = tmp_path / "00000-micro"
    for name, reason in [
        ("network-snapshot-000000_00000040.pkl", "No space left"),
        ("network-snapshot-000000_00000072.pkl", "Read-only"),
    ]:
        assert len(re.findall(rf"Warning: {name} not written \({reason}.*; training goes on", output)) == 1
    assert output.count(f"Warning: {checkpoint.STATE_NAME} not written") == 3
    assert {p.name[-12:] for p in run_dir.glob("network*.pkl")} == {"t-000000.pkl", "00000080.pkl"}
    checkpoint.load_checkpoint(run_dir / "network-snapshot-000000.pkl")
    assert_equal(run_dir, whole)
    assert not list(run_dir.glob(f".*{checkpoint._PARTIAL}"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if made.returncode:
        pytest.skip(f"mounting is not allowed: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_real_disk_that_fills_while_a_snapshot_is_written(heads, small_disk, monkeypatch):
    real_usage, filler = shutil.disk_usage, small_disk / "filler"
    calls = []

    def usage_then_full(path):
        """Room was found, and then somebody else takes it; before the next checkpoint it is free again."""
        filler.unlink(missing_ok=True)
        usage = real_usage(path)
        calls.append(usage.free)
        if len(calls) == 2:
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        return usage

    monkeypatch.setattr(shutil, "disk_usage", usage_then_full)
    output = run(heads, small_disk, "--kimg=0.024", "--tick=0.008")
    assert len(calls) == 3 and min(calls) > 1 << 20
    run_dir = small_disk / "00000-micro"
    assert "Warning: network-snapshot-000000_00000016.pkl not written" in output
    for name, nimg in (("network-snapshot-000000.pkl", 8), ("network-snapshot-000000_00000024.pkl", 24)):
        assert checkpoint.load_checkpoint(run_dir / name)["progress"]["nimg"] == nimg
    assert [line["nimg"] for line in statistics(run_dir)] == [8, 16, 24]
    assert [n for n in (0, 1, 2) if f"tick {n} " in (run_dir / "log.txt").read_text()] == [0, 1, 2]


def test_lines_of_statistics_wait_for_a_disk(tmp_path):
    """A limit on the size of files lets the system take a part of a line and refuse the rest."""
    resource = pytest.importorskip("resource")
    logger = StatsLogger(tmp_path)
    logger.write(1, 8, {"a": 1.0})
    before = (tmp_path / "stats.jsonl").read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        with pytest.warns(RuntimeWarning, match="stats.jsonl cannot be written .*; its lines are kept"):
            logger.write(2, 16, {"a": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "stats.jsonl").read_text() == before
    logger.write(3, 24, {"a": 3.0})
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["a"] for line in lines] == [1.0, 2.0, 3.0]


def test_a_nan_is_named_in_its_step_and_replayed(heads, tmp_path, monkeypatch):
    """A NaN in one parameter's gradient from a sample on: the replayed step has the same weights and images."""
    original = GanStep.accumulate

    def spoiled(self, phase, nimg, micro):
        original(self, phase, nimg, micro)
        if phase.name != "D":
            return
        if nimg >= 32:
            dict(phase.module.named_parameters())["b4.fc.weight"].grad[0, 0] = torch.nan
        real = torch.cat([part.real for part in micro])
        seen.append((nimg, checkpoint.checksum({"D": phase.module.state_dict(), "real": real})))

    seen = []
    monkeypatch.setattr(GanStep, "accumulate", spoiled)
    output = run(heads, tmp_path, "--max-bad-steps=3", code=1)
    named = re.findall(r"step (\d+), phase D: not finite: (.*); skipped \((\d) in a row", output)
    assert named == [(str(n), "b4.fc.weight, norm over all", str(n - 3)) for n in (4, 5, 6)]
    assert "--replay=" in output and seen[-1][0] == 48
    run_dir = tmp_path / "00000-micro"
    record = json.loads((run_dir / "diagnosis.json").read_text())
    assert record["step"] == 6 and record["phase"] == "D" and record["tensors"] == ["b4.fc.weight", "norm over all"]
    assert len(record["items"]) == 8 and record["ticks"]
    last = seen[-1]
    result = CliRunner().invoke(train.main, [f"--replay={run_dir / 'diagnosis.json'}"])
    assert result.exit_code == 0 and "The same tensors as in the run" in result.output, result.output
    assert seen[-1] == last  # the same weights and the same images to the bit
    monkeypatch.setattr(GanStep, "accumulate", original)
    result = CliRunner().invoke(train.main, [f"--replay={run_dir / 'diagnosis.json'}"])
    assert result.exit_code == 1 and "Everything is finite this time" in result.output


@pytest.mark.parametrize("order", [1, -1])
def test_debug_shows_the_traceback_of_a_replay_in_either_order(tmp_path, order):
    (tmp_path / "diagnosis.json").write_text("{}")
    arguments = [f"--replay={tmp_path / 'diagnosis.json'}", "--debug"][::order]
    result = CliRunner().invoke(train.main, arguments)
    assert isinstance(result.exception, ValueError) and "not a diagnosis" in str(result.exception)
    result = CliRunner().invoke(train.main, [a for a in arguments if a != "--debug"])
    assert result.exit_code == 1 and result.output.startswith("Error: ")


def test_a_bug_keeps_its_traceback_and_debug_shows_all(heads, whole, tmp_path, monkeypatch):
    def bug(*_):
        raise ValueError("shapes do not match")

    with pytest.raises(ValueError, match="unknown preset"):
        run(heads, tmp_path, "--preset=huge", "--debug")
    monkeypatch.setattr(GanStep, "run", bug)
    with pytest.raises(RuntimeError, match="a bug in SplatGAN"), contextlib.chdir(tmp_path):
        run(heads, tmp_path)
