"""Tests picture grids, the camera histogram and coloured depth, and the loggers' files."""

import json
import math
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from training.runs.loggers import StatsLogger
from training.visualization.grids import color_depth, enlarge, image_grid, save_camera_histogram, save_image_grid


def test_grid_runs_row_by_row_and_fills_up_with_white(tmp_path):
    images = torch.stack([torch.full((3, 2, 4), 10 * k, dtype=torch.uint8) for k in range(5)])
    grid = image_grid(images, columns=3)
    assert grid.shape == (3, 4, 12)
    assert grid[0, ::2, ::4].tolist() == [[0, 10, 20], [30, 40, 255]]
    save_image_grid(images, tmp_path / "grid.png", columns=3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid.permute(1, 2, 0).numpy())


def test_enlarging_keeps_what_is_where():
    picture = np.full((4, 6, 3), 50, np.uint8)
    picture[:, 3:] = 200
    larger = enlarge(picture, 3)
    assert larger.shape == (12, 18, 3)
    assert (larger[:, :3] == 50).all() and (larger[:, -3:] == 200).all()
    assert (larger[:, 8] < 125).all() and (larger[:, 9] > 125).all()
    assert enlarge(picture, 1) is picture


def test_grid_takes_floats_beyond_their_range():
    grid = image_grid(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(5, 1, 1, 1).expand(5, 3, 1, 1), columns=5)
    assert grid[0, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("shape", "columns"), [((0, 3, 4, 4), 1), ((2, 1, 4, 4), 1), ((3, 4, 4), 1), ((1, 3, 4, 4), 0)]
)
def test_grid_refuses(shape, columns):
    with pytest.raises(ValueError, match=r"images must|columns must"):
        image_grid(torch.zeros(shape), columns)


def test_depth_colours_fall_with_distance_and_leave_the_background_white():
    distance = torch.tensor([2.0, 2.5, 3.0, 0.0])
    alpha = torch.tensor([1.0, 0.8, 1.0, 0.0])
    colours = color_depth((distance * alpha).reshape(1, 1, 1, 4), alpha.reshape(1, 1, 1, 4))
    assert colours.shape == (1, 3, 1, 4)
    assert colours[0, :, 0, 3].tolist() == [255, 255, 255]
    brightness = colours[0, :, 0].float().mean(0)
    assert brightness[0] > brightness[2] + 50
    assert (color_depth(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)) == 255).all()


def test_depth_range_can_be_fixed():
    depth, alpha = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
    near, far = (color_depth(depth, alpha, *ends).float().mean() for ends in ((2.0, 3.0), (1.0, 2.0)))
    assert near > far + 50


def test_camera_histogram_shows_where_the_cameras_stand(geometry, tmp_path):
    """Draws the same picture for cameras and labels, another for cameras elsewhere, and keeps no pyplot state."""
    cameras = geometry.orbit(torch.linspace(-0.5, 0.5, 50), torch.linspace(-0.1, 0.1, 50))
    save_camera_histogram(cameras, geometry, tmp_path / "cameras.png")
    save_camera_histogram(cameras.labels, geometry, tmp_path / "labels.png")
    save_camera_histogram(cameras.mirror(), geometry, tmp_path / "mirrored.png")
    first, same, other = (
        np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")) for n in ("cameras", "labels", "mirrored")
    )
    np.testing.assert_array_equal(first, same)
    assert min(first.shape[:2]) > 300
    assert (first != other).any()
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(ValueError, match="at least one camera"):
        save_camera_histogram(cameras[:0], geometry, tmp_path / "none.png")


def lines(folder):
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def test_stats_lines_keep_clocks_apart_and_are_legal_json(tmp_path):
    with StatsLogger(tmp_path, tensorboard=False) as logger:
        logger.write(3, 48, {"Loss/G": 0.5, "Loss/D": math.inf}, {"sec_per_kimg": 2.0})
    with StatsLogger(tmp_path, tensorboard=False) as logger:
        logger.write(4, 64, {"Loss/G": 0.25})
    first, second = lines(tmp_path)
    assert first == {
        "step": 3,
        "nimg": 48,
        "Loss/G": 0.5,
        "Loss/D": None,
        "timing": {"sec_per_kimg": 2.0},
        "non_finite": {"Loss/D": "inf"},
    }
    assert second == {"step": 4, "nimg": 64, "Loss/G": 0.25, "timing": {}}
    assert "Infinity" not in (tmp_path / "stats.jsonl").read_text()


def test_logger_refuses_unknown_modes_and_reserved_names(tmp_path):
    with pytest.raises(ValueError, match="off, offline, online"):
        StatsLogger(tmp_path, wandb_mode="on")
    with pytest.raises(ValueError, match="'auto'"):
        StatsLogger(tmp_path, tensorboard="yes")
    with StatsLogger(tmp_path, tensorboard=False) as logger, pytest.raises(ValueError, match="step"):
        logger.write(0, 0, {"step": 1.0})


