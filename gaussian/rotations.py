"""Converts rotations in 3D: matrices [..., 3, 3] that act on columns, and quaternions wxyz [..., 4]."""

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION_TOLERANCE = 1e-4  # largest entry of R^T R - I that a rotation may have; float32 rounding gives 1e-7


def quats_to_matrices(quats: Tensor) -> Tensor:
    """Converts unit quaternions [..., 4] to matrices [..., 3, 3]; the zero quaternion gives the identity."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrices_to_quats(matrices: Tensor) -> Tensor:
    """Converts rotations [..., 3, 3] to unit quaternions [..., 4], of either sign.

    The sixteen sums below are 4 q q^T; each of its rows is a multiple of q, and the one with the largest diagonal
    entry (at least 1) is the longest.
    """
    m = matrices
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    xx, yy, zz = (1 + 2 * m[..., i, i] - trace for i in range(3))
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = [[1 + trace, wx, wy, wz], [wx, xx, xy, xz], [wy, xy, yy, yz], [wz, xz, yz, zz]]
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [..., 4, 4]
    longest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*outer.shape[:-2], 1, 4)
    return F.normalize(outer.gather(-2, longest)[..., 0, :], dim=-1)


def multiply_quats(first: Tensor, second: Tensor) -> Tensor:
    """Returns the Hamilton product [..., 4] of broadcast quaternions: the rotation `second`, then `first`."""
    a, b, c, d = first.unbind(-1)
    w, x, y, z = second.unbind(-1)
    return torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        dim=-1,
    )


def check_rotation(matrices: Tensor) -> None:
    """Raises ValueError unless every matrix [..., 3, 3] is a rotation; waits for the device."""
    m = matrices.detach().double()
    error = (m.mT @ m - torch.eye(3, dtype=m.dtype, device=m.device)).abs().amax()
    if not bool(error <= ROTATION_TOLERANCE):
        raise ValueError(f"rotation must be orthonormal, but R^T R differs from the identity by {float(error):.3g}")
    if not bool((torch.linalg.det(m) > 0).all()):
        raise ValueError("rotation must have the determinant 1, got a reflection")
