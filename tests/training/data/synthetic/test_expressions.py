"""Heads with expressions: pictures are functions of (seed, index), and their parameters stand beside the labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gaussian import Cameras
from training.data.synthetic.expression_features import render_expression_truths
from training.data.synthetic.expressions import parameters, render, sample_looks
from training.data.synthetic.synthesize import sample_cameras, synthesize_heads
from training.data.synthetic.traits import CameraSpread
from training.dataset import ImageDataset
from training.morphable.head import EXPRESSION, SPREAD, procedural_head


def test_a_set_has_the_parameters_of_its_pictures(tmp_path: Path) -> None:
    made = synthesize_heads(tmp_path / "set", 3, 16, seed=5, workers=1, kind="expressions")
    assert made.fresh
    listed = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert listed["model"] == procedural_head().key and listed["synthetic"]["kind"] == "expressions"
    assert {k: torch.tensor(v).shape[1] for k, v in listed["coefficients"].items()} == procedural_head().sizes
    dataset = ImageDataset(made.images)
    batch = dataset.load([2])
    looks = sample_looks(5, [2])
    torch.testing.assert_close(torch.tensor(listed["coefficients"]["expression"][2]), looks.expression[0])
    image, mask, _ = render(looks, Cameras.from_labels(batch.labels), 16, 2)
    assert batch.masks is not None
    assert ((255 * image).round() - batch.images).abs().max() <= 1 and 0.1 < float(mask.mean()) < 0.9
    assert ((255 * mask).round() - batch.masks).abs().max() <= 1
    assert not synthesize_heads(tmp_path / "set", 3, 16, seed=5, workers=1, kind="expressions").fresh
    with pytest.raises(FileExistsError, match="holds another data set"):
        synthesize_heads(tmp_path / "set", 3, 16, seed=5, workers=1)
    with pytest.raises(ValueError, match="--kind=cats: legal are heads, expressions"):
        synthesize_heads(tmp_path / "other", 3, 16, kind="cats")


def test_draws_are_whitened_by_the_model_and_do_not_depend_on_the_batch() -> None:
    many = sample_looks(1, range(400))
    assert torch.equal(many.expression[7:9], sample_looks(1, [7, 8]).expression)
    model = procedural_head()
    for block in ("identity", "expression", "illumination"):
        z = model.whitened(block, getattr(many, block))
        assert abs(float(z.std()) - 1) < 0.05 and float(z.abs().max()) < 2 / SPREAD + 0.01
    assert parameters(1, range(2))["coefficients"]["texture"][1] == many.texture[1].tolist()


def test_an_expression_changes_the_picture_where_it_should() -> None:
    looks, camera = sample_looks(0, [3]), sample_cameras(0, [0])
    opened = looks.map(torch.clone)
    opened.expression[0, 0] += 3
    before, after = (render(part, camera, 32, 1)[0] for part in (looks, opened))
    changed = (before - after).abs().amax(1)[0]
    assert changed[16:].max() > 0.2 and changed[:12].max() < 0.02  # below the nose, and the forehead


def test_what_is_seen_of_eyes_and_mouths_follows_the_expression() -> None:
    count = 64
    labels = geometry_labels(count)
    truths = render_expression_truths(3, range(count), labels, 64)
    assert (truths.kinds[:, :4] == [0, 0, 1, 2]).all() and (truths.kinds[:, 4:] == -1).all()
    asked = sample_looks(3, range(count)).expression.numpy()
    for mode, areas in (("mouth open", truths.areas[:, 2]), ("eyes closed", -truths.areas[:, :2].sum(1))):
        assert np.corrcoef(asked[:, EXPRESSION.index(mode)], areas)[0, 1] > 0.6, mode
    left, right, mouth, chin = truths.places[:, :4].transpose(1, 0, 2)
    assert (left[:, 0] < right[:, 0]).all() and (left[:, 1] < mouth[:, 1]).all() and (mouth[:, 1] < chin[:, 1]).all()


def geometry_labels(count: int) -> np.ndarray:
    """Labels of one camera in front of all heads."""
    straight = sample_cameras(0, range(1), CameraSpread(yaw_std=0.0, pitch_std=0.0, roll_std=0.0))
    labels: np.ndarray = straight.labels.numpy().repeat(count, 0)
    return labels
