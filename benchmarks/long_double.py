"""Computes the Fréchet distance of two sample sets in NumPy's long double (64-bit mantissa on x86): a slow reference.

It shares nothing with metrics/frechet.py: no covariance and no eigenvalues. The trace of (S_a S_b)^(1/2) is the sum of
the singular values of X_a X_b^T / sqrt(n_a n_b) with centred samples X. That matrix is brought to bidiagonal form by
Householder reflections (Golub and Kahan 1965), whose singular values are found by bisection with Sturm counts.
"""

from __future__ import annotations

import numpy as np

Long = np.longdouble
BISECTIONS = 70  # halvings of the interval: past the 64 bits of the mantissa


def bidiagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns diagonal [n] and superdiagonal [n - 1], bidiagonal, with the singular values of `matrix` [m, n]."""
    a = np.array(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T, dtype=Long)
    n = a.shape[1]
    for k in range(n):
        _reflect(a[k:, k:])
        if k < n - 2:
            _reflect(a[k:, k + 1 :].T)
    return np.diagonal(a).copy(), np.diagonal(a, 1)[: n - 1].copy()


def _reflect(a: np.ndarray) -> None:
    """Reflects the rows of a (Householder), in place, so that only the first element of its first column is left."""
    v = a[:, 0].copy()
    length = np.sqrt((v * v).sum())
    if length == 0:
        return
    v[0] += length if v[0] >= 0 else -length
    a -= np.outer(v, (2 / (v * v).sum()) * (v @ a))


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Returns all of them, ascending, long double; absolute error about 1e-19 of the largest."""
    diagonal, above = bidiagonal(matrix)
    n = len(diagonal)
    # [0, B; B^T, 0] reordered is tridiagonal with a zero diagonal; its eigenvalues are plus and minus the values.
    off = np.empty(2 * n - 1, dtype=Long)
    off[::2], off[1::2] = diagonal, above
    squares = off * off
    tiny = np.finfo(Long).tiny / np.finfo(Long).eps
    low, high = np.zeros(n, dtype=Long), np.full(n, np.abs(off).max() * 2, dtype=Long)
    wanted = np.arange(n)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        pivot = -middle
        below = (pivot < 0).astype(np.int64)
        for square in squares:
            pivot = -middle - square / np.where(np.abs(pivot) < tiny, tiny, pivot)
            below += pivot < 0
        above_wanted = below - n > wanted  # more values lie under the middle than come before this one
        high, low = np.where(above_wanted, middle, high), np.where(above_wanted, low, middle)
    return (low + high) / 2


def frechet_distance_of_samples(x_a: np.ndarray, x_b: np.ndarray) -> np.longdouble:
    """Returns the squared distance of Gaussians fitted to samples [n_a, F] and [n_b, F], covariances divided by n."""
    x_a, x_b = (np.asarray(x, dtype=Long) for x in (x_a, x_b))
    mu_a, mu_b = x_a.mean(0), x_b.mean(0)
    centred_a, centred_b = x_a - mu_a, x_b - mu_b
    n_a, n_b = Long(len(x_a)), Long(len(x_b))
    root = singular_values((centred_a @ centred_b.T) / np.sqrt(n_a * n_b)).sum()
    traces = (centred_a * centred_a).sum() / n_a + (centred_b * centred_b).sum() / n_b
    return ((mu_a - mu_b) ** 2).sum() + traces - 2 * root
