"""One version, and --version on every script."""

import importlib
import re
import subprocess
import sys
from importlib import metadata

import pytest
from click.testing import CliRunner

import dnnlib
from dnnlib import ROOT

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_its_version(script):
    result = CliRunner().invoke(importlib.import_module(script).main, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"SplatGAN \S+, PyTorch \d\S+, Python 3\.\d+\.\d+\n", result.output)
    assert f" {dnnlib.__version__}," in result.output


def test_pytorch_may_be_absent(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    result = CliRunner().invoke(importlib.import_module("report").main, ["--version"])
    assert result.output.startswith(f"SplatGAN {dnnlib.__version__}, no PyTorch, ")


def test_the_version_is_asked_for_without_pytorch():
    """dataset_tool.py answers in a process where torch cannot be imported."""
    code = "import sys; sys.modules['torch'] = None; import dataset_tool; dataset_tool.main(['--version'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("SplatGAN ")


def test_the_version_stands_in_one_place():
    numbers = re.compile(rf"\b{re.escape(dnnlib.__version__)}\b")
    files = [*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "CITATION.cff", *(ROOT / "dnnlib").glob("*.py")]
    named = [path.name for path in files if path.exists() and numbers.search(path.read_text())]
    assert named == ["version.py"]
