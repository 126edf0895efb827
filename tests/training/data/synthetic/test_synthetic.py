"""Tests the ray-cast heads: the camera convention against the rasteriser's, determinism, masks."""

import json

import numpy as np
import pytest
import torch

from gaussian import Cameras
from tests.training.data.synthetic.centroids import centroid, splat_centroid
from training.data.synthetic import raycast
from training.data.synthetic.heads import build_head, shade
from training.data.synthetic.raycast import EMPTY, Solids, cast
from training.data.synthetic.synthesize import render_heads, render_sphere, sample_cameras, synthesize_heads
from training.data.synthetic.traits import HEAD_RADIUS, CameraSpread, sample_traits
from training.images import composite

OFF_CENTRE = CameraSpread(roll_std=0.4, cx=0.46, cy=0.55)


@pytest.mark.parametrize("point", [(0.12, 0.08, 0.1), (-0.15, -0.1, -0.12)])
def test_a_sphere_and_a_splat_at_one_point_land_on_one_pixel(point):
    cameras = sample_cameras(3, range(20), OFF_CENTRE)
    sphere = render_sphere(cameras, point, 0.02, resolution=64, samples=8).masks[:, 0].double()
    offset = (centroid(sphere) - splat_centroid(point, cameras, 64)).abs().max()
    assert offset < 0.1  # worst seen 0.018 px


@pytest.mark.parametrize("wrong", ["mirrored", "cx ignored", "roll reversed"])
def test_the_comparison_of_centroids_sees_a_wrong_convention(wrong):
    cameras, point = sample_cameras(3, range(20), OFF_CENTRE), (0.12, 0.08, 0.1)
    intrinsics = cameras.intrinsics.clone()
    if wrong == "cx ignored":
        intrinsics[..., 0, 2] = 0.5
        others = Cameras(cameras.cam2world, intrinsics)
    elif wrong == "mirrored":
        others = cameras.mirror()
    else:
        turn = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
        others = Cameras(turn @ cameras.cam2world @ turn, intrinsics)
    sphere = render_sphere(others, point, 0.02, resolution=64, samples=4).masks[:, 0].double()
    offset = (centroid(sphere) - splat_centroid(point, cameras, 64)).abs().max()
    assert offset > 1.0


def test_sphere_depth_is_camera_z():
    cameras = sample_cameras(0, range(3))
    depth = render_sphere(
        cameras, (0.0, 0.0, 0.0), 0.1, resolution=33, samples=5
    ).depth  # odd: a ray through the middle
    assert torch.allclose(depth[:, 0, 16, 16], torch.full((3,), 2.6), atol=2e-3)  # within 0.0002 of the pole
    assert (depth[:, 0, 0, 0] == 0).all()


def test_render_heads_is_a_function_of_seed_and_index():
    cameras = sample_cameras(7, range(6))
    whole = render_heads(7, range(6), cameras, 32)
    part = render_heads(7, [4, 2], sample_cameras(7, [4, 2]), 32)
    for all_, some in zip(whole, part, strict=True):
        assert torch.equal(all_[[4, 2]], some)
    other = render_heads(8, range(6), cameras, 32)
    assert not torch.equal(whole.images, other.images)
    assert whole.images.shape == (6, 3, 32, 32) and whole.images.dtype == torch.uint8
    assert whole.masks.shape == (6, 1, 32, 32) and whole.depth.dtype == torch.float32


def test_a_set_does_not_depend_on_its_size_or_its_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.synthetic.synthesize._IMAGES_PER_WORKER", 8)
    synthesize_heads(tmp_path / "one", 40, 16, seed=5, workers=1)
    synthesize_heads(tmp_path / "two", 12, 16, seed=5, workers=1)
    synthesize_heads(tmp_path / "pool", 40, 16, seed=5, workers=2)
    labels = {name: json.loads((tmp_path / name / "dataset.json").read_text())["labels"] for name in ("one", "two")}
    assert labels["one"][:12] == labels["two"]
    for folder in ("16", "mask"):
        for path in (tmp_path / "one" / folder).iterdir():
            twins = [tmp_path / "pool" / folder / path.name]
            twins += [tmp_path / "two" / folder / path.name] if int(path.stem) < 12 else []
            assert all(twin.read_bytes() == path.read_bytes() for twin in twins)
    assert len(list((tmp_path / "pool" / "mask").iterdir())) == 40


@pytest.mark.parametrize("backdrop", [0.0, 1.0])
def test_compositing_equals_casting_over_the_background(backdrop):
    cameras = sample_cameras(1, range(4))
    pictures = render_heads(1, range(4), cameras, 48)
    over = composite(pictures.images, pictures.masks, torch.full((4, 3), backdrop))
    for i in range(4):
        head = build_head(sample_traits(1, i))
        hits = cast(head.solids, cameras.cam2world[i].numpy(), cameras.intrinsics[i].numpy(), 48, 2)
        samples = np.full((96, 96, 3), backdrop)
        samples[hits.owner != EMPTY] = np.clip(shade(head, hits), 0.0, 1.0)
        expected = torch.from_numpy(samples.reshape(48, 2, 48, 2, 3).mean((1, 3))).permute(2, 0, 1)
        error = ((over[i] + 1) / 2 - expected).abs().max()
        assert error < 1.5 / 255  # worst seen 1.03 / 255


def test_masks_have_soft_edges_and_images_the_heads_colour_there():
    pictures = render_heads(2, range(4), sample_cameras(2, range(4)), 64)
    edge = (pictures.masks > 0) & (pictures.masks < 255)
    share = edge.float().mean()
    assert 0.01 < share < 0.15
    empty = (pictures.masks == 0).expand_as(pictures.images)
    assert (pictures.images[empty] == 255).all() and (pictures.depth[pictures.masks == 0] == 0).all()
    # White never seeps into the edge: there the darkest heads are as dark as inside.
    assert pictures.images.amax(1, keepdim=True)[edge].float().mean() < 200


