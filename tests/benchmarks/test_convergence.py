"""The sweep over objectives, settings and seeds: which runs, with which options, what counts as learnt."""

import json
import os
import sys

import pytest
from click.testing import CliRunner

from benchmarks import convergence
from benchmarks.convergence import OBJECTIVES, SETTINGS, VERDICT, Job, Pinned, Sweep, jobs, learnt, main, table
from training.data.synthetic.synthesize import synthesize_heads


def test_runs_are_every_combination_and_seeds_come_last():
    every = jobs([0, 3], "*")
    assert len({job.name for job in every}) == len(every) == 2 * len(OBJECTIVES) * len(SETTINGS)
    assert [job.seed for job in every] == [0] * 8 + [3] * 8  # what is cut short is a table of fewer seeds
    some = jobs([0, 1], "relativistic*-hostile-*, logistic-R1-normal-1")
    assert len(some) == 5 and Job("logistic+R1", "normal", 1) in some
    with pytest.raises(ValueError, match="--only=nothing: matches no run"):
        jobs([0], "nothing")


def test_options_of_a_run():
    """`micro` has a gamma of 0.5 and learning rates of 0.002."""
    assert Job("logistic+R1", "normal", 0).options("micro") == [
        "--objective=logistic", "--r1-gamma=0.5", "--r2-gamma=0", "--glr=0.002", "--dlr=0.002",
    ]  # fmt: skip
    assert Job("relativistic+R1+R2", "hostile", 0).options("micro") == [
        "--objective=relativistic", "--r1-gamma=0.05", "--r2-gamma=0.05", "--glr=0.008", "--dlr=0.008",
    ]  # fmt: skip


def test_what_counts_as_learnt():
    assert learnt({"way": 0.8, "diversity": 0.5})
    for bad in ({"way": 0.79}, {"diversity": 0.49}, {"way": float("nan")}):
        assert not learnt({"way": 0.9, "diversity": 0.9} | bad)
    assert not learnt({"diverged": True})


def run_folder(outdir, job, verdict=None, kimg=20.0):
    folder = outdir / f"00000-{job.name}"
    folder.mkdir(parents=True)
    options = {"preset": "micro", "total_kimg": kimg, "desc": job.name}
    (folder / "training_options.json").write_text(json.dumps(options))
    if verdict is not None:
        (folder / VERDICT).write_text(json.dumps(verdict))


def test_state_and_table_of_a_sweep(tmp_path):
    good, bad, gone, open_ = (Job("logistic+R1", "normal", seed) for seed in range(4))
    run_folder(tmp_path, good, {"way": 0.9, "diversity": 0.8})
    run_folder(tmp_path, bad, {"way": 0.5, "diversity": 0.9})
    run_folder(tmp_path, gone, {"diverged": True})
    run_folder(tmp_path, open_)
    sweep = Sweep(tmp_path, "micro", "", 20.0)
    states = [sweep.state(job) for job in (good, bad, gone, open_, Job("logistic+R1", "hostile", 0))]
    assert states == [
        "learnt: way 0.900, diversity 0.800", "FAILED: way 0.500, diversity 0.900", "diverged", "started", "to do",
    ]  # fmt: skip
    rows = [(job, sweep.verdict(job)) for job in (good, bad, gone)]
    assert "| logistic+R1 | 1 of 3 | 0.500 / 0.700 | 0.800 |" in table(rows)
    convergence.save_plot(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").stat().st_size > 5000
    listed = CliRunner().invoke(main, [f"--outdir={tmp_path}", "--list", "--seeds=0", "--only=logistic-R1-*"])
    assert listed.exit_code == 0 and "logistic-R1-normal-0: learnt: way 0.900" in listed.output
    assert "logistic-R1-hostile-0: to do" in listed.output
    other = CliRunner().invoke(main, [f"--outdir={tmp_path}", "--list", "--kimg=5"])
    assert other.exit_code == 1 and "was judged as micro after 20 kimg" in other.output


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins on Linux")
def test_a_process_gets_one_core_and_one_thread(tmp_path):
    core = max(os.sched_getaffinity(0))
    code = "import os, time; time.sleep(0.3); print(os.sched_getaffinity(0), os.environ['OMP_NUM_THREADS'])"
    pinned = Pinned()
    assert pinned.run([sys.executable, "-c", code], core, tmp_path / "log") == 0
    assert (tmp_path / "log").read_text().split() == [f"{{{core}}}", "1"]
    pinned.stop()
    assert pinned.run([sys.executable, "-c", code], core, tmp_path / "log") != 0  # nothing starts after a stop


def test_a_run_from_its_first_image_to_its_verdict(tmp_path):
    data = synthesize_heads(tmp_path / "heads", 40, 32, workers=1).images
    arguments = [f"--outdir={tmp_path / 'sweep'}", f"--data={data}", "--seeds=7", "--only=relativistic-R1-R2-hostile-*"]
    arguments += ["--kimg=0.064", f"--json={tmp_path / 'runs.json'}", f"--plot={tmp_path / 'plot.png'}"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (run,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert run["seed"] == 7 and run["converged"] is False and len(run["swd"]) == 2 and run["diversity"] >= 0
    made = json.loads((tmp_path / "sweep" / "00000-relativistic-R1-R2-hostile-7/training_options.json").read_text())
    assert made["g_lr"] == 0.008 and made["objective"]["loss"] == "relativistic"
    assert made["objective"]["gamma"] == made["objective"]["r2_gamma"] == 0.05
    before = result.output
    again = CliRunner().invoke(main, arguments)  # nothing is trained or judged twice
    assert again.output == before and len(list((tmp_path / "sweep").glob("00*"))) == 1
