"""The import directions of docs/design.md, read from the source, and what each package may do without.

Imports in functions and those for type checkers alone count as well.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib import ROOT
from docs import sizes

PACKAGES = sizes.PACKAGES

# Package -> the packages, or rooms of them, that it may import besides itself.
LEGAL = {
    "dnnlib": set(),
    "torch_utils": {"dnnlib"},
    "gaussian": {"dnnlib", "torch_utils"},
    "training": {"dnnlib", "torch_utils", "gaussian"},
    "metrics": {
        "dnnlib", "torch_utils", "gaussian",
        "training.dataset", "training.images", "training.measure",
    },
}  # fmt: skip

# The rooms of training/, lowest first. A module imports its own room and those on earlier lines. Names without a module
# yet keep the places of rooms to come.
FLOORS = (
    ("records", "images", "losses", "augment", "data", "published.restricted_pickle", "published.state_dicts"),
    ("networks", "published.pickle_file"),
    ("fields", "published.discriminator"),
    ("samples",),
    ("families.inspection",),
    ("families.base",),
    ("families.options", "families.adversarial"),
    ("families.*",),  # a room for each family; one imports another only as FAMILY_PAIRS says
    ("families",),  # the registry: training/families/__init__.py alone
    ("config",),
    ("presets",),
    ("dataset", "step"),
    ("visualization",),
    ("published.records",),
    ("checkpoint",),
    ("runs",),
    ("safety",),
    ("training_loop",),
    ("measure", "replay", "inversion", "viewer"),
)
FAMILY_PAIRS = {("cgof", "pigan")}
EMPTY = {"training", "training.published"}  # packages whose __init__.py imports nothing


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


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


def ours(path: Path) -> set[str]:
    """What a file imports of our packages, as far as modules go: `from training import dataset` is training.dataset."""
    names = {name for name in imported_modules(path) if name.split(".")[0] in PACKAGES}
    modules = {name for name in names if _exists(name)}
    kept = {name for name in modules if not any(other.startswith(name + ".") for other in modules)}
    return kept | {name for name in names - modules if not any(name.startswith(m + ".") for m in modules)}


def _exists(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def violations(path: Path, package: str, relative: str) -> list[str]:
    legal = LEGAL[package] | {package}

    def allowed(name: str) -> bool:
        return any(name == room or name.startswith(room + ".") for room in legal)

    return [f"{relative} imports {name}" for name in sorted(ours(path)) if not allowed(name)]


# ---------------------------------------------------------------- rooms of training/


def room_of(module: str) -> tuple[int, str]:
    """The floor of a module of training/, and the name of its room. Fails for one that has no place."""
    name = module.removeprefix("training.")
    parts = name.split(".")
    if parts[0] == "families" and len(parts) > 1:
        special = ".".join(parts[:2])
        family = special not in {room for floor in FLOORS for room in floor}
        return _floor("families.*" if family else special), special
    for length in (2, 1):  # a longer name beats a shorter one
        room = ".".join(parts[:length])
        if (floor := _floor(room)) >= 0:
            return floor, room
    raise AssertionError(f"{module} has no place in the order of docs/design.md")


def _floor(room: str) -> int:
    return next((i for i, floor in enumerate(FLOORS) if room in floor), -1)


def upward(module: str, imported: str) -> bool:
    """Whether an import of one module of training/ by another runs against the order."""
    if imported in EMPTY:
        return False
    (floor, room), (below, other) = room_of(module), room_of(imported)
    pair = (room.removeprefix("families."), other.removeprefix("families."))
    return room != other and below >= floor and pair not in FAMILY_PAIRS


def inner_violations(path: Path, module: str) -> list[str]:
    found = sorted(name for name in ours(path) if name.split(".")[0] == "training")
    return [f"{module} imports {name}" for name in found if upward(module, name)]


# ---------------------------------------------------------------- tests


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
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
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
