"""Compares features and values with torch-fidelity, an independent and widely used implementation.

It runs with SPLATGAN_TORCH_FIDELITY=1 alone, as it needs a network once and a minute: the package is installed into a
temporary folder of its own. It imports torchvision, which none of the code compared here uses; an empty stand-in takes
its place.
"""

import importlib
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from metrics import inception, load_detector, vgg
from metrics.frechet import frechet_distance
from metrics.inception_score import SplitScores
from metrics.kid import kid_of
from metrics.precision_recall import precision_recall

REQUIREMENT = "torch-fidelity==0.4.0"
SWITCH = "SPLATGAN_TORCH_FIDELITY"
INSTALL_TIMEOUT_S = 120

pytestmark = pytest.mark.skipif(SWITCH not in os.environ, reason=f"needs {SWITCH}=1 and a package index")


class StandIn(ModuleType):
    """Makes a module whose every attribute is an empty class."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture(scope="module")
def fidelity(tmp_path_factory):
    """Returns fidelity, where fidelity("metric_kid") is that module of torch-fidelity."""
    folder = tmp_path_factory.mktemp("torch-fidelity")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode:
        pytest.skip(f"{REQUIREMENT} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            patch.setitem(sys.modules, name, StandIn(name))
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
        yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in set(sys.modules) - before:
        if name.startswith("torch_fidelity"):
            del sys.modules[name]


def pictures(count, size=64):
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


def he_initialised():
    """Draws plain He weights (He et al. 2015), and batch statistics that are not the identity."""
    network, generator = inception.Inception2015(), torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.dtype.is_floating_point and not name.endswith("bn.weight"):
            value.uniform_(generator=generator).add_(0.5 if name.endswith("running_var") else 0)
    return network


@pytest.mark.parametrize("make", [he_initialised, inception.untrained])
@pytest.mark.parametrize("size", [64, 299, 400])
def test_inception(fidelity, tmp_path, make, size):
    """Both read one weights file; features and logits must agree."""
    path = tmp_path / "weights.pth"
    torch.save(make().state_dict(), path)
    extractor = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )
    detector = load_detector(str(path))
    images = pictures(3, size)
    with torch.no_grad():
        features, logits = extractor(images)
    ours = detector(images)
    assert features.norm() > 1
    assert (ours - features).norm() < 1e-5 * features.norm()  # worst seen 0
    spread = features - features.mean(0)
    assert (ours - ours.mean(0) - spread).norm() < 1e-4 * spread.norm()  # worst seen 0
    assert (ours @ detector.classifier.T - logits).norm() < 1e-5 * logits.norm()  # worst seen 0


def published_vgg():
    """Runs the layers of VGG-16, written down once more."""
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    features = []
    for i in range(13):
        features += [nn.Conv2d(channels[i], channels[i + 1], 3, padding=1), nn.ReLU()]
        if i in (1, 3, 6, 9, 12):
            features.append(nn.MaxPool2d(2))
    dense = [nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*dense, nn.Linear(4096, 1000))

        def forward(self, x):
            return self.classifier(self.features(x).flatten(1))

    return Model()


def test_vgg(fidelity, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(vgg.untrained().state_dict(), path)
    module = fidelity("feature_extractor_vgg16")

    def normalize(x, mean, std, inplace):
        return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    monkeypatch.setattr(module.torchvision, "models", ModuleType("models"), raising=False)
    module.torchvision.models.vgg16 = published_vgg
    monkeypatch.setattr(module.torchvision.transforms.functional, "normalize", normalize, raising=False)
    extractor = module.FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(path))
    images = pictures(2, 100)
    with torch.no_grad():
        (features,) = extractor(images)
    assert features.norm() > 1
    ours = load_detector(str(path), kind="vgg")(images)
    assert (ours - features).norm() < 1e-5 * features.norm()  # worst seen 1.3e-6


@pytest.fixture(scope="module")
def features():
    """Draws two sets of correlated features that are not far apart: float32 [1200, 256] and [900, 256]."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(256, 256, generator=generator) / 16
    real, fake = (torch.randn(count, 256, generator=generator) @ mix for count in (1200, 900))
    return real + 0.5, 0.9 * fake + 0.6


def test_kid(fidelity, features):
    """It gets the subsets that torch-fidelity draws from the same seed, with NumPy's legacy generator."""
    options = {"kid_subsets": 100, "kid_subset_size": 500, "rng_seed": 7, "verbose": False}
    theirs = fidelity("metric_kid").kid_features_to_metric(*(x.double() for x in features), **options)
    draw = np.random.RandomState(7)
    subsets = [tuple(torch.from_numpy(draw.choice(len(x), 500, replace=False)) for x in features) for _ in range(100)]
    mean, std = kid_of(*features, subsets)
    assert theirs["kernel_inception_distance_mean"] > 0.01
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)  # worst seen 2e-15
    assert std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_fid(fidelity, features):
    """Their covariance divides by N - 1, that of the published FID by N."""
    module = fidelity("metric_fid")
    statistics = [module.fid_features_to_statistics(x.double()) for x in features]
    theirs = module.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert theirs > 1
    ours = frechet_distance(*(s[key] for s in statistics for key in ("mu", "sigma")))
    assert ours == pytest.approx(theirs, rel=1e-6)  # worst seen 1.4e-12


def test_inception_score(fidelity):
    logits = 2 * torch.randn(503, 100, generator=torch.Generator().manual_seed(0))
    theirs = fidelity("metric_isc").isc_features_to_metric(logits, splits=10, shuffle=False)
    scores = SplitScores(503, 100)
    for start in range(0, 503, 64):
        scores.add(range(start, min(start + 64, 503)), logits[start : start + 64])
    expected = (theirs["inception_score_mean"], theirs["inception_score_std"])
    assert expected[0] > 2
    assert scores.mean_std() == pytest.approx(expected, rel=1e-6)


def test_precision_and_recall(fidelity, features):
    real, fake = features
    theirs = fidelity("metric_prc").calculate_precision_recall_full(fake, real, neighborhood=3)
    assert all(0.05 < value < 0.99 for value in theirs)
    assert precision_recall(real, fake) == pytest.approx(theirs, abs=2 / 900)  # ties at the edge of a ball may round
