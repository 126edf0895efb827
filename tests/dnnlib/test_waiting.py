"""How OpenMP's threads wait: said before torch loads its runtime, unless the user said it."""

import ast
import os
import subprocess
import sys

import pytest

from dnnlib import ROOT
from dnnlib.waiting import ASKED, ENVIRONMENT

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
OURS = ("dnnlib", "torch", "torch_utils", "gaussian", "training", "metrics")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ASKED}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, cwd=ROOT, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_says_stands(own):
    printed = run(f"import dnnlib, os; print(*(os.environ.get(n) for n in {ASKED}))", **own)
    expected = own or ENVIRONMENT
    assert printed.stdout.split() == [str(expected.get(name)) for name in ASKED]


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's runtime")
@pytest.mark.parametrize("package", ["dnnlib", "benchmarks"])
def test_the_runtime_of_torch_obeys(package):
    told = run(f"import {package}, torch; torch.ones(9).sum()", OMP_DISPLAY_ENV="VERBOSE").stderr
    assert f"GOMP_SPINCOUNT = '{ENVIRONMENT['GOMP_SPINCOUNT']}'" in told


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_say_it_before_they_import_torch(script):
    tree = ast.parse((ROOT / script).read_text())
    names = [n.names[0].name if isinstance(n, ast.Import) else n.module or "" for n in tree.body if is_import(n)]
    assert next(name for name in names if name.split(".")[0] in OURS) == "dnnlib"


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)
