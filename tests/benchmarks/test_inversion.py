"""Tests what benchmarks/inversion.py prints; the inversions themselves: tests/training/inversion/."""

import json

import pytest
import torch

from benchmarks.inversion import WITHOUT, joined, table, truth_of, variants
from training.inversion.inversion import Settings


def test_rows_leave_out_one_stage_each():
    base = Settings()
    rows = variants(",".join(WITHOUT) + ",encoder,true-camera,true-views", base)
    assert list(rows)[:2] == ["all stages", "without starts"]
    assert rows["without starts"].starts == 1 and rows["without weights"].tuning_steps == 0
    assert rows["without weights"].latent_steps == base.latent_steps
    differing = [name for name, settings in rows.items() if settings != base]
    assert len(differing) == len(WITHOUT) - 1  # "nothing" leaves out nothing
    with pytest.raises(ValueError, match="--without=sleep: legal are starts, "):
        variants("sleep", base)


def test_the_table_has_means_and_the_median_of_the_angles():
    values = [(20.0, 10.0, 1.0), (30.0, 20.0, 2.0), (31.0, 21.0, 90.0)]
    rows = [
        {"head": k, "input_db": a, "novel_db": b, "camera_deg": c, "processor_seconds": 10.0}
        for k, (a, b, c) in enumerate(values)
    ]
    assert table({"all": rows}).splitlines()[-1] == "| all | 27.0 | 17.0 | 2.0 | 10 |"
    shared = table({"all": rows, "some": rows[1:]}).splitlines()  # of the heads that both rows have
    assert shared[0].startswith("| 2 heads |") and shared[-2] == "| all | 30.5 | 20.5 | 46.0 | 10 |"


def test_runs_apart_are_joined(tmp_path):
    for name, rows in (("a", {"x": [1], "y": [2]}), ("b", {"x": [3]})):
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
    assert joined([str(tmp_path / "a"), str(tmp_path / "b")]) == {"x": [1, 3], "y": [2]}


def test_the_truth_is_what_other_cameras_see(geometry):
    class Network:
        resolution = 32

    Network.geometry = geometry
    truth = truth_of(3, 2, Network)
    assert truth.target.images.shape == (2, 3, 32, 32) and truth.views.images.shape == (6, 3, 32, 32)
    yaw, _ = truth.novel.yaw_pitch(geometry)
    assert torch.allclose(yaw.rad2deg(), torch.tensor([-45.0, -27.0, -9.0, 9.0, 27.0, 45.0]), atol=1e-3)
    assert not torch.equal(truth.cameras.labels[0], truth.cameras.labels[1])
    target, cameras = truth.with_views()
    assert len(target.images) == len(target.masks) == len(cameras) == 8
    torch.testing.assert_close(cameras.labels[2:], truth.novel.labels)
    behind = truth.target.masks.expand_as(truth.target.images) == 0
    assert behind.any() and bool((truth.target.images[behind] == 1).all())
