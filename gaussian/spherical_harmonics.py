"""Evaluates and rotates real spherical harmonics up to degree 3, in the signs and order of the 3DGS file format."""

import math

import torch
from torch import Tensor

NUM_COEFFICIENTS = (1, 4, 9, 16)  # per channel, of degrees 0 to 3
Y00 = 0.28209479177387814  # 1 / (2 sqrt(pi)), the constant harmonic


def degree_of(num_coefficients: int) -> int:
    """Returns the degree of an expansion with that many coefficients. Raises ValueError unless it is 1, 4, 9 or 16."""
    if num_coefficients not in NUM_COEFFICIENTS:
        raise ValueError(f"sh has {num_coefficients} coefficients per channel; legal are {NUM_COEFFICIENTS}")
    return NUM_COEFFICIENTS.index(num_coefficients)


def basis(directions: Tensor, degree: int) -> Tensor:
    """Evaluates the harmonics [..., (degree + 1)^2] at unit directions [..., 3].

    Orthonormal over the sphere, ordered by degree l and then by order m = -l..l, with the Condon-Shortley phase:
    the convention of Kerbl et al. 2023, so that coefficients can be exchanged with their files.
    """
    x, y, z = directions.unbind(-1)
    terms = [torch.full_like(x, Y00)]
    if degree >= 1:
        c1 = 0.4886025119029199  # sqrt(3 / (4 pi))
        terms += [-c1 * y, c1 * z, -c1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        c2 = 1.0925484305920792  # sqrt(15 / (4 pi))
        terms += [
            c2 * x * y,
            -c2 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),  # sqrt(5 / (16 pi))
            -c2 * x * z,
            0.5 * c2 * (xx - yy),
        ]
    if degree >= 3:
        c33 = 0.5900435899266435  # sqrt(35 / (32 pi))
        c32 = 2.890611442640554  # sqrt(105 / (4 pi))
        c31 = 0.4570457994644658  # sqrt(21 / (32 pi))
        terms += [
            -c33 * y * (3 * xx - yy),
            c32 * x * y * z,
            -c31 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),  # sqrt(7 / (16 pi))
            -c31 * x * (4 * zz - xx - yy),
            0.5 * c32 * z * (xx - yy),
            -c33 * x * (xx - 3 * yy),
        ]
    return torch.stack(terms, dim=-1)


def rotation(matrices: Tensor, degree: int) -> Tensor:
    """Returns the matrices [..., K, K] that rotate coefficients [..., K, C] up to a degree, K = (degree + 1)^2.

    matrices: rotations [..., 3, 3]. The rotated expansion has at R d the value that the old one has at d; degrees do
    not mix (the blocks are the real Wigner matrices). Found by sampling: with rows Y(d) over directions d,
    Y(R^T d) = Y(d) M is solved for M, exactly because rotated harmonics of one degree are harmonics of that degree.
    """
    samples = _directions(4 * NUM_COEFFICIENTS[degree]).to(matrices.device)  # [S, 3]
    inverse = torch.linalg.pinv(basis(samples, degree))  # [K, S]
    turned = basis(samples @ matrices.double(), degree)  # [..., S, K]; rows are (R^T d)^T
    return (inverse @ turned).to(matrices.dtype)


def _directions(count: int) -> Tensor:
    """Returns unit vectors [count, 3] spread evenly over the sphere (a Fibonacci lattice), float64."""
    k = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * k + 1) / count
    angle = math.pi * (3 - math.sqrt(5)) * k
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)
