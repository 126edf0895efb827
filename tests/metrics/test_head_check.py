"""Tests head_check: verdict and triangulation by hand, the finder on ray-cast truth, and that faults are seen."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from benchmarks.head_check import RayCaster
from benchmarks.landmarks import AREAS
from gaussian import Cameras, Geometry
from metrics import MetricUnavailable, compute_metric
from metrics.head_check import HEAD_HEIGHT, NEAR, PLACES, judge, triangulate
from metrics.landmarks import KINDS, MAX_PEAKS, WEIGHTS, Found, LandmarkNet, load_finder, read_network, save_weights
from tests.metrics.toys import ToyGenerator, write_dataset
from training.data.synthetic.expression_features import render_expression_truths
from training.data.synthetic.features import FAULTS, features_of, render_truths
from training.data.synthetic.heads import build_head
from training.data.synthetic.synthesize import sample_cameras, synthesize_heads
from training.data.synthetic.traits import sample_traits
from training.dataset import ImageDataset

CENTRE = (0.0, 0.0, 0.0)
HEADS = 40


def orbit(*yaw: float) -> Cameras:
    geometry = Geometry(CENTRE, CENTRE, 2.7, ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0)))
    return geometry.orbit(torch.tensor(yaw, dtype=torch.float32).deg2rad())


# ---------------------------------------------------------------- triangulation


def test_rays_through_one_point_meet_there():
    points = torch.tensor(PLACES)
    cameras = orbit(*np.linspace(-60, 60, 7)).reshape(1, 7)
    places, _ = cameras.project(points)
    known = torch.ones(1, 7, 4, dtype=torch.bool)
    known[0, 2:, 1] = False  # two views are too few
    known[0, :4, 2] = False  # three are not
    found, error = triangulate(places, known, cameras)
    torch.testing.assert_close(found[0, [0, 2, 3]].float(), points[[0, 2, 3]], rtol=0, atol=1e-5)
    assert error[0, 1].isnan() and float(error[0, [0, 2, 3]].max()) < 1e-5


def test_the_error_is_that_of_the_places():
    """Noise of s in units of the picture is s distance / focal in the world, whatever the number of views."""
    cameras = orbit(*np.linspace(-60, 60, 7)).reshape(1, 7).expand(4000, 7)
    places, _ = cameras.project(torch.tensor(PLACES[3:]))
    noise = 0.01 * torch.randn(places.shape, generator=torch.Generator().manual_seed(0))
    for views in (3, 7):
        known = (torch.arange(7) < views)[None, :, None].expand(4000, 7, 1)
        _, error = triangulate(places + noise, known, cameras)
        assert float(error.square().mean().sqrt()) == pytest.approx(0.01 * 2.7 / 4.2647, rel=0.02)


# ---------------------------------------------------------------- the verdict


def finding(cameras: Cameras, **changes: list[tuple[float, float]]) -> Found:
    """What a finder says that sees the mean head, but for the places of a kind in `changes`."""
    places, _ = cameras.project(torch.tensor(PLACES))
    peaks = {"eye": places[0, :2].tolist(), "mouth": places[0, 2:3].tolist(), "chin": places[0, 3:].tolist()} | changes
    scores, at = torch.zeros(1, len(KINDS), MAX_PEAKS), torch.zeros(1, len(KINDS), MAX_PEAKS, 2)
    for kind, name in enumerate(KINDS):
        for k, place in enumerate(peaks[name]):
            scores[0, kind, k], at[0, kind, k] = 0.9, torch.tensor(place)
    return Found(scores, at, torch.nn.functional.normalize(cameras.positions, dim=-1))


def verdict(yaw: float, **changes: list[tuple[float, float]]):
    cameras = orbit(yaw)
    made = judge(finding(cameras, **changes), cameras, CENTRE)
    return bool(made.eyes), bool(made.mouth), made


def test_what_a_face_must_show():
    left, right = (place for place in orbit(0.0).project(torch.tensor(PLACES))[0][0, :2].tolist())
    assert verdict(0.0)[:2] == (True, True)
    assert verdict(0.0, eye=[left])[:2] == (False, True)
    assert verdict(0.0, eye=[right, left])[:2] == (True, True)
    assert verdict(0.0, eye=[left, right, [0.5, 0.3]])[:2] == (False, True)
    assert verdict(0.0, eye=[left, [right[0] + 1.1 * NEAR, right[1]]])[:2] == (False, True)
    assert verdict(0.0, eye=[left, [left[0], left[1] + 0.08]])[:2] == (False, True)  # one over the other
    assert verdict(0.0, mouth=[])[:2] == (True, False)
    assert verdict(0.0, mouth=[[0.5, 0.6], [0.5, 0.7]])[:2] == (True, False)


def test_the_eye_that_is_turned_away_may_be_hidden():
    for yaw, far, near in ((50.0, 0, 1), (-50.0, 1, 0)):
        places = orbit(yaw).project(torch.tensor(PLACES))[0][0].tolist()
        assert verdict(yaw)[0] and verdict(yaw, eye=[places[near]])[0] and not verdict(yaw, eye=[places[far]])[0]
        assert not verdict(0.7 * yaw, eye=[orbit(0.7 * yaw).project(torch.tensor(PLACES))[0][0, near].tolist()])[0]


def test_the_pose_is_the_angle_between_two_cameras():
    cameras = orbit(20.0)
    found = dataclasses.replace(finding(cameras), directions=torch.nn.functional.normalize(orbit(-15.0).positions))
    assert float(judge(found, cameras, CENTRE).pose_deg) == pytest.approx(35, abs=1e-3)
    assert verdict(20.0)[2].pose_deg < 0.05


def test_the_mean_head_is_that_of_the_data():
    points = np.array([[f.point for f in features_of(build_head(sample_traits(3, i)))] for i in range(200)])
    assert np.abs(points.mean(0) - PLACES).max() < 3e-3
    assert np.abs(points - PLACES).max() < 0.5 * NEAR * 2.7 / 4.2647  # so that a sound head is never out of place
    assert points[:, :, 1].min(1).mean() == pytest.approx(PLACES[3][1], abs=3e-3)  # the chin is the lowest
    assert pytest.approx(0.47) == HEAD_HEIGHT


# ---------------------------------------------------------------- the finder


def test_weights_are_small_and_free_of_pickle(tmp_path):
    assert WEIGHTS.stat().st_size < 1_000_000
    network = LandmarkNet()
    save_weights(network, tmp_path / "weights.npz")
    again = read_network(tmp_path / "weights.npz")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def test_an_eye_is_judged_by_what_is_near_it():
    """17 x 17 px decide, whatever the rest of the picture shows."""
    network = load_finder(torch.device("cpu")).network
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network(images)[0][0, 0, 16, 16].backward()
    rows, columns = images.grad.abs().sum((0, 1)).nonzero().unbind(1)
    assert rows.min() >= 24 and rows.max() <= 40 and columns.min() >= 24 and columns.max() <= 40


@pytest.fixture(scope="module", params=["heads", "expressions"])
def truths(request):
    labels = sample_cameras(901, range(HEADS)).labels.double().numpy()
    if request.param == "heads":
        found = render_truths(901, range(HEADS), ["none"] * HEADS, labels, 64)
    else:
        found = render_expression_truths(901, range(HEADS), labels, 64)
    return found, Cameras.from_labels(torch.tensor(labels))


def test_finds_what_is_seen_where_it_is(truths):
    found, cameras = truths
    pictures = torch.from_numpy(found.masks / 255 * found.images + 255 - found.masks).round().to(torch.uint8)
    seen = load_finder(torch.device("cpu"))(pictures)
    missed, errors = 0, []
    for n, kind, place, area in zip(
        np.repeat(np.arange(HEADS), found.kinds.shape[1]), *(x.reshape(-1, *x.shape[2:]) for x in
        (found.kinds, found.places, found.areas)), strict=True,
    ):  # fmt: skip
        if kind < 0 or area < AREAS[1]:
            continue
        away = (seen.places[n, kind] - torch.from_numpy(place)).norm(dim=-1)[seen.scores[n, kind] > 0.4]
        errors.append(64 * float(away.min()) if len(away) else math.inf)
        missed += errors[-1] > 3
    assert missed <= 2 and float(np.median(errors)) < 0.5, (missed, np.median(errors))
    way = torch.nn.functional.normalize(cameras.positions.float(), dim=-1)
    assert float((way * seen.directions).sum(1).acos().rad2deg().mean()) < 6


# ---------------------------------------------------------------- the metric


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return ImageDataset(synthesize_heads(tmp_path_factory.mktemp("heads") / "set", 100, 64, seed=1, workers=1).images)


def values(dataset, fault, **options):
    return compute_metric("head_check24", RayCaster(dataset.geometry, fault), dataset, cache=False, **options).values


@pytest.fixture(scope="module")
def sound(dataset):
    return values(dataset, "none")


def test_sound_heads_pass(sound):
    assert sound["share"] == sound["head_check24"] > 0.9 and sound["real_share"] > 0.95  # 0.96 of 100, 0.985 of 400
    assert sound["pose_deg"] < 6 and sound["drift"] < 0.012 and sound["followed"] > 0.95


@pytest.mark.parametrize("fault", [fault for fault in FAULTS[1:] if fault != "two mouths"] + ["blur 3 px", "noise 0.3"])
def test_faults_of_the_face_are_seen(dataset, sound, fault):
    assert values(dataset, fault)["share"] < 0.6 * sound["share"]


@pytest.mark.parametrize(
    ("fault", "figure"), [("mirrored", "pose_deg"), ("billboard", "drift"), ("plane", "pose_deg"), ("swapped", "drift")]
)
def test_faults_of_the_geometry_are_seen(dataset, sound, fault, figure):
    found = values(dataset, fault)
    assert found.get(figure, math.inf) > 1.5 * sound[figure]


def test_the_batch_size_changes_nothing(dataset, sound):
    other = values(dataset, "none", batch_size=9)
    assert other == pytest.approx(sound, rel=1e-4)


def test_refuses_what_it_does_not_know(tmp_path, make_dataset, dataset):
    small = ImageDataset(make_dataset(tmp_path / "discs"))
    with pytest.raises(MetricUnavailable, match="at least 64 px; these have 32"):
        compute_metric("head_check8", ToyGenerator(), small)
    labels = sample_cameras(5, range(8)).labels.numpy()
    faceless = render_truths(5, range(8), ["no face"] * 8, labels, 64)
    images, masks = torch.from_numpy(faceless.images), torch.from_numpy(faceless.masks)
    folder = write_dataset(tmp_path / "faceless", images, masks, Cameras.from_labels(torch.from_numpy(labels)))
    with pytest.raises(MetricUnavailable, match="finds eyes and a mouth in 0% of the reals"):
        compute_metric("head_check8", RayCaster(dataset.geometry), ImageDataset(folder))
