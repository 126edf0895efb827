"""`Gaussians`: a batch of scenes, each a set of anisotropic 3D Gaussians."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import spherical_harmonics

QUAT_EPS = 1e-12  # least norm that a quaternion is divided by; the zero quaternion acts as the identity
FIELD_WIDTHS = {"means": 3, "log_scales": 3, "quats": 4, "opacity_logits": 1}


@dataclass(frozen=True)
class Gaussians:
    """B scenes of N splats each, in raw field values; the activations below are the only place they are applied.

    Subclasses may add fields (frozen dataclasses too): `map` and all that stands on it rebuild the same class.
    Raises ValueError if the shapes do not fit each other.
    """

    means: Tensor  # [B, N, 3] world units
    log_scales: Tensor  # [B, N, 3] ln of the standard deviation in world units
    quats: Tensor  # [B, N, 4] wxyz, any length
    opacity_logits: Tensor  # [B, N, 1] before the sigmoid
    sh: Tensor  # [B, N, K, 3] spherical harmonics, degree 0 first; K = 1, 4, 9 or 16
    level_sizes: tuple[int, ...] = ()  # splats per level of a hierarchy, coarse first; sums to N when given

    def __post_init__(self) -> None:
        if self.means.ndim != 3:
            raise ValueError(f"means must have shape [B, N, 3], got {tuple(self.means.shape)}")
        lead = tuple(self.means.shape[:2])
        for name, width in FIELD_WIDTHS.items():
            shape = tuple(getattr(self, name).shape)
            if shape != (*lead, width):
                raise ValueError(f"{name} must have shape {[*lead, width]}, got {list(shape)}")
        if self.sh.ndim != 4 or tuple(self.sh.shape[:2]) != lead or self.sh.shape[3] != 3:
            raise ValueError(f"sh must have shape {[*lead, 'K', 3]}, got {list(self.sh.shape)}")
        spherical_harmonics.degree_of(self.sh.shape[2])
        if self.level_sizes and sum(self.level_sizes) != lead[1]:
            raise ValueError(f"level_sizes {self.level_sizes} sum to {sum(self.level_sizes)}, not to N = {lead[1]}")

    @property
    def batch_size(self) -> int:
        return self.means.shape[0]

    @property
    def num_splats(self) -> int:
        return self.means.shape[1]

    @property
    def sh_degree(self) -> int:
        return spherical_harmonics.degree_of(self.sh.shape[2])

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def dtype(self) -> torch.dtype:
        return self.means.dtype

    def scales(self) -> Tensor:
        """Standard deviations along the splats' own axes, [B, N, 3] world units."""
        return self.log_scales.exp()

    def unit_quats(self) -> Tensor:
        """Rotations from the splats' axes to the world's, unit quaternions wxyz [B, N, 4]."""
        return F.normalize(self.quats, dim=-1, eps=QUAT_EPS)

    def opacities(self) -> Tensor:
        """Peak opacities 0..1, [B, N, 1]."""
        return self.opacity_logits.sigmoid()

    def colors(self, viewpoints: Tensor | None = None) -> Tensor:
        """RGB max(0, SH + 0.5), not limited from above; a clamped channel passes no gradient.

        viewpoints: camera positions [B, V, 3] in world units -> [B, V, N, 3]; may be left out when sh has degree 0
        -> [B, N, 3]. Raises ValueError if it is left out for a higher degree.
        """
        if viewpoints is None:
            if self.sh_degree > 0:
                raise ValueError(f"colors() of an sh of degree {self.sh_degree} need viewpoints [B, V, 3], got None")
            return torch.relu(spherical_harmonics.Y00 * self.sh[:, :, 0] + 0.5)
        if self.sh_degree == 0:
            return self.colors()[:, None].expand(-1, viewpoints.shape[1], -1, -1)
        directions = F.normalize(self.means[:, None] - viewpoints[:, :, None], dim=-1)  # [B, V, N, 3]
        basis = spherical_harmonics.basis(directions, self.sh_degree)  # [B, V, N, K]
        return torch.relu(torch.einsum("bvnk,bnkc->bvnc", basis, self.sh) + 0.5)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same record with `fn` applied to every tensor, nested Gaussians included."""
        changes: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = fn(value)
            elif isinstance(value, Gaussians):
                changes[field.name] = value.map(fn)
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        return self.map(lambda t: t.to(device=device, dtype=dtype))

    def detach(self) -> Self:
        return self.map(Tensor.detach)

    def scene(self, b: int) -> Self:
        """Scene b alone, as a batch of one."""
        if not -self.batch_size <= b < self.batch_size:
            raise ValueError(f"scene {b} does not exist; there are {self.batch_size}")
        b %= self.batch_size
        return self.map(lambda t: t[b : b + 1])

    def rows_of(self, which: Tensor | slice | int) -> slice | Tensor:
        """Where along N a selection lies: as a slice start:stop if it is one, else as int64 indices [n] of 0..N-1.

        which: a slice, integer indices [n] or a bool mask [N], or the number of a level (needs level_sizes).
        Raises ValueError for a level or (on a CPU; elsewhere the device says so) an index that does not exist.
        """
        if isinstance(which, slice):
            start, stop, step = which.indices(self.num_splats)
            if step == 1:
                return slice(start, max(start, stop))
            return torch.arange(start, stop, step, device=self.device)
        if isinstance(which, Tensor):
            return self._indices(which)
        if not -len(self.level_sizes) <= which < len(self.level_sizes):
            raise ValueError(f"level {which} does not exist; level_sizes is {self.level_sizes}")
        level = which % len(self.level_sizes)
        start = sum(self.level_sizes[:level])
        return slice(start, start + self.level_sizes[level])

    def _indices(self, which: Tensor) -> Tensor:
        count = self.num_splats
        if which.ndim != 1 or which.dtype.is_floating_point or (which.dtype == torch.bool and len(which) != count):
            got = f"{which.dtype} {list(which.shape)}"
            raise ValueError(f"a selection of splats must be integers [n] or a bool mask [{count}], got {got}")
        if which.dtype == torch.bool:
            return which.nonzero()[:, 0]
        which = which.long()
        if which.device.type == "cpu" and bool(((which < -count) | (which >= count)).any()):
            raise ValueError(f"splats {which.min()}..{which.max()} were selected, but there are 0..{count - 1}")
        return which.remainder(count) if count else which

    def select(self, which: Tensor | slice | int) -> Self:
        """Some of the splats of every scene; fields that a subclass adds stay as they are. See `rows_of`.

        Slices and levels are views, indices and masks gather.
        """
        rows = self.rows_of(which)
        fields = {name: getattr(self, name)[:, rows] for name in (*FIELD_WIDTHS, "sh")}
        sizes = () if isinstance(which, (Tensor, slice)) else (self.level_sizes[which],)
        return dataclasses.replace(self, **fields, level_sizes=sizes)
