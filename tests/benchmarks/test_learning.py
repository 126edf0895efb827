"""Tests what benchmarks.learning says of things that are seen from all around."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import learning
from training.data.synthetic.synthesize import render_cars, synthesize_heads
from training.dataset import ImageDataset
from training.images import composite

CARS = 120


class TurnedCars:
    """Stands in for a generator: ray-cast cars of other identities, turned about their vertical axis."""

    z_dim = 4

    def __init__(self, geometry, degrees):
        self.geometry, self.turn = geometry, math.radians(degrees)

    def mapping(self, z, cameras):
        return z

    def synthesis(self, z):
        return z

    def render(self, scene, cameras):
        yaw, pitch = cameras[:, 0].yaw_pitch(self.geometry)
        turned = self.geometry.orbit(yaw + self.turn, pitch)
        images, masks, _ = render_cars(5, range(len(scene)), turned, 32)
        pictures = composite(torch.as_tensor(images), torch.as_tensor(masks), torch.ones(len(scene), 3))
        return SimpleNamespace(image=pictures[:, None])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    images = synthesize_heads(tmp_path_factory.mktemp("cars") / "set", CARS, 32, seed=0, workers=1, kind="cars").images
    return learning.Reference(ImageDataset(str(images)), 1000, "cars")


@pytest.mark.parametrize("degrees", [0, 180])
def test_cars_that_point_elsewhere_are_nearest_to_the_data_from_there(reference, monkeypatch, degrees):
    """What `facing` counts: 0 degrees off, every sector is nearest to its own; half a turn off, none is."""
    monkeypatch.setattr(learning, "SECTORS", 4)
    distances = reference.sectors(TurnedCars(reference.dataset.geometry, degrees))
    assert distances.shape == (4, 4)
    assert ((distances.argmin(axis=1) - np.arange(4)) % 4 == degrees // 90).all()
