"""Tests Cameras and Geometry: conventions, round trips, and what summary() measures."""

import json
import math

import pytest
import torch

from gaussian import Cameras, Geometry
from tests.gaussian.scenes import make_cameras, make_intrinsics

FFHQ = Geometry((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 2.7, ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0)))


def rig(target, radius, count=40, centre=None, seed=0, fx=4.2647):
    """Makes cameras [count] that look at `target` from `radius` about `centre` (the target itself if None)."""
    generator = torch.Generator().manual_seed(seed)
    yaw = torch.randn(count, generator=generator, dtype=torch.float64) * 0.4
    pitch = torch.randn(count, generator=generator, dtype=torch.float64) * 0.15
    k = tuple(map(tuple, make_intrinsics(fx).tolist()))
    return Geometry(tuple(target), tuple(target if centre is None else centre), radius, k).orbit(yaw, pitch)


def test_labels_round_trip():
    labels = torch.randn(3, 2, 25)
    cameras = Cameras.from_labels(labels)
    assert cameras.shape == (3, 2)
    assert torch.equal(cameras.labels, labels)
    assert torch.equal(cameras.cam2world[1, 0, 0], labels[1, 0, :4])  # row-major
    assert torch.equal(cameras.intrinsics[1, 0, 0], labels[1, 0, 16:19])


def test_frontal_is_the_matrix_of_the_convention():
    expected = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    expected[2, 3] = 2.7
    torch.testing.assert_close(FFHQ.frontal().cam2world, expected)
    assert FFHQ.frontal().shape == ()


def test_orbit_directions_and_inverse():
    right, up = FFHQ.orbit(0.3), FFHQ.orbit(torch.tensor(0.0), 0.3)
    assert right.positions[0] > 0.5 and abs(right.positions[1]) < 1e-6
    assert up.positions[1] > 0.5 and abs(up.positions[0]) < 1e-6
    yaw, pitch = torch.linspace(-3, 3, 7), torch.linspace(-1, 1, 7)
    cameras = FFHQ.orbit(yaw, pitch)
    assert cameras.shape == (7,)
    for got, expected in zip(cameras.yaw_pitch(FFHQ), (yaw, pitch), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    rotation = cameras.cam2world[:, :3, :3]
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).expand(7, 3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(7))


def test_orbit_turns_about_the_centre_and_looks_at_the_pivot():
    geometry = Geometry((0.1, 0.2, 0.3), (0.0, 0.1, 0.0), 2.0, FFHQ.intrinsics)
    cameras = geometry.orbit(torch.linspace(0, 6, 9), 0.2)
    distance = (cameras.positions - torch.tensor(geometry.centre)).norm(dim=-1)
    torch.testing.assert_close(distance, torch.full((9,), 2.0))
    xy, _ = cameras.project(torch.tensor([geometry.pivot]))
    torch.testing.assert_close(xy, torch.full((9, 1, 2), 0.5))


@pytest.mark.parametrize("height", [2.7, -2.7])
def test_look_at_straight_along_up(height):
    camera = Cameras.look_at((0.0, height, 0.0), (0.0, 0.0, 0.0), intrinsics=make_intrinsics())
    near_pole = FFHQ.orbit(0.0, math.copysign(math.pi / 2 - 1e-3, height))
    torch.testing.assert_close(camera.cam2world, near_pole.cam2world, rtol=0, atol=5e-3)  # 2.7e-3 for an angle of 1e-3


def test_project_follows_the_pinhole_equations():
    camera = Cameras(torch.eye(4), make_intrinsics(fx=2.0, fy=3.0, cx=0.4, cy=0.6))
    xy, z = camera.project(torch.tensor([[0.1, 0.2, 4.0]]))
    torch.testing.assert_close(xy, torch.tensor([[0.4 + 2 * 0.1 / 4, 0.6 + 3 * 0.2 / 4]]))
    assert z.item() == 4.0


def test_unproject_inverts_project():
    cameras = make_cameras(2, 3, cx=0.43, cy=0.55, fy=3.9, roll=0.3, dtype=torch.float64)
    skewed = cameras.intrinsics.clone()
    skewed[..., 0, 1] = 0.2
    cameras = Cameras(cameras.cam2world, skewed)
    depth = torch.rand(2, 3, 4, 5, dtype=torch.float64) + 2
    xy, z = cameras.project(cameras.unproject(depth).flatten(2, 3))
    rows, columns = torch.meshgrid((torch.arange(4.0) + 0.5) / 4, (torch.arange(5.0) + 0.5) / 5, indexing="ij")
    expected = torch.stack([columns, rows], dim=-1).flatten(0, 1).double()
    torch.testing.assert_close(xy, expected.expand_as(xy))
    torch.testing.assert_close(z, depth.flatten(2))


def test_world2cam_is_the_inverse():
    cameras = make_cameras(2, 3, roll=1.0, dtype=torch.float64)
    identity = torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    torch.testing.assert_close(cameras.world2cam @ cameras.cam2world, identity)