def test_heads_stay_in_their_ball():
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    worst = 0.0
    for i in range(200):
        solids = build_head(sample_traits(11, i)).solids
        surface = solids.centres[:, None] + np.einsum(
            "pij,pkj->pki", solids.rotations, solids.axes[:, None] * directions
        )
        kept = (surface * solids.planes[:, None, :3]).sum(-1) <= solids.planes[:, None, 3] + 1e-9
        worst = max(worst, np.linalg.norm(surface[kept], axis=-1).max())
    assert worst < HEAD_RADIUS  # worst seen 0.4453


def test_depth_lies_on_the_head():
    cameras = sample_cameras(4, range(8))
    pictures = render_heads(4, range(8), cameras, 32)
    covered = pictures.masks == 255
    assert pictures.depth[covered].min() > 2.7 - HEAD_RADIUS and pictures.depth[covered].max() < 2.7 + HEAD_RADIUS
    relief = [d.quantile(0.9) - d.quantile(0.1) for d in (p[m] for p, m in zip(pictures.depth, covered, strict=True))]
    assert min(relief) > 0.05  # seen 0.094


def test_the_five_yaw_bins_are_filled():
    cameras = sample_cameras(0, range(1000))
    yaw, pitch = cameras.yaw_pitch(cameras.summary())
    share = torch.histc(yaw, 5, -1.1, 1.1) / 1000
    assert share.sum() > 0.999 and share.min() > 0.06  # seen 0.10, 0.25, 0.33, 0.23, 0.09
    assert pitch.abs().max() < 0.31 and 0.1 < pitch.std() < 0.16


def test_camera_options_reach_the_labels():
    cameras = sample_cameras(0, range(50), CameraSpread(radius=4.0, focal=3.0, cx=0.4, cy=0.6, roll_std=0.2))
    geometry = cameras.summary()
    assert geometry.radius == pytest.approx(4.0, abs=1e-5)
    assert cameras.intrinsics[0].flatten().tolist() == pytest.approx([3.0, 0, 0.4, 0, 3.0, 0.6, 0, 0, 1])
    right = cameras.cam2world[:, :3, 0]
    assert 0.05 < right[:, 1].std() < 0.3  # level cameras would have y = 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"radius": 0.3}, "radius"),
        ({"focal": 0.0}, "focal"),
        ({"yaw_std": -1.0}, "--yaw-std=-1.0: "),
        ({"cx": float("nan")}, "cx"),
    ],
)
def test_impossible_cameras_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        CameraSpread(**options)


def test_cameras_that_do_not_fit_are_refused():
    cameras = sample_cameras(0, range(2))
    with pytest.raises(ValueError, match=r"leading shape \[3\]"):
        render_heads(0, range(3), cameras, 16)
    skewed = cameras.intrinsics.clone()
    skewed[:, 0, 1] = 0.1
    with pytest.raises(ValueError, match="skew"):
        render_heads(0, range(2), Cameras(cameras.cam2world, skewed), 16)


def ellipsoid(centre, axes, plane=(0.0, 0.0, 0.0, 0.0)) -> Solids:
    return Solids(np.array([centre]), np.array([axes]), np.eye(3)[None], np.array([plane], dtype=np.float64))


FRONT = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]])
INTRINSICS = np.array([[4.0, 0, 0.5], [0, 4.0, 0.5], [0, 0, 1]])


def test_a_plane_cuts_the_ellipsoid_and_closes_it():
    kept_below = cast(ellipsoid((0.0, 0.0, 0.0), (0.2, 0.2, 0.2), (0, 1, 0, 0.05)), FRONT, INTRINSICS, 64, 2)
    assert kept_below.points[:, 1].max() < 0.06  # the front edge of the lid, seen from y = 0
    from_above = Cameras.look_at((0.0, 2.7, 0.1), (0.0, 0.0, 0.0), intrinsics=torch.from_numpy(INTRINSICS))
    lid = cast(
        ellipsoid((0.0, 0.0, 0.0), (0.2, 0.2, 0.2), (0, 1, 0, 0.05)), from_above.cam2world.numpy(), INTRINSICS, 64, 2
    )
    flat = np.abs(lid.points[:, 1] - 0.05) < 1e-9
    assert flat.mean() > 0.8
    assert np.allclose(lid.normals[flat], [0, 1, 0])


def test_the_windows_hold_the_whole_outline(monkeypatch):
    """Expects the same image when every solid is tried on every ray."""
    head = build_head(sample_traits(0, 3))
    camera = sample_cameras(0, [3], OFF_CENTRE)
    matrices = camera.cam2world[0].double().numpy(), camera.intrinsics[0].double().numpy()
    fast = cast(head.solids, *matrices, 48, 2)
    monkeypatch.setattr(raycast, "_boxes", lambda solids, *_: [(0, 96, 0, 96)] * len(solids.centres))
    slow = cast(head.solids, *matrices, 48, 2)
    assert np.array_equal(fast.owner, slow.owner) and np.array_equal(fast.z, slow.z)


def test_nothing_behind_the_camera_is_seen():
    assert (cast(ellipsoid((0.0, 0.0, 5.0), (0.2, 0.2, 0.2)), FRONT, INTRINSICS, 8, 2).owner == EMPTY).all()
    inside = cast(ellipsoid((0.0, 0.0, 2.7), (0.2, 0.2, 0.2)), FRONT, INTRINSICS, 8, 2)
    assert (inside.owner == EMPTY).all()  # no front face is ahead of a camera inside
