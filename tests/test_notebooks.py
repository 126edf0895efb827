"""The notebooks run from end to end, at sizes of seconds; what they show is small, and of their present cells."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from notebooks import run
from tests.training.inversion.heads import write_network
from training.data.synthetic.synthesize import synthesize_heads

NOTEBOOKS = run.notebooks()


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory, geometry):
    """A network whose heads can be seen: there is no inverting others."""
    return write_network(tmp_path_factory.mktemp("network"), geometry)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, checkpoint_path, tmp_path, monkeypatch):
    data = synthesize_heads(tmp_path / "heads", 24, 32, seed=0, workers=1).images
    monkeypatch.setenv("SPLATGAN_NOTEBOOKS_SMALL", "1")
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    for name, value in (("NETWORK", checkpoint_path), ("OTHER", checkpoint_path), ("DATA", data)):
        monkeypatch.setenv(f"SPLATGAN_{name}", str(value))
    shown = run.executed(path, run.FOLDER)
    pictures = [o for cell in shown.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert pictures and all(cell.execution_count for cell in shown.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_shown_is_small_and_of_the_present_cells(path: Path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= run.MOST_BYTES
    assert notebook.metadata.get("outputs_of") == run.sources_hash(notebook), "python -m notebooks.run writes it"
    assert all(cell.outputs is not None and cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_a_changed_cell_is_noticed():
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    before = run.sources_hash(notebook)
    notebook.cells[1].source += "\n"
    assert run.sources_hash(notebook) != before
