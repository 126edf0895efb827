"""Tests the one function that computes a metric: names, protocol, invariance, caches, refusals."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from metrics import MetricUnavailable, compute_metric, parse_metric, write_result
from metrics.cache import StatisticsCache
from metrics.samples import Sampling, fake_images, random_items, real_images
from tests.metrics.toys import ToyGenerator
from training.dataset import ImageDataset


@pytest.fixture(scope="module")
def dataset(data_folder):
    return ImageDataset(data_folder)


def fid(G, dataset, detector, name="fid96_full", **options):
    return compute_metric(name, G, dataset, detector=detector, **options)


@pytest.mark.parametrize(
    ("name", "kind", "count", "detector"),
    [
        ("fid200_full", "fid", 200, "inception"),
        ("fid50k_full", "fid", 50000, "inception"),
        ("fid3d_2k_full", "fid3d", 2000, "inception"),
        ("kid20k_full", "kid", 20000, "inception"),
        ("pr200k3_full", "pr", 200, "vgg"),
        ("pr20kk3_full", "pr", 20000, "vgg"),
        ("pr50k3_full", "pr", 50000, "vgg"),  # as published
        ("pr_inception128k3_full", "pr_inception", 128, "inception"),
        ("is50k", "is", 50000, "inception"),
        ("swd1k", "swd", 1000, None),
        ("view_drift64", "view_drift", 64, None),
        ("fid_yaw2k", "fid_yaw", 2000, "inception"),
        ("swd3d_2k", "swd3d", 2000, None),
        ("swd_yaw1k", "swd_yaw", 1000, None),
        ("head_check200", "head_check", 200, None),
    ],
)
def test_names(name, kind, count, detector):
    spec = parse_metric(name)
    assert (spec.kind, spec.count, spec.name) == (kind, count, name)
    assert metrics.needs_detector(name) == detector


@pytest.mark.parametrize(
    "name",
    [
        "fid",
        "fid_full",
        "fid2k",
        "fid3d2k_full",
        "swd",
        "swd0",
        "swd1",
        "swd2kk",
        "swd2m",
        "swd3d2k",
        "swd3d_1",
        "FID2k_full",
        "is9",
        "pr3k3_full",
        "pr20_full",
        "kid2k",
        "view_drift1",
        "fid_yaw",
        "head_check1",
    ],
)
def test_illegal_names(name):
    with pytest.raises(
        ValueError, match=r"fid<N>_full, fid3d_<N>_full, .*fid_yaw<N>, kid<N>_full.* swd<N>|at least \d"
    ):
        parse_metric(name)


def test_fid_sees_a_difference(dataset, tiny_detector):
    same, darker = (fid(ToyGenerator(brightness=b), dataset, tiny_detector).value for b in (0.6, 0.4))
    assert darker > 20 * same > 0
    assert darker > 1


def test_swd_sees_a_difference(dataset):
    result = compute_metric("swd200", ToyGenerator(brightness=0.6), dataset)
    assert set(result.values) == {"swd_32", "swd_16", "mean"}
    assert result.value == result.values["mean"]
    assert result.protocol["num_real"] == result.protocol["num_fake"] == 48  # as many as there are
    white = ToyGenerator(brightness=1.0)
    assert compute_metric("swd200", white, dataset).value > 2 * result.value


def test_batch_size_changes_nothing(dataset, tiny_detector):
    G = ToyGenerator()
    for name in ("swd40", "fid40_full"):
        values = [
            compute_metric(name, G, dataset, detector=tiny_detector, batch_size=b, cache=False).value
            for b in (7, 39, 40)  # 39 leaves a last batch of one
        ]
        assert values[0] > 1
        assert values == pytest.approx([values[0]] * 3, rel=1e-6)  # worst seen: swd 0, fid 1e-8


def test_seed_changes_the_samples(dataset, tiny_detector):
    values = {fid(ToyGenerator(), dataset, tiny_detector, seed=seed).value for seed in (0, 0, 1)}
    assert len(values) == 2


def test_fid3d_equals_fid_without_camera_conditioning(dataset, tiny_detector):
    G = ToyGenerator(brightness=0.4)
    plain, frontal = (fid(G, dataset, tiny_detector, name) for name in ("fid96_full", "fid3d_96_full"))
    assert plain.value > 1
    assert frontal.value == pytest.approx(plain.value, rel=1e-6)
    assert plain.protocol["conditioning"] != frontal.protocol["conditioning"]


def test_fid3d_exceeds_fid_with_a_leak(tmp_path, make_dataset, tiny_detector):
    """Where pose and colour go together in the data, a leak matches them in FID; FID3D takes the pose away."""
    gaps, values = [], []
    for leak in (0.5, 1.0, 2.0):
        dataset = ImageDataset(make_dataset(tmp_path / str(leak), count=250, leak=leak))
        names = ("fid500_full", "fid3d_500_full")
        plain, frontal = (fid(ToyGenerator(leak), dataset, tiny_detector, name).value for name in names)
        gaps.append(frontal / plain)
        values.append(frontal)
    assert 1.5 < gaps[0] < gaps[1] < gaps[2]
    assert 1 < values[0] < values[1] < values[2]


def sampling(G, dataset, **changes):
    options = {"seed": 0, "device": torch.device("cpu"), "batch_size": 16, "background": "white"}
    return Sampling(G, dataset, **{**options, "cache_dir": None, "progress": None, **changes})


def reals(dataset, count=None, **changes):
    options = sampling(ToyGenerator(), dataset, **changes)
    items = None if count is None else random_items(options, count)
    return torch.cat([images for _, images in real_images(options, items)])


def test_reals_are_composited_and_drawn_without_repetition(dataset):
    images = reals(dataset, 20)
    assert images.shape == (20, 3, 32, 32)
    assert (images[:, :, 0, 0] == 255).all()
    assert len(torch.unique(images.flatten(1), dim=0)) == 20
    black = reals(dataset, 20, background="black")
    assert (black[:, :, 0, 0] == 0).all()
    assert torch.equal(black[:, :, 16, 16], images[:, :, 16, 16])
    assert len(reals(dataset)) == len(dataset)


def test_fakes_use_cameras_of_the_data(dataset):
    seen = []

    class Spy(ToyGenerator):
        def render(self, scene, cameras, resolution=None, background=None):
            seen.append(cameras.labels[:, 0])
            return super().render(scene, cameras, resolution, background)

    list(fake_images(sampling(Spy(), dataset), 40))
    used = torch.cat(seen)
    near = (used[:, None] - torch.from_numpy(dataset.labels)).abs().amax(-1).min(1)
    assert near.values.max() == 0
    assert len(near.indices.unique()) > 15


@pytest.mark.parametrize("name", ["swd20", "fid20_full"])
def test_a_background_that_disagrees_is_refused(dataset, tiny_detector, name):
    with pytest.raises(MetricUnavailable, match=r"generated images is \[0.3, 0.8, 0.5\].* asks for \[1.0, 1.0, 1.0\]"):
        compute_metric(name, ToyGenerator(background=(0.3, 0.8, 0.5)), dataset, detector=tiny_detector)


ONE_OF_EACH = (
    "fid20_full",
    "fid3d_20_full",
    "kid20_full",
    "pr20k3_full",
    "is20",
    "swd20",
    "swd3d_20",
    "view_drift8",
    "fid_yaw8",
    "swd_yaw8",
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_no_metric_can_measure(dataset, tiny_detector, tmp_path, make_dataset, name):
    """NaN images and a data set of one image cost one line each."""
    options = {"detector": tiny_detector, "detector_vgg": tiny_detector}
    with pytest.raises(MetricUnavailable, match=r"^the generator's images hold NaN or infinite values$"):
        compute_metric(name, ToyGenerator(brightness=float("nan")), dataset, **options)
    single = ImageDataset(make_dataset(tmp_path / "one", count=1))
    with pytest.raises(MetricUnavailable, match=r"^the data set one-32 has 1 image; a metric needs at least 2$"):
        compute_metric(name, ToyGenerator(), single, **options)


def test_an_image_that_is_gone(tmp_path, make_dataset, tiny_detector):
    folder = make_dataset(tmp_path / "set", count=8)
    dataset = ImageDataset(folder)
    (folder / "00003.png").unlink()
    with pytest.raises(MetricUnavailable, match=r"00003.png"):
        compute_metric("fid8_full", ToyGenerator(), dataset, detector=tiny_detector)


def test_features_that_are_not_finite(dataset, tiny_detector):
    class Broken(torch.nn.Module):
        def forward(self, images):
            return tiny_detector.network(images) * float("inf")

    broken = metrics.Detector("broken", "broken", Broken(), 64, classifier=tiny_detector.classifier)
    for name in ONE_OF_EACH:
        if not name.startswith("swd"):
            with pytest.raises(MetricUnavailable, match=r"NaN or infinite|not finite"):
                compute_metric(name, ToyGenerator(), dataset, detector=broken, detector_vgg=broken)


def test_unfit_input_is_refused(tmp_path, dataset, make_dataset):
    G = ToyGenerator()
    with pytest.raises(ValueError, match="white, black"):
        compute_metric("swd20", G, dataset, background="green")
    G.resolution = 64
    with pytest.raises(MetricUnavailable, match="64 px, the data set has 32 px"):
        compute_metric("swd20", G, dataset)


def test_without_masks_the_reals_stay_as_stored(tmp_path, make_dataset):
    dataset = ImageDataset(make_dataset(tmp_path / "plain", masked=False))
    result = compute_metric("swd20", ToyGenerator(), dataset)
    assert "as stored" in result.protocol["background"]


def test_cache_by_content(tmp_path, data_folder, tiny_detector):
    """One image changed in place is a miss, and so is another background; the same content elsewhere is a hit."""
    root = tmp_path / "set"
    shutil.copytree(data_folder.parent, root)

    def measure(folder, **options):
        result = fid(
            ToyGenerator(), ImageDataset(folder), tiny_detector, "fid20_full", cache_dir=tmp_path / "c", **options
        )
        return result.real_statistics.split(":")[0], result.value

    first = measure(root / "32")
    assert first[0] == "cache miss"
    assert measure(root / "32") == ("cache hit", first[1])
    shutil.copytree(root, tmp_path / "elsewhere")
    assert measure(tmp_path / "elsewhere" / "32") == ("cache hit", first[1])
    assert measure(root / "32", background="black")[0] == "cache miss"
    assert measure(root / "32", cache=False) == ("computed", first[1])

    path = root / "32" / "00005.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[16, 16] = 255 - pixels[16, 16]
    Image.fromarray(pixels).save(path)
    changed = measure(root / "32")
    assert changed[0] == "cache miss"
    assert changed[1] != first[1]


def test_a_damaged_cache_file_is_a_miss(tmp_path, dataset, tiny_detector):
    def measure():
        return fid(ToyGenerator(), dataset, tiny_detector, "fid20_full", cache_dir=tmp_path / "c")

    value = measure().value
    (file,) = (tmp_path / "c").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    again = measure()
    assert again.real_statistics.startswith("cache miss") and again.value == value
    assert measure().real_statistics == f"cache hit: {file}"


def test_processes_that_write_one_file_at_once(tmp_path):
    """Whoever reads meanwhile gets whole arrays or nothing, and no partial file stays."""

    def work(number):
        cache = StatisticsCache(tmp_path, "tiny", {"data": "x"})
        seen = []
        for _ in range(20):
            cache.save(mean=np.full(20_000, number))
            arrays = cache.load()
            seen.append(arrays is not None and len(set(arrays["mean"].tolist())) == 1)
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert all(all(seen) for seen in pool.map(work, range(4)))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_cannot_be_written_changes_no_value(tmp_path, dataset, tiny_detector):
    (tmp_path / "file").write_text("in the way")
    options = {"detector": tiny_detector, "name": "fid20_full"}
    blocked = fid(ToyGenerator(), dataset, cache_dir=tmp_path / "file", **options)
    assert blocked.real_statistics.startswith("cache miss, and not kept: ")
    assert blocked.value == fid(ToyGenerator(), dataset, cache=False, **options).value


def test_result_line(tmp_path, dataset, tiny_detector):
    seen = []
    result = fid(ToyGenerator(), dataset, tiny_detector, "fid20_full", progress=lambda *step: seen.append(step))
    assert seen[-1] == ("fakes", 20, 20) and ("reals", 48, 48) in seen
    for _ in range(2):
        write_result(result, tmp_path, tmp_path / "network-snapshot-000001.pkl")
    lines = (tmp_path / "metric-fid20_full.jsonl").read_text().splitlines()
    assert len(lines) == 2
    line = json.loads(lines[0])
    assert line["results"] == {"fid20_full": result.value}
    assert line["snapshot_pkl"] == "network-snapshot-000001.pkl"
    assert line["note"].startswith("tiny detector")
    assert set(line) >= {"metric", "total_time", "total_time_str", "num_gpus", "timestamp", "protocol"}
    protocol = line["protocol"]
    assert protocol["data_key"] == dataset.content_key()
    expected = {
        "background": "white",
        "truncation_psi": 1.0,
        "mirror": False,
        "seed": 0,
        "weights": "ema",
        "num_real": 48,
    }
    assert {key: protocol[key] for key in expected} == expected
