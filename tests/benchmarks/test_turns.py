"""Lets two processes take turns over checkouts whose packages tell which one they are."""

import pytest

from benchmarks import turns
from dnnlib import ROOT

SCRIPT = """
import sys, time
from benchmarks import turns
import training
assert turns.is_worker() and sys.argv[1:] == ["--steps=2"]
turns.serve(lambda: time.sleep(0.6 if "older" in training.__file__ else 0.0))
"""


def checkout(folder):
    for name in ("benchmarks", "training"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("")
    return folder


def test_each_worker_imports_its_own_packages(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = turns.compare(str(script), ["--steps=2"], checkout(tmp_path / "older"), rounds=3)
    assert result["wall"]["other_s"] > 0.5 > result["wall"]["this_s"] and result["wall"]["ratio"] < 1
    turns.report(result, "sleep")
    assert "sleep, wall time: other" in capsys.readouterr().out


def test_a_worker_that_fails_and_a_folder_without_checkout_are_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(1)")
    with pytest.raises(ValueError, match="ended before its time"):
        turns.compare(str(script), [], ROOT, rounds=1)
    with pytest.raises(ValueError, match="holds no checkout"):
        turns.compare(str(script), [], tmp_path, rounds=1)
