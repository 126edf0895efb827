"""Tests what view drift, SWD3D, and FID and SWD by yaw answer for generators whose fault is known."""

import pytest
import torch

from metrics import MetricUnavailable, compute_metric, write_result
from tests.metrics.toys import ToyGenerator
from training.dataset import ImageDataset


@pytest.fixture(scope="module")
def dataset(data_folder):
    return ImageDataset(data_folder)


def drift(G, dataset, **options):
    return compute_metric("view_drift20", G, dataset, cache=False, **options)


class CameraOnly(ToyGenerator):
    """Lets the camera alone decide the identity."""

    def mapping(self, z, cameras=None, psi=1.0):
        ws = torch.zeros(len(z), 1, self.z_dim)
        ws[:, 0, 0] = cameras.positions[:, 0] * 3
        return ws


def test_a_consistent_generator_does_not_drift(dataset, tiny_detector):
    result = drift(ToyGenerator(), dataset, detector=tiny_detector)
    assert result.value == 0 and result.values == {"view_drift20": 0, "features": 0}


def test_drift_grows_with_the_leak(dataset, tiny_detector):
    results = [drift(ToyGenerator(leak), dataset, detector=tiny_detector) for leak in (0.1, 0.3, 1.0, 3.0)]
    for name in ("view_drift20", "features"):
        values = [result.values[name] for result in results]
        assert values == sorted(values) and 0.01 < values[0] < 0.5 * values[-1]
    whole = drift(CameraOnly(), dataset)
    assert whole.value == pytest.approx(1, abs=0.15)  # 1.07
    assert set(whole.values) == {"view_drift20"}  # without a detector


def test_drift_against_its_definition(dataset):
    """Two latents of a generator of plain colours have 2 x 28 distances within and 8 between."""

    class Plain(ToyGenerator):
        def render(self, scene, cameras, resolution=None, background=None):
            out = super().render(scene, cameras, resolution, background)
            self.seen.append(out.image[:, 0])
            return out

    G = Plain(0.8)
    G.seen = []
    value = compute_metric("view_drift2", G, dataset, batch_size=5, cache=False).value
    images = ((torch.cat(G.seen) + 1) * 127.5).round().double().view(2, 8, -1)

    def rms(a, b):
        return float((a - b).square().mean().sqrt())

    within = [rms(images[z, i], images[z, j]) for z in range(2) for i in range(8) for j in range(i)]
    between = [rms(images[0, i], images[1, i]) for i in range(8)]
    expected = (sum(within) / 56) / (sum(between) / 8)
    assert expected > 0.1
    assert value == pytest.approx(expected, rel=1e-6)


def test_drift_of_one_face_for_all(dataset):
    class Same(ToyGenerator):
        def mapping(self, z, cameras=None, psi=1.0):
            return torch.zeros(len(z), 1, self.z_dim)

    with pytest.raises(MetricUnavailable, match="same picture"):
        drift(Same(), dataset)


class BadOnOneSide(ToyGenerator):
    """Is grey where the camera stands at world x under -0.5."""

    def render(self, scene, cameras, resolution=None, background=None):
        out = super().render(scene, cameras, resolution, background)
        side = cameras.positions[:, 0, 0] < -0.5
        grey = out.alpha * 0.2 + (1 - out.alpha)
        out.rgb[side] = grey.expand_as(out.rgb)[side]
        return out


def test_fid_by_yaw_finds_the_bad_side(tmp_path, make_dataset, tiny_detector):
    dataset = ImageDataset(make_dataset(tmp_path / "set", count=103, brightness=0.6))
    result = compute_metric("fid_yaw40", BadOnOneSide(brightness=0.6), dataset, detector=tiny_detector)
    bins = list(result.values.values())
    assert min(bins[0], 1) == 1 and bins[0] > 5 * max(bins[2:])
    assert result.value == pytest.approx(sum(bins) / 5)
    protocol = result.protocol
    assert protocol["reals_per_bin"] == [21, 21, 21, 20, 20]
    edges = protocol["yaw_edges_deg"]
    assert edges == sorted(edges) and edges[0] > -29 and edges[5] < 29 and edges[5] - edges[0] > 50
    assert protocol["bins_with_few_reals"] == [1, 2, 3, 4, 5] and "under 500 reals in bin 1" in result.note

    line = write_result(result, tmp_path / "run", "network-snapshot-000007.pkl")
    assert line["results"]["fid_yaw40"] == result.value
    picture = tmp_path / "run" / "metric-fid_yaw40-network-snapshot-000007.png"
    assert picture.stat().st_size > 5000


def test_swd3d_is_swd_bit_for_bit_without_camera_conditioning(dataset):
    plain, frontal = (compute_metric(name, ToyGenerator(), dataset) for name in ("swd40", "swd3d_40"))
    assert plain.value > 1 and frontal.values == plain.values
    assert plain.protocol.pop("conditioning") == "the rendering camera"
    assert frontal.protocol.pop("conditioning") == "the data's frontal camera"
    assert frontal.protocol == plain.protocol


def test_swd3d_exceeds_swd_with_a_leak(tmp_path, make_dataset):
    """Where pose and colour go together in the data, a leak matches them in SWD; SWD3D takes the pose away."""
    gaps = []
    for leak in (1.0, 2.0, 4.0):
        dataset = ImageDataset(make_dataset(tmp_path / str(leak), count=100, leak=leak))
        plain, frontal = (compute_metric(name, ToyGenerator(leak), dataset).value for name in ("swd100", "swd3d_100"))
        gaps.append(frontal / plain)
    assert 1.1 < gaps[0] < gaps[1] < gaps[2], gaps  # 1.15, 1.40, 1.68


def test_swd_by_yaw_finds_the_bad_side(tmp_path, make_dataset):
    dataset = ImageDataset(make_dataset(tmp_path / "set", count=103, brightness=0.6))
    good, bad = (compute_metric("swd_yaw40", G(brightness=0.6), dataset) for G in (ToyGenerator, BadOnOneSide))
    for result in (good, bad):
        assert list(result.values) == [f"swd_yaw_bin{b}" for b in range(1, 6)]
        assert result.value == pytest.approx(sum(result.values.values()) / 5)
        assert result.protocol["num_real"] == result.protocol["num_fake"] == 100  # 20 a bin: the smallest has no more
    ratios = [bad.values[name] / value for name, value in good.values.items()]
    assert min(ratios[:2]) > 1.5 and ratios[2:] == [1, 1, 1], ratios
    with pytest.raises(MetricUnavailable, match="8 images do not fill 5 yaw bins"):
        compute_metric("swd_yaw8", ToyGenerator(), ImageDataset(make_dataset(tmp_path / "few", count=8)))

    write_result(bad, tmp_path / "run", "network-snapshot-000007.pkl")
    assert (tmp_path / "run" / "metric-swd_yaw40-network-snapshot-000007.png").stat().st_size > 5000
