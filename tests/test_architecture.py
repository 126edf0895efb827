"""The import directions of docs/design.md, read from the source, and what each package may do without."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib import ROOT

PACKAGES = ("dnnlib", "torch_utils", "gaussian", "training", "metrics")

# Package -> the packages of ours that it may import besides itself.
LEGAL = {
    "dnnlib": set(),
    "torch_utils": {"dnnlib"},
    "gaussian": {"dnnlib", "torch_utils"},
    "training": {"dnnlib", "torch_utils", "gaussian"},
    "metrics": {"dnnlib", "torch_utils", "gaussian", "training.dataset", "training.images"},
}
# The places inside training/ that measure.
MEASURES = {"training/training_loop.py", "training/measure.py"}


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(path: Path, package: str, relative: str) -> list[str]:
    legal = LEGAL[package] | {package} | ({"metrics"} if relative in MEASURES else set())

    def allowed(name: str) -> bool:
        return any(name == room or name.startswith(room + ".") for room in legal)

    names = imported_modules(path)
    ours = {name for name in names if name.split(".")[0] in PACKAGES}
    # `from training import dataset` names the package as well; the attribute decides.
    ours -= {name for name in ours if any(other.startswith(name + ".") for other in names)}
    return [f"{relative} imports {name}" for name in sorted(ours) if not allowed(name)]


def test_imports_run_one_way():
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            found += violations(path, package, path.relative_to(ROOT).as_posix())
    assert found == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("gaussian", "from training.families.cgs.generator import Generator"),
        ("gaussian", "def f():\n    import training"),
        ("metrics", "from training import checkpoint"),
        ("training", "import metrics"),
        ("dnnlib", "import torch_utils.random"),
    ],
)
def test_the_check_finds_a_wrong_import(tmp_path, package, line):
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    assert len(violations(path, package, f"{package}/module.py")) == 1


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
        ("metrics", ("matplotlib", "click", "training.training_loop", "training.families.cgs.generator")),
        ("training.training_loop", ("tensorboard", "wandb", "click")),
    ],
)
def test_a_package_imports_without(package, absent):
    """Each in a process where the import of what it may not need fails."""
    code = f"import sys\nfor name in {absent!r}: sys.modules[name] = None\nimport {package}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_scripts_do_not_import_each_other():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for path in ROOT.glob("*.py"):
        assert not scripts & {name.split(".")[0] for name in imported_modules(path)}, path.name


def test_files_fit_in_a_head():
    """docs/design.md asks for files that can be read at a sitting."""
    sources = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")] + list(ROOT.glob("*.py"))
    long = {p.relative_to(ROOT).as_posix(): n for p in sources if (n := len(p.read_text().splitlines())) > 450}
    assert long == {}
