"""The code on the pages: docs/api.md runs, docs/new-family.md shows the file that is tested, docs/design.md is true."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

import gaussian
from dnnlib import ROOT
from docs import interfaces
from tests.imports import FLOORS
from training.data.synthetic.synthesize import synthesize_heads
from training.morphable.model import read_model

# Promised: what docs/api.md must show at work.
PROMISED = {
    "gaussian": ("Gaussians", "Cameras", "Geometry", "Scene", "render", "save_ply", "load_ply"),
    "training.checkpoint": ("load_generator", "load_discriminator"),
    "training.families": ("FAMILIES", "family"),
    "training.dataset": ("ImageDataset",),
    "metrics": ("compute_metric",),
}
PAGES = sorted((ROOT / "docs").glob("*.md"))


def code_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_api_run(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(checkpoint_path, tmp_path / "network.pkl")
    synthesize_heads(tmp_path / "datasets" / "heads", 24, 32, seed=0)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(code_blocks("api.md")):
        exec(compile(block, f"docs/api.md, example {number}", "exec"), names)
    assert "cgs CGS-GAN" in capsys.readouterr().out


def test_the_converter_of_a_morphable_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On an octahedron in the layout of the Basel Face Model: 6 vertices, 3 modes of each kind."""
    corners = 1e5 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1.0]])
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    rng = np.random.default_rng(0)
    modes = {f"{name}{end}": rng.random(shape) for name in ("shape", "tex", "exp")
             for end, shape in (("PC", (18, 3)), ("EV", (3, 1)))}  # fmt: skip
    face = {"shapeMU": corners.reshape(-1, 1), "texMU": np.full((18, 1), 127.5), "tl": np.array(faces) + 1}
    savemat(tmp_path / "01_MorphableModel.mat", face | {k: v for k, v in modes.items() if not k.startswith("exp")})
    savemat(tmp_path / "expressions.mat", {k: v for k, v in modes.items() if k.startswith("exp")})
    (tmp_path / "landmarks.txt").write_text("0\n4\n")
    monkeypatch.chdir(tmp_path)
    (block,) = code_blocks("control.md")
    exec(compile(block, "docs/control.md", "exec"), {})
    assert "{'identity': 3, 'expression': 3, 'texture': 3, 'illumination': 27}" in capsys.readouterr().out
    model = read_model(tmp_path / "bfm.npz")
    assert float(model.shape[:, 2].max()) == pytest.approx(0.21) and model.triangles.tolist() == [
        list(f) for f in faces
    ]
    expected = modes["shapePC"][:, 1].reshape(6, 3) * modes["shapeEV"][1] / 490_000
    np.testing.assert_allclose(model.identity[1], expected, rtol=1e-5)
    np.testing.assert_allclose(model.albedo, 0.5)


def test_the_api_page_shows_all_that_is_promised() -> None:
    code = "\n".join(code_blocks("api.md"))
    for module, names in PROMISED.items():
        imported = set(re.findall(rf"^from {re.escape(module)} import (.*)$", code, re.MULTILINE))
        assert set(names) <= {name.strip() for line in imported for name in line.split(",")}, module
    assert "a Rendering" in code and set(PROMISED["gaussian"]) | {"Rendering"} <= set(gaussian.__all__)


def test_the_example_family_is_the_tested_file() -> None:
    """To bring the page up to date, paste tests/families/ball.py between its fences."""
    (block,) = code_blocks("new-family.md")
    assert block == (ROOT / "tests" / "families" / "ball.py").read_text()


def test_the_interfaces_are_those_of_the_code() -> None:
    """`python -m docs.interfaces --write` brings the page up to date."""
    assert interfaces.DESIGN.read_text() == interfaces.written()


def test_the_page_has_the_order_that_is_tested() -> None:
    order = "\n".join("    " + ", ".join(floor) for floor in FLOORS)
    assert order in interfaces.DESIGN.read_text()


def test_a_stub_shows_fields_comments_properties_and_signatures(tmp_path: Path) -> None:
    text = '''
class A(Base, total=False):
    """Holds things.

    And more.
    """

    x: int = 0  # pixels
    _y: int = 0

    @property
    def size(self) -> int: ...  # of it

    @classmethod
    def make(cls, /, a: int, *rest: int, b: str = "c", **others: int) -> A:
        """Makes one."""

    def _hidden(self): ...
'''
    source = interfaces.Source(text)
    assert list(source.stub(source.tree.body[0])) == [  # type: ignore[arg-type]
        "class A(Base, total=False):  # Holds things.",
        "    x: int = 0  # pixels",
        "    size: int  # of it",
        "    def make(cls, /, a: int, *rest: int, b: str = 'c', **others: int) -> A  # Makes one.",
    ]
    with pytest.raises(ValueError, match=r"gaussian/ply.py has no nothing"):
        interfaces.module_interface("gaussian/ply.py", ("nothing",))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_rooms_of_the_design_page_exist() -> None:
    text = interfaces.DESIGN.read_text().partition("## Who imports whom")[0]
    rooms = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    names = [name for cell in rooms for name in re.findall(r"`([\w./]+)`", cell)]
    missing = [name for name in names if not (ROOT / name).exists() and not (ROOT / "training" / name).exists()]
    assert len(names) > 25 and missing == []
    listed = {name.rstrip("/") for name in names}
    there = {p.name for p in (ROOT / "training").iterdir() if p.name not in ("__init__.py", "__pycache__")}
    assert there <= listed
