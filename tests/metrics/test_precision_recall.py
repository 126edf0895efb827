"""Tests improved precision and recall against brute force and on sets whose answer is known."""

import pytest
import torch

from metrics import precision_recall as module
from metrics.precision_recall import precision_recall


def normal(count, seed, size=8, scale=1.0, shift=0.0):
    return scale * torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + shift


def brute_force(real, fake, k):
    """The definition with all distances in float64."""

    def inside(points, centres):
        own = torch.cdist(centres.double(), centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
        radii = own.sort(1).values[:, k]
        between = torch.cdist(points.double(), centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
        return float((between <= radii).any(1).double().mean())

    return inside(fake, real), inside(real, fake)


@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_against_brute_force(monkeypatch, rows_at_once):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
    real, fake = normal(150, 0), normal(90, 1, scale=0.8, shift=0.6)
    expected = brute_force(real, fake, 3)
    assert all(0.2 < value < 0.95 for value in expected) and expected[0] != expected[1]
    assert precision_recall(real, fake) == expected


def test_known_answers():
    real = normal(200, 0)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, normal(200, 1, shift=100.0)) == (0.0, 0.0)
    # One of two far modes: all that is made is right, half of what is real is missing.
    modes = torch.cat([real, normal(200, 2, shift=100.0)])
    precision, recall = precision_recall(modes, normal(200, 3))
    assert precision > 0.6 and 0.3 < recall < 0.5
    # A wide set covers the narrow one and strays from it.
    precision, recall = precision_recall(real, normal(200, 4, scale=3.0))
    assert precision < 0.1 and recall > 0.7


def test_far_from_the_origin():
    """Float32 distances are taken from the centre of the reals, so that a common offset costs no digits."""
    real, fake = normal(100, 0), normal(100, 1, scale=0.7)
    assert precision_recall(real.double() + 1000, fake.double() + 1000) == precision_recall(real, fake)


def test_too_few():
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(normal(3, 0), normal(50, 1))
