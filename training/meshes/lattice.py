"""Places the points at which volumes are evaluated, and says whether they fit in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import psutil
import torch
from torch import Tensor

import dnnlib

BYTES_A_POINT = 16  # of a volume, its closed copy, and what is kept beside it; 5 to 15 were measured


@dataclass(frozen=True)
class Lattice:
    """Fills a cube with resolution^3 points, those on its faces included. Index (i, j, k) is along world x, y and z."""

    centre: tuple[float, float, float]  # of the cube, world units
    half_width: float  # half its edge, world units
    resolution: int  # points along an edge, 2 or more

    def __post_init__(self) -> None:
        if self.resolution < 2:
            raise ValueError(f"resolution={self.resolution}: a lattice has 2 points along an edge, or more")

    @property
    def count(self) -> int:
        """The number of points."""
        return self.resolution**3

    @property
    def spacing(self) -> float:
        """The distance of neighbours, world units."""
        return 2 * self.half_width / (self.resolution - 1)

    def places(self, indices: Tensor) -> Tensor:
        """Returns world positions [..., 3] of indices [..., 3], whole or in between."""
        return indices * self.spacing + (indices.new_tensor(self.centre) - self.half_width)

    def transformed(self, scale: float, translation: Sequence[float]) -> Self:
        """Returns the lattice at scale * x + translation."""
        x, y, z = (scale * c + t for c, t in zip(self.centre, translation, strict=True))
        return dataclasses.replace(self, centre=(x, y, z), half_width=scale * self.half_width)

    def indices(self, rows: Tensor) -> Tensor:
        """Returns the indices [n, 3], as float32, of points [n] of the flat volume."""
        r = self.resolution
        return torch.stack([rows // (r * r), rows // r % r, rows % r], dim=-1).float()

    def parts(self, size: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Yields, `size` points at a time, the rows of the flat volume and where these points are, [n, 3] float32."""
        for start in range(0, self.count, size):
            rows = slice(start, min(start + size, self.count))
            yield rows, self.places(self.indices(torch.arange(rows.start, rows.stop, device=device)))

    def require_memory(self) -> None:
        """Raises ValueError if a volume over this lattice does not fit in the memory that is free."""
        needed, free = self.count * BYTES_A_POINT, psutil.virtual_memory().available
        if needed > free:
            raise ValueError(
                f"--resolution={self.resolution}: {self.count:,} points take {dnnlib.format_bytes(needed)} at once, "
                f"and {dnnlib.format_bytes(free)} of memory are free; give a smaller one"
            )
