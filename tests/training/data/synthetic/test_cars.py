"""Tests the ray-cast cars: the caster of convex solids, the cars, and their cameras over the upper hemisphere."""

import json
import math

import numpy as np
import pytest
import torch

from gaussian import Cameras
from tests.training.data.synthetic.centroids import centroid, splat_centroid
from training.data.poses import angles_of
from training.data.synthetic import convex
from training.data.synthetic.car_traits import CAR_RADIUS, LOWEST_PITCH, STYLES, Hemisphere, sample_car
from training.data.synthetic.cars import BODY, WHEEL, build_car, prism
from training.data.synthetic.convex import ROUND, Convex, cast
from training.data.synthetic.raycast import EMPTY, Solids
from training.data.synthetic.raycast import cast as cast_ellipsoids
from training.data.synthetic.synthesize import render_cars, sample_cameras, spread_of, synthesize_heads
from training.data.validation import inspect_set
from training.families import FAMILIES

SPREAD = Hemisphere()
NOTHING = np.zeros((3, 3))  # neither ball nor cylinder


def matrices(cameras: Cameras, i: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return cameras.cam2world[i].double().numpy(), cameras.intrinsics[i].double().numpy()


def around(yaw: float, pitch: float) -> Cameras:
    """One camera [1] at the distance of the set's."""
    geometry = sample_cameras(0, range(50), SPREAD).summary()
    return geometry.orbit(torch.tensor([yaw], dtype=torch.float64), pitch)


def box(low: tuple, high: tuple, centre=(0.0, 0.0, 0.0), shape=NOTHING) -> Convex:
    normals = np.concatenate([np.eye(3), -np.eye(3)])
    planes = np.column_stack([normals, np.concatenate([high, np.negative(low)])])
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    return Convex(planes, corners, np.array(centre), shape)


# ---------------------------------------------------------------- the caster


def test_a_ball_is_that_of_the_caster_of_ellipsoids():
    centre, axes = np.array([0.05, -0.02, 0.1]), np.array([0.1, 0.15, 0.2])
    ends = np.stack([centre - axes, centre + axes])
    corners = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    ours = Convex(np.zeros((0, 4)), corners, centre, np.diag(1 / axes))
    other = Solids(centre[None], axes[None], np.eye(3)[None], np.zeros((1, 4)))
    cameras = sample_cameras(2, range(4), SPREAD)
    for i in range(4):
        a, b = cast([ours], *matrices(cameras, i), 24, 2), cast_ellipsoids(other, *matrices(cameras, i), 24, 2)
        np.testing.assert_array_equal(a.owner, b.owner)
        np.testing.assert_allclose(a.points, b.points, atol=1e-9)
        np.testing.assert_allclose(a.normals, b.normals, atol=1e-9)
        assert (a.local[:, 0] == ROUND).all()


def test_points_lie_on_the_faces_of_a_box_and_normals_point_out():
    solid = box((-0.1, -0.05, -0.2), (0.15, 0.1, 0.1))
    for i in range(6):
        hits = cast([solid], *matrices(sample_cameras(3, range(6), SPREAD), i), 32, 2)
        faces = hits.local[:, 0].astype(int)
        away = (hits.points[:, None] * solid.planes[:, :3]).sum(-1) - solid.planes[:, 3]  # [K, 6]
        assert np.abs(np.take_along_axis(away, faces[:, None], 1)).max() < 1e-9 and away.max() < 1e-9
        np.testing.assert_array_equal(hits.normals, solid.planes[faces, :3])
        assert len(np.unique(faces)) <= 3 and len(faces) > 100  # never more than three faces are seen at once


def test_a_cylinder_ends_at_its_planes():
    """Two planes across the axis x, and round about it."""
    tube = np.diag([0.0, 1 / 0.1, 1 / 0.1])
    solid = box((-0.03, -1.0, -1.0), (0.03, 1.0, 1.0), (0.0, 0.05, 0.0), tube)
    side = cast([solid], *matrices(around(math.pi / 2, 0.0)), 64, 2)
    assert (side.local[:, 0] != ROUND).all() and np.allclose(side.points[:, 0], 0.03)
    radius = np.hypot(side.points[:, 1] - 0.05, side.points[:, 2])
    assert radius.max() < 0.1 and radius.max() > 0.095
    front = cast([solid], *matrices(around(0.0, 0.0)), 64, 2)
    assert (front.local[:, 0] == ROUND).all()
    assert np.allclose(np.hypot(front.points[:, 1] - 0.05, front.points[:, 2]), 0.1)
    assert np.abs(front.points[:, 0]).max() <= 0.03 and np.allclose(front.normals[:, 0], 0)


def test_the_windows_leave_nothing_out(monkeypatch):
    car = build_car(sample_car(0, 3))
    camera = sample_cameras(0, [3], SPREAD)
    fast = cast(car.solids, *matrices(camera), 48, 2)
    monkeypatch.setattr(convex, "_window", lambda *_: (0, 96, 0, 96))
    slow = cast(car.solids, *matrices(camera), 48, 2)
    assert np.array_equal(fast.owner, slow.owner) and np.array_equal(fast.z, slow.z)


def test_nothing_behind_a_camera_is_seen_and_nothing_from_inside():
    for low, high in (((-0.1, -0.1, 2.0), (0.1, 0.1, 2.2)), ((-0.1, -0.1, 1.1), (0.1, 0.1, 1.3))):
        hits = cast([box(low, high)], *matrices(around(0.0, 0.0)), 16, 2)
        assert (hits.owner == EMPTY).all()


@pytest.mark.parametrize("point", [(0.12, 0.08, 0.1), (-0.15, -0.1, -0.12)])
def test_a_box_and_a_splat_at_one_point_land_on_one_pixel(point):
    cameras = sample_cameras(3, range(12), Hemisphere(cx=0.46, cy=0.55))
    solid = box(np.array(point) - 0.012, np.array(point) + 0.012)
    masks = [cast([solid], *matrices(cameras, i), 64, 4).owner != EMPTY for i in range(12)]
    place = centroid(torch.from_numpy(np.stack(masks)).double()) / 4
    assert (place - splat_centroid(point, cameras, 64)).abs().max() < 0.1


def test_a_prism_is_its_outline_pulled_sideways():
    profile = np.array([[-0.2, -0.1], [0.2, -0.1], [0.1, 0.1], [-0.2, 0.1]])
    solid = prism(profile, (-0.1, 0.08), (0.1, 0.04))
    inside = np.array([[0.0, 0.0, 0.0], [0.07, -0.09, 0.15], [0.03, 0.09, -0.19]])
    outside = np.array([[0.0, 0.05, 0.14], [0.07, 0.05, 0.0], [0.0, 0.11, 0.0], [0.0, 0.0, -0.21], [-0.09, -0.05, 0.0]])
    heights = [(points @ solid.planes[:, :3].T - solid.planes[:, 3]).max(1) for points in (inside, outside)]
    assert (heights[0] < 0).all() and (heights[1] > 0).all()


# ---------------------------------------------------------------- cars


def test_cars_are_functions_of_seed_and_index():
    cameras = sample_cameras(7, range(6), SPREAD)
    whole, part = render_cars(7, range(6), cameras, 32), render_cars(7, [4, 2], cameras[[4, 2]], 32)
    for all_, some in zip(whole, part, strict=True):
        assert torch.equal(all_[[4, 2]], some)
    assert not torch.equal(whole.images, render_cars(8, range(6), cameras, 32).images)
    assert {sample_car(0, i).style for i in range(60)} == set(STYLES)


def test_cars_stay_in_their_ball_and_stand_on_the_ground():
    worst = 0.0
    for i in range(25):
        car = build_car(sample_car(11, i))
        lowest = []
        for yaw, pitch in ((0.6, 0.2), (-2.4, -0.7)):
            hits = cast(car.solids, *matrices(around(yaw, pitch)), 40, 1)
            worst = max(worst, np.linalg.norm(hits.points, axis=1).max())
            lowest.append(hits.points[:, 1].min())
        assert abs(min(lowest) - car.ground) < 0.004
    assert worst < CAR_RADIUS < SPREAD.radius * math.sin(math.atan(0.5 / SPREAD.focal))  # seen whole from everywhere


def test_outlines_are_convex():
    """Where one is not, the plane of an edge cuts off a nose or a tail."""
    for i in range(40):
        car = build_car(sample_car(12, i))
        left = cast(car.solids, *matrices(around(math.pi / 2, 0.0)), 64, 1)
        bumpers = left.points[np.isin(left.owner[left.owner != EMPTY], np.flatnonzero(car.paints == BODY)), 2]
        assert bumpers.max() > 0.95 * car.traits.length and bumpers.min() < -0.95 * car.traits.length, car.traits.style


def test_front_and_rear_differ_and_left_and_right_do_not():
    differs = []
    for i in range(8):
        sides = [render_cars(0, [i], around(yaw, 0.1), 64).images[0].double() for yaw in (0.0, math.pi)]
        differs.append((sides[0] - sides[1]).abs().mean())
        left, right = (render_cars(0, [i], around(yaw, 0.3), 64).images[0].double() for yaw in (-1.0, 1.0))
        assert (left - right.flip(-1)).abs().mean() < 0.3
    assert min(differs) > 2  # of 255, in the mean over all pixels


def test_lamps_are_white_before_and_red_behind():
    reds, whites = [], []
    for i in range(20):
        for yaw, found in ((0.0, whites), (math.pi, reds)):
            picture = render_cars(5, [i], around(yaw, 0.0), 64)
            r, g, b = picture.images[0].double()[:, picture.masks[0, 0] == 255]
            red, white = (r > 2.5 * g) & (r > 2.5 * b), (r > 200) & (g > 190) & (b > 150)
            found.append((float(red.double().mean()), float(white.double().mean())))
    reds, whites = np.array(reds), np.array(whites)
    assert (reds[:, 0] > 0.005).mean() > 0.9 and (whites[:, 1] > 0.005).mean() > 0.9
    assert np.median(whites[:, 0]) == 0 and np.median(reds[:, 1]) < np.median(whites[:, 1])


def test_depth_lies_on_the_car_and_masks_have_soft_edges():
    cameras = sample_cameras(4, range(8), SPREAD)
    pictures = render_cars(4, range(8), cameras, 32)
    covered = pictures.masks == 255
    assert (pictures.depth[covered] - SPREAD.radius).abs().max() < CAR_RADIUS
    edge = (pictures.masks > 0) & (pictures.masks < 255)
    assert 0.01 < edge.float().mean() < 0.2
    assert (pictures.images[(pictures.masks == 0).expand_as(pictures.images)] == 255).all()


def test_wheels_are_round_and_stand_at_the_axles():
    car = build_car(sample_car(0, 0))
    side = cast(car.solids, *matrices(around(math.pi / 2, 0.0)), 128, 1)
    wheels = np.isin(side.owner[side.owner != EMPTY], np.flatnonzero(car.paints == WHEEL))
    z, y = side.points[wheels, 2], side.points[wheels, 1]
    for axle in car.traits.axles:
        own = np.abs(z - axle) < 1.1 * car.traits.wheel
        assert np.ptp(z[own]) == pytest.approx(2 * car.traits.wheel, abs=0.008)
        assert y[own].min() == pytest.approx(car.ground, abs=0.005)


# ---------------------------------------------------------------- cameras and sets


def test_cameras_are_even_over_the_upper_hemisphere():
    cameras = sample_cameras(0, range(4000), SPREAD)
    yaw, pitch = cameras.yaw_pitch(cameras.summary())
    assert float(pitch.min()) > LOWEST_PITCH - 1e-3
    low = math.sin(LOWEST_PITCH)
    for values in (yaw / (2 * math.pi) + 0.5, (pitch.sin() - low) / (1 - low)):
        gaps = values.double().sort().values - torch.arange(4000) / 4000
        assert gaps.abs().max() < 1.63 / math.sqrt(4000)  # Kolmogorov and Smirnov, 1 %
    assert cameras.summary().radius == pytest.approx(SPREAD.radius, abs=1e-4) and cameras.summary().world_scale == 1


def test_pi_gans_law_of_poses_for_cars_fits_the_labels():
    cameras = sample_cameras(0, range(500), SPREAD)
    law = FAMILIES["pigan"].presets["pigan-carla"].objective.pose_law
    assert law is not None and law.contradiction(cameras, cameras.summary()) is None
    theta, phi = angles_of(cameras.positions)
    assert float(phi.max()) < math.radians(85.1) and float(theta.std()) > 1.5


def test_a_set_of_cars_is_valid_and_does_not_depend_on_its_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.synthetic.synthesize._IMAGES_PER_WORKER", 8)
    one = synthesize_heads(tmp_path / "one", 40, 16, seed=5, workers=1, kind="cars")
    two = synthesize_heads(tmp_path / "two", 12, 16, seed=5, workers=1, kind="cars")
    pool = synthesize_heads(tmp_path / "pool", 40, 16, seed=5, workers=2, kind="cars")
    labels = [json.loads((made.images.parent / "dataset.json").read_text()) for made in (one, two, pool)]
    assert labels[0] == labels[2] and labels[0]["labels"][:12] == labels[1]["labels"]
    assert labels[0]["synthetic"]["kind"] == "cars"
    for place in ("16", "mask"):
        for path in (tmp_path / "one" / place).iterdir():
            assert (tmp_path / "pool" / place / path.name).read_bytes() == path.read_bytes()
    assert inspect_set(one.images).problems == []
    assert not synthesize_heads(tmp_path / "one", 40, 16, seed=5, kind="cars").fresh
    with pytest.raises(FileExistsError, match="holds another data set"):
        synthesize_heads(tmp_path / "one", 40, 16, seed=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"yaw_std": 0.3}, "--yaw-std does not go with --kind=cars, whose cameras are all over the upper hemisphere"),
        ({"radius": 0.2}, r"--radius=0\.2: more than 0\.29 is legal \(the car fills that ball\)"),
    ],
)
def test_impossible_cameras_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        spread_of("cars", options)
    assert spread_of("cars", {"radius": 2.0, "yaw_std": None}).radius == 2.0
    with pytest.raises(ValueError, match="--kind=boats: legal are heads, expressions, cars"):
        spread_of("boats", {})
