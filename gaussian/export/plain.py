"""Holds one scene as NumPy arrays after the activations, and what several formats need of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gaussian.gaussians import Gaussians

Array = np.ndarray


@dataclass(frozen=True)
class PlainSplats:
    """Holds N splats as float64 arrays. Raises ValueError, with the field's name, for what is not finite."""

    means: Array  # [N, 3] world units
    log_scales: Array  # [N, 3] ln of the standard deviation
    quats: Array  # [N, 4] unit, wxyz
    opacities: Array  # [N] 0..1
    sh: Array  # [N, K, 3] spherical harmonics, degree 0 first

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if not np.isfinite(values).all():
                raise ValueError(f"cannot write splats: {name} has values that are not finite")

    @classmethod
    def of(cls, gaussians: Gaussians) -> PlainSplats:
        """Takes the only scene of a batch of one."""
        assert gaussians.batch_size == 1
        one = gaussians.to(device="cpu", dtype=torch.float64)
        parts = (one.means, one.log_scales, one.unit_quats(), one.opacities()[..., 0], one.sh)
        return cls(*(part[0].numpy() for part in parts))

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, rows: Array) -> PlainSplats:
        return PlainSplats(*(values[rows] for values in vars(self).values()))

    def sorted(self) -> PlainSplats:
        """Returns the splats along a Z-order curve (Morton 1966), so that neighbours in a file are neighbours."""
        low = self.means.min(0)
        cells = ((self.means - low) / max(np.ptp(self.means, axis=0).max(), 1e-12) * 1023).astype(np.int64)  # [N, 3]
        code = np.zeros(len(cells), np.int64)
        for bit in range(10):
            for axis in range(3):
                code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
        return self[np.argsort(code, kind="stable")]


def whole(values: Array, most: int, dtype: type = np.uint8) -> Array:
    """Rounds to whole numbers 0..most."""
    return np.clip(np.rint(values), 0, most).astype(dtype)


def smallest_three(quats: Array) -> tuple[Array, Array]:
    """Returns what is left of unit quaternions [N, 4] without their largest component, and its number.

    The three [N, 3] keep their order and are within +-sqrt(1/2); the largest is made positive, so that it follows.
    """
    largest = np.abs(quats).argmax(1)  # [N]
    rows = np.arange(len(quats))
    quats = quats * np.where(quats[rows, largest] < 0, -1, 1)[:, None]
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]  # [N, 3]
    return np.take_along_axis(quats, others, axis=1), largest
