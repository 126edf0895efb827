"""Tests the Fréchet distance against closed forms, another algorithm and the singular values of the data."""

import numpy as np
import pytest
import scipy.linalg
import torch

from benchmarks.long_double import frechet_distance_of_samples, singular_values
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance, low_rank_factor


def samples(count, size, seed, decay=3.0):
    """Draws correlated normal samples [count, size] whose variances fall by exp(-2 decay)."""
    rng = np.random.default_rng(seed)
    scale = np.exp(-decay * np.arange(size) / size)
    return rng.standard_normal((count, size)) * scale @ np.linalg.qr(rng.standard_normal((size, size)))[0] + rng.random(
        size
    )


def moments(x):
    return x.mean(0), np.cov(x.T, bias=True)


def test_closed_form_for_commuting_covariances():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((128, 128)))[0]
    var_a, var_b = rng.random(128) + 0.01, 3 * rng.random(128) + 0.01
    mu_a, mu_b = rng.random(128), rng.random(128)
    expected = ((mu_a - mu_b) ** 2).sum() + ((var_a**0.5 - var_b**0.5) ** 2).sum()
    found = frechet_distance(mu_a, basis * var_a @ basis.T, mu_b, basis * var_b @ basis.T)
    assert expected > 10
    assert found == pytest.approx(expected, rel=1e-9)  # worst seen 1e-15


def test_agrees_with_the_matrix_root():
    (mu_a, s_a), (mu_b, s_b) = moments(samples(2000, 128, 1)), moments(samples(2000, 128, 2, decay=2.0))
    root = scipy.linalg.sqrtm(s_a @ s_b).real
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(s_a + s_b - 2 * root)
    assert expected > 10
    assert frechet_distance(mu_a, s_a, mu_b, s_b) == pytest.approx(expected, rel=1e-6)  # worst seen 1e-14


def test_rank_deficient_pair():
    """tr (S_a S_b)^(1/2) is the sum of the singular values of X_a X_b^T / sqrt(n_a n_b), with centred samples X."""
    x_a, x_b = samples(300, 640, 3), samples(200, 640, 4, decay=2.0)
    mu_a, s_a = moments(x_a)
    mu_b, s_b = moments(x_b)
    singular = np.linalg.svd((x_a - mu_a) @ (x_b - mu_b).T / np.sqrt(300 * 200), compute_uv=False)
    expected = ((mu_a - mu_b) ** 2).sum() + np.trace(s_a) + np.trace(s_b) - 2 * singular.sum()
    assert expected > 10
    assert frechet_distance(mu_a, s_a, mu_b, s_b) == pytest.approx(expected, rel=1e-8)  # worst seen 1e-13


def test_rank_deficient_pair_in_higher_precision():
    """`benchmarks/metrics.py --only=exactness` does the same with 1,000 samples in 2,048 dimensions."""
    x_a, x_b = samples(200, 400, 9), samples(180, 400, 10, decay=2.0)
    expected = float(frechet_distance_of_samples(x_a, x_b))
    assert expected > 10
    assert frechet_distance(*moments(x_a), *moments(x_b)) == pytest.approx(expected, rel=1e-8)  # worst seen 4e-16


def test_the_long_double_reference():
    """It must find known singular values, more exactly than float64 can."""
    rng = np.random.default_rng(0)
    expected = np.sort(rng.random(30) + 0.1)
    left, right = (np.linalg.qr(rng.standard_normal((n, 30)))[0] for n in (50, 40))
    found = singular_values((left * expected) @ right.T).astype(float)  # 40, of which 10 are 0
    np.testing.assert_allclose(found[10:], expected, rtol=1e-13)
    assert found[:10].max() < 1e-15
    diagonal = np.diag(expected.astype(np.longdouble) / 3)
    np.testing.assert_allclose(singular_values(diagonal) * 3, expected, rtol=4 * np.finfo(np.longdouble).eps)


@pytest.mark.parametrize("count", [100, 2000])
def test_distance_to_itself(count):
    mu, s = moments(samples(count, 256, 5))
    assert abs(frechet_distance(mu, s, mu, s)) < 1e-10 * np.trace(s)  # worst seen 3e-15


def test_factor_has_the_numerical_rank():
    s = moments(samples(40, 96, 6))[1]
    factor = low_rank_factor(s)
    assert factor.shape == (96, 39)
    np.testing.assert_allclose(factor @ factor.T, s, rtol=0, atol=1e-14 * s.max() * 96)
    assert low_rank_factor(np.zeros((5, 5))).shape == (5, 0)


def test_a_constant_set_leaves_the_other_trace():
    mu, s = moments(samples(50, 20, 7))
    assert frechet_distance(mu, s, mu, np.zeros_like(s)) == pytest.approx(np.trace(s), rel=1e-12)


def test_statistics_stream():
    x = torch.from_numpy(samples(500, 32, 8) + 100)
    stats = FeatureStats(32)
    for batch in x.float().split(64):
        stats.add(batch)
    mean, cov = stats.mean_cov()
    mu, s = moments(x.float().double().numpy())
    np.testing.assert_allclose(mean, mu, rtol=1e-13)
    np.testing.assert_allclose(cov, s, rtol=0, atol=3e-10)  # worst seen 4e-11, beside means of 100
    assert stats.count == 500


def test_illegal_input():
    mu, s = np.zeros(3), np.eye(3)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(mu, s * np.nan, mu, s)
    with pytest.raises(ValueError, match="mean \\[F\\]"):
        frechet_distance(mu, s, np.zeros(4), s)
    with pytest.raises(ValueError, match="at least 2"):
        FeatureStats(3).mean_cov()