def test_mirror_twice_is_the_identity_and_moves_what_it_should():
    cameras = make_cameras(2, 3, cx=0.43, cy=0.55, fy=3.9, roll=0.3)
    again = cameras.mirror().mirror()
    torch.testing.assert_close(again.labels, cameras.labels, rtol=0, atol=1e-7)
    points = torch.randn(2, 3, 5, 3) * 0.3
    xy, z = cameras.project(points)
    mirrored_xy, mirrored_z = cameras.mirror().project(points * torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(mirrored_xy, torch.stack([1 - xy[..., 0], xy[..., 1]], dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(mirrored_z, z)


def test_crop_keeps_a_known_point_in_its_place():
    cameras = make_cameras(4, 1, cx=0.45, fy=3.9, roll=0.3, dtype=torch.float64)
    points = torch.randn(4, 1, 6, 3, dtype=torch.float64) * 0.2
    left, top, right, bottom = box = (0.1, 0.2, 0.7, 1.1)
    xy, _ = cameras.project(points)
    cropped, _ = cameras.crop(box).project(points)
    back = cropped * cropped.new_tensor([right - left, bottom - top]) + cropped.new_tensor([left, top])
    torch.testing.assert_close(back, xy, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="box"):
        cameras.crop((0.5, 0.0, 0.5, 1.0))


def test_summary_of_an_eg3d_like_rig():
    """Has equal distances to the origin and axes that meet elsewhere: the centre is the origin, the pivot is not."""
    geometry = rig(target=(0.0, 0.05, 0.2), radius=2.7, centre=(0.0, 0.0, 0.0)).summary()
    torch.testing.assert_close(torch.tensor(geometry.pivot), torch.tensor([0.0, 0.05, 0.2]), rtol=0, atol=1e-6)
    assert geometry.centre == (0.0, 0.0, 0.0)
    assert geometry.radius == pytest.approx(2.7)
    assert geometry.intrinsics[0][0] == pytest.approx(4.2647)
    assert geometry.world_scale == 1.0 and geometry.to_model_units() == geometry


def test_summary_of_a_rig_elsewhere_and_its_model_units():
    cameras = rig(target=(5.0, 1.0, -2.0), radius=27.0)
    geometry = cameras.summary()
    assert geometry.pivot == pytest.approx((5.0, 1.0, -2.0), abs=1e-4)
    assert geometry.centre == geometry.pivot
    assert geometry.radius == pytest.approx(27.0)
    assert geometry.world_scale == pytest.approx(27.0 / (2 * 4.2647) / 0.3166)

    inside, model = geometry.normalize(cameras), geometry.to_model_units()
    assert model.centre == (0.0, 0.0, 0.0)
    again = inside.summary()
    assert (again.radius, again.world_scale) == (pytest.approx(model.radius), 1.0)
    torch.testing.assert_close(model.denormalize(inside).labels, cameras.labels)
    yaw, pitch = cameras.yaw_pitch(geometry)
    torch.testing.assert_close(inside.yaw_pitch(model)[0], yaw)
    torch.testing.assert_close(model.orbit(yaw, pitch).labels, inside.labels, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("factor", "expected"), [(1.08, 1.0), (0.92, 1.0), (1.2, 1.2), (0.5, 0.5)])
def test_world_scale_within_ten_percent_counts_as_one(factor, expected):
    radius = factor * 0.3166 * 2 * 4.2647
    assert rig((0.0, 0.0, 0.0), radius).summary().world_scale == pytest.approx(expected)


def test_unequal_distances_to_the_origin_make_the_pivot_the_centre():
    near, far = rig((0.0, 0.0, 0.2), 2.7, seed=1), rig((0.0, 0.0, 0.2), 2.9, seed=2)
    both = Cameras(*(torch.cat(pair) for pair in ((near.cam2world, far.cam2world), (near.intrinsics, far.intrinsics))))
    geometry = both.summary()
    assert geometry.centre == geometry.pivot
    assert 2.7 < geometry.radius < 2.9


def test_summary_with_parallel_axes_takes_the_point_nearest_to_the_origin():
    single = Cameras.look_at((0.3, 0.0, 2.7), (0.3, 0.0, 0.0), intrinsics=make_intrinsics())
    assert single.summary().pivot == pytest.approx((0.3, 0.0, 0.0), abs=1e-6)
    row = Cameras.look_at(torch.tensor([[-1.0, 0.0, 2.0], [1.0, 0.0, 2.0]]), torch.tensor([[-1.0, 0.0, 0.0],
                          [1.0, 0.0, 0.0]]), intrinsics=make_intrinsics())  # fmt: skip
    assert row.summary().pivot == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)


def test_summary_refuses_what_has_no_geometry():
    with pytest.raises(ValueError, match="at least one"):
        make_cameras(1, 1)[:0].summary()
    with pytest.raises(ValueError, match="median distance"):
        Cameras(torch.eye(4), make_intrinsics()).summary()


def test_geometry_goes_through_json():
    geometry = rig((5.0, 1.0, -2.0), 27.0).summary()
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


def test_shapes_are_checked_and_indexing_keeps_both_matrices():
    cameras = make_cameras(4, 3)
    assert cameras[1].shape == (3,) and cameras[:, 0].shape == (4,) and cameras[2:, None].shape == (2, 1, 3)
    assert cameras.reshape(-1).reshape(6, 2).shape == (6, 2)
    assert torch.equal(cameras[torch.tensor([2, 0])].labels, cameras.labels[[2, 0]])
    with pytest.raises(ValueError, match="labels"):
        Cameras.from_labels(torch.zeros(2, 16))
    with pytest.raises(ValueError, match="intrinsics"):
        Cameras(torch.eye(4).expand(2, 4, 4), torch.eye(3))
    with pytest.raises(TypeError, match="single"):
        len(FFHQ.frontal())
