"""Tests what the tests keep among themselves: what several of them share lives in modules that are no tests."""

from pathlib import Path

import pytest

from dnnlib import ROOT
from tests.imports import imported_modules


def borrowed(path: Path) -> list[str]:
    """What a file imports of tests and of conftests. Pytest hands out a conftest's fixtures; nobody imports it."""
    names = {part for name in imported_modules(path) if name.startswith("tests.") for part in name.split(".")}
    return sorted(name for name in names if name.startswith("test_") or name == "conftest")


def test_no_module_imports_a_test() -> None:
    files = [path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): borrowed(path) for path in files}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("from tests.test_readme import README", ["test_readme"]),
        ("from tests import test_readme", ["test_readme"]),
        ("import tests.metrics.conftest", ["conftest"]),
        ("def f():\n    from tests.faults import conftest, test_nodes", ["conftest", "test_nodes"]),
        ("from tests.metrics.toys import test_pattern", ["test_pattern"]),
        ("from tests.metrics.toys import ToyGenerator\nimport training.data", []),
    ],
)
def test_the_check_tells_them_apart(tmp_path: Path, line: str, names: list[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(line + "\n")
    assert borrowed(path) == names
