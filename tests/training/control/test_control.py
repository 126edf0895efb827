"""Blocks of a latent, and the regressor: trained by one command, kept by content, refused where it does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import fit_regressor
from training.control import fitting
from training.control.blocks import Blocks
from training.control.regressor import (
    Regressor,
    RegressorConfig,
    _means,
    default_path,
    read_regressor,
    regressor_for,
    save_regressor,
)
from training.data.synthetic import expressions
from training.data.synthetic.synthesize import sample_cameras
from training.morphable.head import mirrored_signs, procedural_head
from training.morphable.model import MODEL_BLOCKS, write_model
from training.morphable.models import block_sizes


def test_blocks_have_the_published_places() -> None:
    sizes = {"identity": 80, "expression": 64, "texture": 80, "illumination": 27}
    blocks = Blocks.of(sizes, 80, 80)
    found = {name: (part.start, part.stop) for name, part in blocks.slices.items()}
    assert blocks.total == 411 and found == {
        "identity": (0, 80), "expression": (80, 144), "background": (144, 224), "texture": (224, 304),
        "illumination": (304, 331), "background_texture": (331, 411),
    }  # fmt: skip
    z, other = torch.randn(2, 411), torch.randn(64)
    changed = blocks.put(z, "expression", other)
    assert torch.equal(blocks.take(changed, "expression"), other.expand(2, -1))
    assert torch.equal(changed[:, :80], z[:, :80]) and torch.equal(changed[:, 144:], z[:, 144:])
    with pytest.raises(ValueError, match="there is no block 'mood'; legal are identity, expression"):
        blocks["mood"]


def test_sizes_are_known_without_building_the_head() -> None:
    assert block_sizes("procedural") == procedural_head().sizes


def test_a_regressor_learns_and_pictures_are_functions_of_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps learn what the pictures at hand show; that takes no more than pictures that do not change."""
    model = procedural_head()
    config = RegressorConfig(model.key, model.sizes, 32, widths=(8, 16, 16), pictures=16, steps=100, batch=16)
    pictures = fitting.draw_pictures(config, model, range(5, 9), lambda *_: None)
    again = fitting.draw_pictures(config, model, range(6, 8), lambda *_: None)
    assert torch.equal(pictures.images[1:3], again.images)
    for name in ("z", "landmarks"):  # products of other numbers of rows are rounded otherwise on some processors
        torch.testing.assert_close(getattr(pictures, name)[1:3], getattr(again, name), rtol=0, atol=1e-6)
    said: list[tuple[str, int, int]] = []
    regressor = fitting.fit(config, model, lambda *what: said.append(what))
    assert said[-1] == ("steps", 100, 100) and ("pictures", 16, 16) in said
    known = fitting.draw_pictures(config, model, range(16), lambda *_: None)
    with torch.no_grad():
        before, after = (
            float((part(2 * fitting.shown(known, config, 0, torch.arange(16) % 2 == 1) - 1) - known.z).square().mean())
            for part in (Regressor(config), regressor)
        )
    assert after < 0.95 * before, (before, after)
    errors = fitting.explained(regressor, model, 16)
    assert {name: set(blocks) for name, blocks in errors.items()} == {k: set(model.sizes) for k in ("sharp", "coarse")}


def test_it_reads_pictures_of_any_size() -> None:
    config = RegressorConfig("key", procedural_head().sizes, resolution=32, widths=(4, 8, 8))
    read = Regressor(config).blocks(torch.zeros(2, 3, 64, 64))
    assert {name: part.shape for name, part in read.items()} == {
        name: (2, n) for name, n in procedural_head().sizes.items()
    }


def test_pictures_are_read_one_by_one_and_tell_where_they_lack() -> None:
    torch.manual_seed(0)
    regressor = Regressor(RegressorConfig("key", procedural_head().sizes, resolution=32, widths=(4, 8, 8))).eval()
    regressor.fit.describe(procedural_head(), 2.7, 4.26)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    alone = torch.cat([regressor(image[None]) for image in images])
    torch.testing.assert_close(regressor(images), alone, rtol=1e-4, atol=1e-4)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(regressor(images)[:2].square().sum(), images)
    assert gradient.isfinite().all() and gradient[:2].flatten(1).any(1).all() and not gradient[2].any()


