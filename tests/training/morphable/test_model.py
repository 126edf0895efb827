"""Morphable models: the procedural head does what its modes are called, files go round, and bad files are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.morphable.head import EXPRESSION, IDENTITY, UNIT, procedural_head
from training.morphable.model import MODEL_BLOCKS, harmonics, read_model, write_model
from training.morphable.models import FOLDER, morphable_model


def moved(block: str, name: str, coefficient: float) -> torch.Tensor:
    """Landmarks [68, 3] of the head with one mode, less those at rest, in the head's own lengths."""
    model = procedural_head()
    values = {"identity": torch.zeros(1, 8), "expression": torch.zeros(1, 8)}
    rest = model.vertices(**values)
    values[block][0, (IDENTITY if block == "identity" else EXPRESSION).index(name)] = coefficient
    return (model.vertices(**values) - rest)[0, model.landmarks] / UNIT


def test_modes_do_what_they_are_called() -> None:
    lower, upper, corners, chin = 57, 51, [48, 54], 8
    opened = moved("expression", "mouth open", 2.0)
    assert opened[lower, 1] < -0.02 and opened[chin, 1] < -0.015 and abs(opened[upper, 1]) < 0.003
    wide = moved("expression", "mouth wide", 2.0)
    assert wide[corners[0], 0] < -0.008 and wide[corners[1], 0] > 0.008
    assert moved("expression", "smile", 2.0)[corners, 1].min() > 0.012
    assert moved("expression", "brows up", 2.0)[17:27, 1].mean() > 0.01
    lids = moved("expression", "eyes closed", 2.0)[36:48, 1]
    assert lids[[1, 2, 7, 8]].max() < -0.012 and lids[[4, 5, 10, 11]].abs().max() < 0.004
    assert moved("expression", "jaw aside", 2.0)[chin, 0] > 0.012
    assert moved("identity", "eye spacing", 2.0)[[36, 45], 0].abs().min() > 0.009
    assert moved("identity", "mouth height", 2.0)[48:68, 1].min() > 0.01


def test_the_mean_face_is_symmetric_and_no_mode_of_identity_skews_it() -> None:
    model = procedural_head()
    for basis in (model.shape[None], model.identity):
        points = basis[:, model.landmarks]
        left, right = points[:, [36, 48, 0, 17]], points[:, [45, 54, 16, 26]]
        torch.testing.assert_close(left * torch.tensor([-1.0, 1, 1]), right, rtol=0, atol=0.012)


def test_whitening_goes_round() -> None:
    model = procedural_head()
    for block in MODEL_BLOCKS:
        z = torch.randn(5, model.sizes[block])
        torch.testing.assert_close(model.whitened(block, model.coefficients(block, z)), z, rtol=1e-3, atol=1e-3)


def test_harmonics_are_orthogonal() -> None:
    ways = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    values = harmonics(ways)
    products = values.T @ values / len(ways)
    assert (products - torch.diag(products.diagonal())).abs().max() < 0.01


def test_a_file_goes_round(tmp_path: Path) -> None:
    model = procedural_head()
    write_model(tmp_path / "model.npz", model)
    read = read_model(tmp_path / "model.npz")
    assert read.sizes == model.sizes and read.key == dataclasses.replace(model, recipe="").key
    write_model(tmp_path / "again.npz", read)
    assert read_model(tmp_path / "again.npz").key == read.key
    changed = model.shape.clone()
    changed[0, 0] += 1e-3
    write_model(tmp_path / "other.npz", type(model)(**{**vars(model), "shape": changed}))
    assert read_model(tmp_path / "other.npz").key != model.key


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("identity", lambda a: a[:, :-1], r"identity must have shape \[8, \d+, 3\], got"),
        ("landmarks", lambda a: a + 10**6, "landmarks must name vertices 0 to"),
        ("triangles", lambda a: a.astype(np.float32), "triangles must hold finite numbers of kind iu, got float32"),
        ("texture_factor", lambda a: a.T + np.ones_like(a), "texture_factor must be lower triangular"),
        ("expression_mean", lambda a: a[:-1], r"expression_mean must have shape \[8\], got \[7\]"),
        ("shape", lambda a: a * np.nan, "shape must hold finite numbers"),
        ("albedo", None, "the array 'albedo' is missing; legal are shape, identity"),
    ],
)
def test_files_of_wrong_shapes_are_refused(name: str, change: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    write_model(path, procedural_head())
    arrays = dict(np.load(path))
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"--morphable=.*model.npz: .*{reason}"):
        read_model(path)


def test_what_is_no_file_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_model(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"not an \.npz of a morphable model"):
        read_model(tmp_path / "text.npz")


def test_the_key_of_a_file_is_the_same_where_denormal_numbers_are_flushed() -> None:
    """As training on a CPU flushes them: a regressor that was fitted outside is of the same model."""
    kept, tiny = dataclasses.replace(procedural_head(), recipe=""), torch.finfo(torch.float32).tiny
    tables = {name: getattr(kept, name) for name in ("shape", "identity", "expression", "albedo", "texture")}
    small = {name: (table != 0) & (table.abs() < tiny) for name, table in tables.items()}
    assert any(where.any() for where in small.values())  # there are such numbers
    flushed = {name: torch.where(small[name], 0.0, table) for name, table in tables.items()}
    assert dataclasses.replace(kept, **flushed).key == kept.key


def test_the_procedural_head_is_the_one_of_its_recipe() -> None:
    """Processors round it otherwise, so that its key names the recipe: where numbers change, RECIPE has to."""
    model = procedural_head()
    assert (model.recipe, model.key) == ("procedural head 1", "56947029d77d0c4a")
    sums = {"shape": 3125.7794, "identity": 175.3744, "expression": 19.6652, "albedo": 21001.9565,
            "texture": 5358.0468, "triangles": 333815788, "landmarks": 549960}  # fmt: skip
    for name, expected in sums.items():
        assert float(getattr(model, name).double().abs().sum()) == pytest.approx(expected, rel=1e-5), name
    assert model.landmarks[:20:3].tolist() == [2060, 11778, 12393, 12463, 12217, 7541, 1115]
    assert float(model.factors["illumination"].sum()) == pytest.approx(1.227684, rel=1e-5)


def test_a_model_that_has_moved_is_found_in_the_folder_named_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there" / "model.npz", tmp_path / "here" / "model.npz"
    for path in (there, here):
        path.parent.mkdir()
    write_model(here, procedural_head())
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(ValueError, match=rf"^--controls={there}: no such file; .* in {FOLDER}$"):
        morphable_model(str(there), flag="--controls")
    with pytest.raises(ValueError, match=r"^--morphable=x{300}\.npz: no such file; "):
        morphable_model("x" * 300 + ".npz")
    monkeypatch.setenv(FOLDER, str(here.parent))
    assert morphable_model(str(there)).key == read_model(here).key
    with pytest.raises(ValueError, match=r"holds the model .* and abc is needed"):
        morphable_model(str(there), key="abc")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(ValueError, match=rf"^--morphable={there} and {tmp_path}/model.npz: no such files; "):
        morphable_model(str(there))
