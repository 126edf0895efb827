"""Tests cameras that are found by what they see."""

import math

import pytest
import torch

from gaussian import Cameras, Gaussians, render
from training.inversion.cameras import Tracker, angle_between, best_starts, moved


@pytest.fixture(scope="module")
def scene():
    """Coloured splats without any symmetry."""
    draws = torch.Generator().manual_seed(0)
    means = 0.25 * torch.randn(1, 60, 3, generator=draws)
    quats = torch.randn(1, 60, 4, generator=draws)
    return Gaussians(
        means,
        torch.full((1, 60, 3), math.log(0.05)),
        quats,
        torch.full((1, 60, 1), 2.0),
        torch.randn(1, 60, 1, 3, generator=draws),
    )


def seen(scene, cameras):
    return render(scene.map(lambda t: t.expand(len(cameras), *t.shape[1:])), cameras, 48).rgb


def test_motions_are_what_they_say(geometry):
    frontal = geometry.frontal().reshape(1)

    def after(**motion):
        names = ("pitch", "yaw", "roll", "x", "y", "focal", "distance")
        return moved(frontal, torch.tensor([[motion.get(name, 0.0) for name in names]]), geometry)

    for name, value in (("yaw", 0.2), ("pitch", -0.1), ("roll", 0.3)):
        turned = after(**{name: value})
        eye = turned.cam2world[0, :3, :3]
        torch.testing.assert_close(eye @ eye.mT, torch.eye(3), rtol=0, atol=1e-5)
        assert float(turned.positions.norm()) == pytest.approx(geometry.radius, rel=1e-5)
        expected = 0.0 if name == "roll" else abs(math.degrees(value))
        assert float(angle_between(frontal, turned, geometry)) == pytest.approx(expected, abs=0.01)
    # A camera that moves right by a share s of the radius sees everything move left by focal length times s.
    centre = torch.zeros(1, 1, 3)
    (u0, v0), (u, v) = frontal.project(centre)[0][0, 0], after(x=0.01, y=0.02).project(centre)[0][0, 0]
    focal = geometry.intrinsics[0][0]
    assert float(u - u0) == pytest.approx(-0.01 * focal, rel=1e-3)
    assert float(v - v0) == pytest.approx(-0.02 * focal, rel=1e-3)
    assert float(after(distance=0.1).positions.norm()) == pytest.approx(geometry.radius * math.exp(0.1), rel=1e-5)
    assert float(after(focal=0.1).intrinsics[0, 0, 0]) == pytest.approx(focal * math.exp(0.1), rel=1e-5)


def test_a_camera_comes_back_from_a_wrong_place(scene, geometry):
    truth = geometry.orbit(torch.tensor([0.2, -0.4]), torch.tensor([0.05, -0.1])).reshape(1, 2)
    wrong = geometry.orbit(torch.tensor([0.45, -0.2]), torch.tensor([-0.1, 0.1])).reshape(1, 2)
    goal = seen(scene, truth)[0]
    tracker = Tracker.at(wrong, geometry)
    before = angle_between(truth, wrong, geometry)
    for _ in range(12):
        tracker = tracker.step(lambda cameras: seen(scene, cameras), goal)
    after = angle_between(truth, tracker.cameras, geometry)
    assert before.min() > 10 and after.max() < 0.5, (before, after)


def test_a_camera_that_is_right_stays(scene, geometry):
    truth = geometry.orbit(torch.tensor([0.2])).reshape(1, 1)
    tracker = Tracker.at(truth, geometry)
    for _ in range(3):
        tracker = tracker.step(lambda cameras: seen(scene, cameras), seen(scene, truth)[0])
    assert float(angle_between(truth, tracker.cameras, geometry)) < 0.05


def test_trials_and_pictures_do_not_touch_each_other(scene, geometry):
    truth = geometry.orbit(torch.tensor([0.1, -0.3])).reshape(1, 2)
    wrong = Cameras.from_labels(geometry.orbit(torch.tensor([[0.3, -0.2], [0.0, -0.5]])).labels)
    goal = seen(scene, truth)[0]
    both = Tracker.at(wrong, geometry).step(lambda cameras: seen(scene, cameras), goal).motion
    for s in range(2):
        for v in range(2):
            alone = Tracker.at(wrong[s : s + 1, v : v + 1], geometry)
            alone = alone.step(lambda cameras: seen(scene, cameras), goal[v : v + 1])
            torch.testing.assert_close(alone.motion[0, 0], both[s, v], rtol=1e-4, atol=1e-6)


def test_starts_are_ranked_and_differ():
    # Head 1 meets picture 0 best under camera 2, and picture 1 under camera 0.
    losses = torch.tensor([[[0.5, 0.4, 0.6], [0.5, 0.5, 0.9]], [[0.9, 0.3, 0.1], [0.2, 0.8, 0.7]]])
    heads, cameras = best_starts(losses, 3)
    assert heads.tolist() == [1, 1, 1]
    assert cameras.tolist() == [[2, 0], [1, 0], [2, 2]]
    assert len(best_starts(losses[:, :1], 9)[0]) == 3
