"""Tests KID against its definition, one pair of samples at a time, and that it is unbiased."""

import itertools

import numpy as np
import pytest
import torch

from metrics.kid import SUBSETS, kid_of, seeded_subsets, squared_mmd


def features(count, size=16, seed=0, shift=0.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def slow_mmd(x, y):
    """Follows the definition."""

    def k(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    m = len(x)
    same = [sum(k(z[i], z[j]) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1)) for z in (x, y)]
    return same[0] + same[1] - 2 * sum(k(a, b) for a in x for b in y) / m**2


def test_against_the_definition():
    x, y = features(9), features(9, seed=1, shift=0.7)
    expected = slow_mmd(x.numpy(), y.numpy())
    assert expected > 1
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)  # worst seen 7e-16


def test_unbiased():
    """The mean over many small pairs of one distribution is 0 within its standard error, of either sign."""
    values = np.array([squared_mmd(features(20, seed=i), features(20, seed=1000 + i)) for i in range(400)])
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert (values < 0).any() and (values > 0).any()
    shifted = squared_mmd(features(20), features(20, seed=1, shift=0.5))
    assert shifted > 5 * values.std()


def test_subsets():
    subsets = list(seeded_subsets(3, 1500, 30))
    assert len(subsets) == SUBSETS
    for real, fake in subsets:
        assert len(real) == len(real.unique()) == len(fake) == len(fake.unique()) == 30
    assert int(max(real.max() for real, _ in subsets)) > 1400
    assert len(next(iter(seeded_subsets(3, 1500, 1200)))[0]) == 1000
    assert torch.equal(next(iter(seeded_subsets(3, 1500, 30)))[0], subsets[0][0])
    assert not torch.equal(next(iter(seeded_subsets(4, 1500, 30)))[0], subsets[0][0])


def test_mean_and_deviation_over_subsets():
    x, y = features(40), features(60, seed=1, shift=0.7)
    subsets = list(seeded_subsets(0, 40, 60))[:5]
    values = [squared_mmd(x[i], y[j]) for i, j in subsets]
    assert kid_of(x.float(), y.float(), subsets) == pytest.approx((np.mean(values), np.std(values)), rel=1e-5)
