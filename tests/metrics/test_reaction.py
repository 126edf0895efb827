"""Tests that metrics react: what makes images worse makes the value worse, step by step."""

import pytest
import torch
import torch.nn.functional as F

from metrics import compute_metric
from tests.metrics.toys import ToyGenerator
from training.dataset import ImageDataset

DISTANCES = ("fid96_full", "fid3d_96_full", "kid96_full")


class Spoilt(ToyGenerator):
    """Blurs its images by a box of `width` pixels or mixes them with a share of `noise`."""

    def __init__(self, width=1, noise=0.0):
        super().__init__(brightness=0.6)
        self.width, self.noise = width, noise

    def render(self, scene, cameras, resolution=None, background=None):
        out = super().render(scene, cameras, resolution, background)
        image = F.pad(out.rgb[:, 0], [self.width // 2] * 4, mode="replicate")
        image = F.avg_pool2d(image, self.width, stride=1)
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
        out.rgb[:, 0] = (1 - self.noise) * image + self.noise * noise
        out.alpha[:] = 1  # the background is no longer what was asked for
        return out


@pytest.fixture(scope="module")
def dataset(data_folder):
    return ImageDataset(data_folder)


@pytest.fixture(scope="module")
def measure(dataset, tiny_detector):
    def value(name, **fault):
        options = {"detector": tiny_detector, "detector_vgg": tiny_detector, "cache": False}
        return compute_metric(name, Spoilt(**fault), dataset, **options).value

    return value


@pytest.mark.parametrize("name", [*DISTANCES, "swd48"])
def test_noise_is_far(measure, name):
    clean, noise = measure(name), measure(name, noise=1.0)
    assert noise > 1 and noise > 5 * abs(clean)  # SWD 220 against 26; FID 7341 against 2.0


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("faults", [[{"width": w} for w in (1, 3, 5, 9)], [{"noise": n} for n in (0, 0.1, 0.3, 0.6)]])
def test_grows_with_blur_and_noise(measure, name, faults):
    values = [measure(name, **fault) for fault in faults]
    assert values == sorted(values)
    assert values[1] > 5 and values[-1] > 10 * abs(values[0])  # FID 2.0, 32, 38, 43 and 2.0, 11, 89, 607


@pytest.mark.parametrize("name", ["pr96k3_full", "pr_inception96k3_full"])
def test_precision_and_recall_fall(measure, name):
    good, bad = measure(name), measure(name, noise=0.6)
    assert good > 0.6 and bad == 0


def test_the_score_of_one_picture_is_one(dataset, tiny_detector):
    class Same(ToyGenerator):
        def render(self, scene, cameras, resolution=None, background=None):
            out = super().render(scene, cameras, resolution, background)
            out.rgb[:] = out.rgb[:1]
            out.alpha[:] = 1
            return out

    varied, same = (
        compute_metric("is96", G, dataset, detector=tiny_detector, batch_size=96).value
        for G in (ToyGenerator(), Same())
    )
    assert same == pytest.approx(1, rel=1e-6) and varied > 1.05