def fake_wandb(api_key, fail_at):
    """Stands in for the package: keeps what it is given, or fails at one of its calls."""
    calls, axes = [], []

    class Run:
        def define_metric(self, name, step_metric=None):
            axes.append((name, step_metric))

        def log(self, values, step):
            if fail_at == "log":
                raise ConnectionError("no route\nto host")
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    def init(**options):
        if fail_at == "init":
            raise TimeoutError("no answer")
        calls.append(options["mode"])
        module.starts.append((options["id"], options["resume"]))
        return Run()

    module = types.ModuleType("wandb")
    module.starts, module.axes = [], axes
    module.api, module.Settings, module.init = types.SimpleNamespace(api_key=api_key), dict, init
    return module, calls


def test_wandb_receives_values_and_never_asks_for_a_key(tmp_path, monkeypatch):
    module, calls = fake_wandb(api_key=None, fail_at=None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.warns(RuntimeWarning, match="no API key"):
        logger = StatsLogger(tmp_path, tensorboard=False, wandb_mode="online")
    logger.write(2, 32, {"Loss/G": 0.5}, {"sec_per_kimg": 2.0})
    logger.close()
    assert calls == ["offline", (2, {"nimg": 32, "Loss/G": 0.5, "Timing/sec_per_kimg": 2.0}), "finish"]


def test_a_resumed_run_is_the_same_run_of_wandb_and_its_steps_never_go_back(tmp_path, monkeypatch):
    """The training's steps do, where a run resumes from before its last line; the service would drop the new lines."""
    module, calls = fake_wandb(api_key="key", fail_at=None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for steps in ((1, 2, 3), (2, 3, 9)):
        with StatsLogger(tmp_path, tensorboard=False, wandb_mode="online") as logger:
            for step in steps:
                logger.write(step, 16 * step, {"x": 1.0})
    sent = [call for call in calls if isinstance(call, tuple)]
    assert [step for step, _ in sent] == [1, 2, 3, 4, 5, 9]
    assert [values["nimg"] for _, values in sent] == [16, 32, 48, 32, 48, 144]
    first, second = module.starts
    assert first == second and first[1] == "allow" and ("*", "nimg") in module.axes
    (tmp_path / "new").mkdir()
    StatsLogger(tmp_path / "new", tensorboard=False, wandb_mode="online").close()
    assert module.starts[2][0] != first[0]
    (tmp_path / "wandb.json").write_text("{")  # cut short by a full disk: a new run, and no end of this one
    StatsLogger(tmp_path, tensorboard=False, wandb_mode="online").close()
    assert module.starts[3][0] not in (first[0], module.starts[2][0])


@pytest.mark.parametrize(("nimg", "found"), [(0, {}), (48, {"purge_step": 49})])
def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path, monkeypatch, nimg, found):
    given = []

    def writer(log_dir, **options):
        given.append(options)
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=writer))
    StatsLogger(tmp_path, tensorboard=True, nimg=nimg).close()
    assert given == [found]


@pytest.mark.parametrize(
    ("package", "options"), [("wandb", {"wandb_mode": "offline"}), ("torch.utils.tensorboard", {"tensorboard": True})]
)
def test_a_package_that_is_not_there_is_named_with_the_cure(tmp_path, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.warns(RuntimeWarning, match=r"package (wandb|tensorboard) is not installed \(pip install"):
        StatsLogger(tmp_path, **{"tensorboard": False, **options}).close()


@pytest.mark.parametrize("fail_at", ["init", "log"])
def test_a_failing_logger_warns_once_and_the_others_go_on(tmp_path, monkeypatch, fail_at):
    module, _ = fake_wandb(api_key="key", fail_at=fail_at)
    monkeypatch.setitem(sys.modules, "wandb", module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with StatsLogger(tmp_path, tensorboard=False, wandb_mode="online") as logger:
            for step in range(3):
                logger.write(step, 16 * step, {"x": 1.0})
            assert logger.sinks == ("stats.jsonl",)
    assert [str(w.message).split(":")[0] for w in caught] == ["Weights & Biases is off for the rest of this run"]
    assert len(lines(tmp_path)) == 3


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert StatsLogger(tmp_path, tensorboard="auto").sinks == ("stats.jsonl",)
    with pytest.warns(RuntimeWarning, match="TensorBoard is off"):
        assert StatsLogger(tmp_path, tensorboard=True).sinks == ("stats.jsonl",)


def test_tensorboard_receives_scalars_by_images_seen(tmp_path, monkeypatch):
    scalars = []

    class Writer:
        def __init__(self, log_dir):
            self.log_dir = log_dir

        def add_scalar(self, name, value, global_step):
            scalars.append((name, value, global_step))

        def flush(self):
            pass

        close = flush

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    with StatsLogger(tmp_path, tensorboard="auto") as logger:
        assert logger.sinks == ("stats.jsonl", "TensorBoard")
        logger.write(1, 16, {"Loss/G": 0.5}, {"sec": 1.0})
    assert scalars == [("Loss/G", 0.5, 16), ("Timing/sec", 1.0, 16)]