def test_landmarks_are_the_means_of_maps() -> None:
    maps = torch.full((1, 2, 8, 8), -100.0)
    maps[0, 0, 2, 5] = maps[0, 1, 2, 5] = maps[0, 1, 6, 5] = 0.0
    torch.testing.assert_close(_means(maps)[0], torch.tensor([[0.375, -0.375], [0.375, 0.125]]))


def test_landmarks_of_a_mirrored_render() -> None:
    """The outline runs from one ear to the other, so its landmarks change places."""
    model = procedural_head()
    config = RegressorConfig(model.key, model.sizes, 8, pictures=4)
    pictures = fitting.draw_pictures(config, model, range(4), lambda *_: None)
    other = fitting.turned(pictures, mirrored_signs(), torch.tensor([True, True, False, False]))
    for name in ("landmarks", "angles"):
        assert torch.equal(getattr(other, name)[2:], getattr(pictures, name)[2:])
    before, after = pictures.landmarks[:2, 0, :17].flip(1), other.landmarks[:2, 0, :17]
    torch.testing.assert_close(after, before * before.new_tensor([-1.0, 1.0]), rtol=0, atol=0.01)
    assert torch.equal(other.angles[:2], pictures.angles[:2] * torch.tensor([-1.0, 1.0]))


def test_the_command_keeps_it_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(fitting, "CHECKED", 4)
    result = CliRunner().invoke(fit_regressor.main, ["--pictures=32", "--steps=1"])
    assert result.exit_code == 0, result.output
    assert "mouth open" in result.output and str(default_path(procedural_head().key)) in result.output
    regressor = regressor_for("", procedural_head())
    assert not any(p.requires_grad for p in regressor.parameters())
    assert len(read_regressor(default_path(procedural_head().key))[1]["sharp"]["expression"]) == 8
    refused = CliRunner().invoke(fit_regressor.main, ["--pictures=8"])
    assert refused.exit_code == 1 and "--pictures=8: at least 32 are legal" in refused.output


def test_a_mirrored_render_is_one_of_mirrored_coefficients() -> None:
    model, looks, cameras = procedural_head(), expressions.sample_looks(0, range(2)), sample_cameras(0, range(2))
    z = torch.cat([model.whitened(block, getattr(looks, block)) for block in MODEL_BLOCKS], dim=1) * mirrored_signs()
    parts = dict(zip(model.sizes, z.split(list(model.sizes.values()), dim=1), strict=True))
    other = dataclasses.replace(looks, **{block: model.coefficients(block, parts[block]) for block in MODEL_BLOCKS})
    here, there = (expressions.render(look, view, 32, 1)[0] for look, view in
                   ((looks, cameras), (other, cameras.mirror())))  # fmt: skip
    assert (here.flip(3) - there).abs().mean() < 0.01 < 0.05 < (here - there).abs().mean()


def test_a_model_of_a_file_is_read_off_bare_faces(tmp_path: Path) -> None:
    model = procedural_head()
    other = type(model)(**{**vars(model), "shape": 1.05 * model.shape})
    write_model(tmp_path / "model.npz", other)
    config = RegressorConfig(other.key, other.sizes, resolution=16, pictures=4)
    found = fitting.draw_pictures(config, other, range(4), lambda *_: None)
    assert found.images.shape == (4, 3, 16, 16) and found.z.shape == (4, 49)
    assert 0.05 < float((found.masks > 0).float().mean()) < 0.7


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "empty"))
    model = procedural_head()
    with pytest.raises(ValueError, match=r"there is no regressor of this morphable model .*run fit_regressor\.py"):
        regressor_for("", model)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"not a regressor of format 2, as fit_regressor\.py writes it$"):
        regressor_for(str(tmp_path / "text.pt"), model)
    save_regressor(tmp_path / "other.pt", Regressor(RegressorConfig("other", model.sizes, 16, (4, 4, 8))), {})
    with pytest.raises(ValueError, match="reads the coefficients of the morphable model other"):
        regressor_for(str(tmp_path / "other.pt"), model)
