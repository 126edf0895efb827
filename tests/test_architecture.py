"""Tests the import directions of docs/design.md, what each package may do without, and the sizes of files."""

import subprocess
import sys

import pytest

from dnnlib import ROOT
from docs import sizes
from tests.imports import EMPTY, PACKAGES, imported_modules, inner_violations, module_of, ours, room_of, violations


def test_imports_run_one_way():
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found += violations(path, package, path.relative_to(ROOT).as_posix())
    assert found == []


def test_the_rooms_of_training_stand_on_each_other():
    found = []
    for path in sorted((ROOT / "training").rglob("*.py")):
        module = module_of(path, ROOT)
        if module not in EMPTY:
            found += inner_violations(path, module)
        else:
            assert ours(path) == set(), f"{path}: this __init__.py imports nothing"
    assert found == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("gaussian", "from training.families.cgs.generator import Generator"),
        ("gaussian", "def f():\n    import training"),
        ("gaussian", "if TYPE_CHECKING:\n    from training.images import mirror"),
        ("metrics", "from training import checkpoint"),
        ("metrics", "from training.training_loop import train"),
        ("training", "import metrics"),
        ("training", "from metrics import compute_metric"),
        ("dnnlib", "import torch_utils.random"),
    ],
)
def test_the_check_finds_a_wrong_import(tmp_path, package, line):
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    assert len(violations(path, package, f"{package}/module.py")) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("training.families.eg3d.generator", "from training.families.cgs.color import Color"),
        ("training.families.eg3d.objective", "from training.config import TrainingConfig"),
        ("training.families.eg3d.objective", "from training.step import GanStep"),
        ("training.families.eg3d.objective", "if TYPE_CHECKING:\n    from training import step"),
        ("training.families.eg3d.family", "from training.families import register"),
        ("training.families.base", "from training.families.cgs.family import FAMILY"),
        ("training.families.pigan.generator", "from training.families.cgof.morphable import Face"),
        ("training.networks.base", "from training.families.base import Generator"),
        ("training.networks.layers", "from training.published.discriminator import to_ours"),
        ("training.images", "from training.records import Record"),
        ("training.samples", "from training.config import TrainingConfig"),
        ("training.step", "from training.dataset import ImageDataset"),
        ("training.checkpoint", "def f():\n    from training.runs import resume"),
        ("training.runs.monitor", "from training.safety.alarms import Collapsed"),
        ("training.safety.watchdog", "import training.training_loop"),
        ("training.measure", "from training import replay"),
    ],
)
def test_the_check_finds_an_import_that_runs_upwards(tmp_path, module, line):
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    assert inner_violations(path, module)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("training.families.eg3d.generator", "from training.families.eg3d.decoder import Decoder"),
        ("training.families.eg3d.generator", "from training.families import base"),
        ("training.families.eg3d.generator", "from training import losses"),
        ("training.families.cgof.generator", "from training.families.pigan.generator import Generator"),
        ("training.families", "from training.families.cgs.family import FAMILY"),
        ("training.runs.monitor", "from training.runs import resume"),
        ("training.checkpoint", "from training.published.records import is_published"),
    ],
)
def test_the_check_allows_imports_that_run_down(tmp_path, module, line):
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    assert inner_violations(path, module) == []


def test_a_room_without_a_place_is_refused():
    with pytest.raises(AssertionError, match="has no place"):
        room_of("training.attic.boxes")


def test_the_check_allows_a_right_one(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "from training import dataset\nfrom training.dataset import quantize\nfrom gaussian import render\n"
    )
    assert violations(path, "metrics", "metrics/module.py") == []


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("gaussian", ("training", "metrics", "click", "matplotlib", "gsplat", "tqdm")),
        ("dnnlib", ("torch", "numpy")),
        ("metrics", ("matplotlib", "click", "training.training_loop", "training.families", "training.checkpoint")),
        ("training.training_loop", ("tensorboard", "wandb", "click", "metrics")),
    ],
)
def test_a_package_imports_without(package, absent):
    """Each in a process where the import of what it may not need fails."""
    code = f"import sys\nfor name in {absent!r}: sys.modules[name] = None\nimport {package}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr


def test_scripts_do_not_import_each_other():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for path in ROOT.glob("*.py"):
        assert not scripts & {name.split(".")[0] for name in imported_modules(path)}, path.name


# ---------------------------------------------------------------- sizes


def test_files_and_functions_fit_in_a_head():
    """docs/design.md asks for files that can be read at a sitting, and for types."""
    assert sizes.count(sizes.sources()).over() == []


def test_the_counts_see_what_is_over(tmp_path):
    path = tmp_path / "long.py"
    body = "\n".join("    x = 1" for _ in range(sizes.FUNCTION_LINES))
    path.write_text(f"class A:\n    def f(self, a, *b, c: int, **d): pass\n\ndef g(a: int):\n{body}\n" + "\n" * 400)
    found = sizes.count([path], tmp_path)
    assert found.parameters == 5 and len(found.bare) == 3 and found.annotated_share == 0.4
    lines = found.over()
    assert len(lines) == 5 and "long.py:4 g: 61 lines, at most 60" in lines
    assert sum("at most 400" in line for line in lines) == 1
