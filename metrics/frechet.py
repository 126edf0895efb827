"""Computes the Fréchet distance of two Gaussians (Dowson and Landau 1982), the D of FID (Heusel et al. 2017).

    D = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

A general matrix root is slow and, for the rank-deficient covariances of few images, unreliable. The trace alone needs
none: with S_i = L_i L_i^T the non-zero eigenvalues of S_1 S_2 are those of the symmetric L_1^T S_2 L_1. A Cholesky
factorisation with complete pivoting gives L_i with as many columns as S_i has numerical rank (Higham 1990), so the
zero eigenvalues, whose square roots would amplify rounding errors, never appear.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh
from scipy.linalg.lapack import dpstrf
from torch import Tensor

Array = np.ndarray | Tensor


def low_rank_factor(cov: np.ndarray) -> np.ndarray:
    """Factors a positive semi-definite cov [F, F] into L [F, rank] with L L^T = cov to float64 rounding.

    Directions whose variance is under F x 2.2e-16 of the largest diagonal element are left out.
    """
    packed, pivots, rank, status = dpstrf(cov.T, lower=1)  # the transpose is the column order that LAPACK wants
    if status < 0:
        raise ValueError(f"pivoted Cholesky: argument {-status} of dpstrf is illegal")
    place = np.empty(len(cov), dtype=np.int64)
    place[pivots - 1] = np.arange(len(cov))
    return np.triu(packed.T)[:rank].take(place, axis=1).T


def trace_of_root(cov_a: np.ndarray, cov_b: np.ndarray) -> float:
    """Returns tr (cov_a cov_b)^(1/2) of two positive semi-definite matrices [F, F]."""
    a, b = low_rank_factor(cov_a), low_rank_factor(cov_b)
    cross = a.T @ b  # [rank a, rank b]; its singular values are the eigenvalues of the root
    gram = cross @ cross.T if cross.shape[0] <= cross.shape[1] else cross.T @ cross
    if not gram.size:
        return 0.0
    return float(np.sqrt(eigvalsh(gram, driver="ev", check_finite=False).clip(min=0)).sum())


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Returns D of N(mean_a, cov_a) and N(mean_b, cov_b): means [F], covariances [F, F] symmetric, float64.

    It is not clamped: equal inputs give 0 to about 1e-14 of the trace, of either sign. Raises ValueError for input
    that is not finite and for shapes that do not fit.
    """
    mu_a, s_a, mu_b, s_b = (np.asarray(x, dtype=np.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    if mu_a.ndim != 1 or mu_a.shape != mu_b.shape or not s_a.shape == s_b.shape == mu_a.shape * 2:
        shapes = [list(x.shape) for x in (mu_a, s_a, mu_b, s_b)]
        raise ValueError(f"frechet_distance takes mean [F], cov [F, F] twice, got {shapes}")
    if not all(np.isfinite(x).all() for x in (mu_a, s_a, mu_b, s_b)):
        raise ValueError("frechet_distance: the statistics hold NaN or infinite values")
    difference = mu_a - mu_b
    return float(difference @ difference + np.trace(s_a) + np.trace(s_b) - 2 * trace_of_root(s_a, s_b))
