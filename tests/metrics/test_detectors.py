"""Tests the Inception network and the errors of `load_detector`."""

import hashlib

import pytest
import torch

from metrics import MetricUnavailable, load_detector
from metrics.inception import Inception2015, resize_tf1, untrained
from metrics.vgg import VGG16


@pytest.fixture(scope="module")
def network():
    return untrained()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory, network):
    """Writes a file that is named after its own hash, as the published ones are."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({k: v for k, v in network.state_dict().items() if "num_batches" not in k}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"pt_inception-2015-12-05-{digest[:8]}.pth"))


def images(count=4, seed=0):
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear") * 255).to(torch.uint8)


def test_names_and_shapes_of_the_published_weights():
    state = Inception2015().state_dict()
    weights = {name for name in state if name.endswith("conv.weight")}
    assert len(weights) == 94
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Conv2d_4a_3x3.conv.weight"].shape == (192, 80, 3, 3)
    assert state["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3b.bn.running_var"].shape == (384,)
    assert state["Mixed_7a.branch7x7x3_4.conv.weight"].shape == (192, 192, 3, 3)
    assert sum(v.numel() for n, v in state.items() if "num_batches" not in n) == 23_885_392


def test_resize_of_tensorflow_1():
    x = torch.rand(1, 2, 5, 7)
    fast = resize_tf1(x, 11)
    for i in range(11):
        for j in range(11):
            y, z = i * 5 / 11, j * 7 / 11
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, 4), min(z0 + 1, 6)
            top = x[0, :, y0, z0] * (1 - z + z0) + x[0, :, y0, z1] * (z - z0)
            low = x[0, :, y1, z0] * (1 - z + z0) + x[0, :, y1, z1] * (z - z0)
            torch.testing.assert_close(fast[0, :, i, j], top * (1 - y + y0) + low * (y - y0), rtol=0, atol=1e-6)
    same = torch.rand(1, 1, 9, 9)
    assert torch.equal(resize_tf1(same, 9), same)


def test_untrained_features_vary_between_images(network):
    features = network(images())
    assert features.shape == (4, 2048) and features.dtype == torch.float32
    assert 0.3 < features.std(0).mean() < 3  # 0.7
    assert torch.equal(untrained().Mixed_6a.branch3x3.conv.weight, network.Mixed_6a.branch3x3.conv.weight)


def test_a_detector_is_in_channels_last_and_computes_the_same(network):
    """Measured 2.7e-5 of the features' norm, in a network that magnifies rounding."""
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector = load_detector("untrained")
    assert detector.network.Mixed_6a.branch3x3.conv.weight.is_contiguous(memory_format=torch.channels_last)
    found, expected = detector(images), network(images)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_untrained_is_marked():
    detector = load_detector("untrained")
    assert "untrained" in detector.name and "untrained" in detector.key and "not comparable" in detector.note


def test_weights_from_a_file(weights_file, monkeypatch):
    monkeypatch.setenv("SPLATGAN_DETECTOR", str(weights_file))
    detector = load_detector()
    assert detector.note is None and detector.name == weights_file.stem
    batch = images(2)
    assert torch.equal(detector(batch), load_detector("untrained")(batch))


def test_weights_from_the_download_cache(weights_file, monkeypatch, tmp_path):
    """An earlier run or a hand may have put the published file there; its name's hash is checked as anywhere."""
    folder = tmp_path / "cache" / "downloads"
    folder.mkdir(parents=True)
    published = folder / "0123-weights-inception-2015-12-05-6726825d.pth"
    published.write_bytes(weights_file.read_bytes()[:1000])
    assert "expected 6726825d" in unavailable(None)
    published.unlink()
    (folder / "0123-vgg16-397923af.pth").touch()
    assert "it needs the weights of the 2015 Inception network" in unavailable(None)


def test_tiny():
    detector = load_detector("tiny")
    batch = images(32)
    features = detector(batch)
    assert features.shape == (32, 64) and features.dtype == torch.float32
    assert 0.3 < features.std(0).mean() < 3  # 1.0
    assert torch.equal(load_detector("tiny")(batch), features)
    assert "tiny" in detector.name and "tiny" in detector.key and "not comparable" in detector.note
    large = torch.nn.functional.interpolate(batch.float(), (128, 128)).to(torch.uint8)
    torch.testing.assert_close(detector(large)[:, ::2], features[:, ::2], rtol=0, atol=1)  # sizes agree about


def test_names_and_shapes_of_vgg():
    with torch.device("meta"):
        network = VGG16()
    state = network.state_dict()
    assert state["features.0.weight"].shape == (64, 3, 3, 3) and state["features.28.bias"].shape == (512,)
    assert state["classifier.0.weight"].shape == (4096, 25088) and state["classifier.6.weight"].shape == (1000, 4096)
    assert sum(v.numel() for v in state.values()) == 138_357_544
    assert network(torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta")).shape == (2, 4096)


def test_weights_from_an_address(weights_file):
    detector = load_detector(weights_file.as_uri())
    assert detector.name == weights_file.stem
    assert load_detector(detector) is detector


def unavailable(source):
    with pytest.raises(MetricUnavailable) as caught:
        load_detector(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_one_line_per_defect(tmp_path, weights_file):
    assert "--detector=PATH|URL" in unavailable(None)
    assert "--detector=nowhere.pth: no such file" in unavailable("nowhere.pth")
    assert "could not download" in unavailable((tmp_path / "absent.pth").as_uri())
    assert "must start with" in unavailable("ftp://host/weights.pth")

    half = tmp_path / weights_file.name
    half.write_bytes(weights_file.read_bytes()[:100_000])
    assert "damaged or not what its name says" in unavailable(str(half))
    assert "does not load" in unavailable(str(half.rename(tmp_path / "half.pth")))

    torch.save([1, 2], tmp_path / "list.pth")
    assert "no state dict" in unavailable(str(tmp_path / "list.pth"))
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert "is not the 2015 Inception network" in unavailable(str(tmp_path / "other.pth"))


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_the_file_never_runs(tmp_path, capsys):
    torch.save({"x": Payload()}, tmp_path / "evil.pth")
    assert "does not load" in unavailable(str(tmp_path / "evil.pth"))
    assert "executed" not in capsys.readouterr().out
