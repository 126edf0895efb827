"""What pip installs: the wheel's content and how it runs, the ranges beside the pins; and what speaks of them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import dnnlib
from dnnlib import ROOT
from tests.slow import SLOW
from training.safety.rank_check import code_revision

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("dnnlib", "torch_utils", "gaussian", "training", "metrics")
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
COMMANDS = {
    "splatgan-train": "train:main",
    "splatgan-metrics": "calc_metrics:main",
    "splatgan-videos": "gen_videos:main",
    "splatgan-samples": "gen_samples:main",
    "splatgan-regressor": "fit_regressor:main",
    "splatgan-data": "dataset_tool:main",
    "splatgan-convert": "convert_checkpoint:main",
    "splatgan-report": "report:main",
    "splatgan-compare": "compare:main",
    "splatgan-mesh": "extract_mesh:main",
    "splatgan-view": "view:main",
    "splatgan-directions": "find_directions:main",
    "splatgan-invert": "invert:main",
    "splatgan-onnx": "export_onnx:main",
}
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.is_file() and path.suffix != ".pyc"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without network from a copy, so that the checkout stays clean and what it once built stays out."""
    copy, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "dnnlib", copy / "tests" / "dnnlib")  # one of the folders that stay out
    for name in (*SCRIPTS, "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--wheel-dir", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(copy)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = target.iterdir()
    return path


def test_wheel_holds_all_sources_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted([*SOURCES, *SCRIPTS])
    assert {"gaussian/csrc/splat.cpp", "gaussian/csrc/types.h", "training/data/csrc/unfilter.cpp"} <= set(names)
    assert {"torch_utils/csrc/pool.h", "torch_utils/csrc/edge_ops.cpp", "metrics/landmarks.npz"} <= set(names)
    assert {"training/fields/csrc/network.cpp", "training/fields/csrc/kernels.h"} <= set(names)
    assert "training/morphable/csrc/mesh.cpp" in names


def test_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as file:
        [place] = {name.split("/")[0] for name in file.namelist() if ".dist-info/" in name}
        facts = message_from_bytes(file.read(f"{place}/METADATA"))
        commands = dict(re.findall(r"^(\S+) = (\S+)$", file.read(f"{place}/entry_points.txt").decode(), re.MULTILINE))
    assert (facts["Name"], facts["Version"]) == ("splatgan", dnnlib.__version__)
    assert facts["License-Expression"] == "Apache-2.0"
    assert commands == COMMANDS


def test_wheel_runs_by_itself(wheel, tmp_path):
    """Unpacked, as pip does it, and from an empty folder: native code builds, and the ranks of a run may mix both."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site), "SPLATGAN_CACHE_DIR": str(tmp_path / "cache")}
    code = (
        "import dnnlib, train, gaussian.backend_cpu as native\n"
        "from training.safety.rank_check import code_revision\n"
        "print(dnnlib.ROOT, code_revision(), native.reason() or 'built')"
    )
    options = {"cwd": empty, "env": environment, "capture_output": True, "text": True, "timeout": 900}
    said = subprocess.run([sys.executable, "-c", code], **options)
    assert said.returncode == 0, said.stderr
    root, revision, built = said.stdout.split(maxsplit=2)
    assert (Path(root), revision) == (site.resolve(), code_revision())
    if shutil.which("c++") or shutil.which("g++"):
        assert built == "built\n"
    assert list(empty.iterdir()) == []


def test_commands_are_the_scripts():
    assert PROJECT["scripts"] == COMMANDS
    assert sorted(f"{target.partition(':')[0]}.py" for target in COMMANDS.values()) == SCRIPTS
    for name, target in COMMANDS.items():
        assert callable(EntryPoint(name, target, "console_scripts").load())


def test_pins_lie_within_the_ranges():
    pins = {}
    for name in ("requirements.txt", "requirements-dev.txt", "environment.yml"):
        pins |= dict(re.findall(r"^\s*(?:- )?([\w-]+)==([\w.]+)$", (ROOT / name).read_text(), re.MULTILINE))
    optional = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    ranges = {(r := Requirement(text)).name: r for text in [*PROJECT["dependencies"], *optional]}
    assert set(pins) <= set(ranges)
    for name, version in pins.items():
        assert ranges[name].specifier.contains(version), name
        assert not any(s.operator in ("==", "<", "<=") for s in ranges[name].specifier), name  # pins are elsewhere


def test_the_supported_pythons_are_named_alike():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    minors = [f"3.{minor}" for minor in range(6, 30) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])]
    assert named == minors
    matrix = re.search(r"python-version: \[(.*)\]", (ROOT / ".github" / "workflows" / "tests.yml").read_text())
    assert re.findall(r"[\d.]+", matrix[1]) == minors


@pytest.mark.parametrize("start", SLOW)
def test_slow_tests_exist(start):
    file, _, name = start.partition("::")
    assert (ROOT / file).exists()
    assert not name or f"def {name}" in (ROOT / file).read_text()
