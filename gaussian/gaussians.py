"""Defines `Gaussians`: a batch of scenes, each a set of anisotropic 3D Gaussians."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import spherical_harmonics
from gaussian.cameras import Cameras
from gaussian.rotations import check_rotation, matrices_to_quats, multiply_quats
from gaussian.scene import SceneRecord
from gaussian.statistics import scene_statistics

LOW_PASS = 0.3  # square pixels that published rasterisers add to both variances of a splat in an image
QUAT_EPS = 1e-12  # least norm that a quaternion is divided by; the zero quaternion acts as the identity
FIELD_WIDTHS = {"means": 3, "log_scales": 3, "quats": 4, "opacity_logits": 1}


@dataclass(frozen=True)
class Gaussians(SceneRecord):
    """Holds B scenes of N splats each as raw parameters; only the methods below apply the activations.

    Subclasses (frozen dataclasses too) may add fields: `map` and the methods that call it return the subclass.
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
    def num_splats(self) -> int:
        return self.means.shape[1]

    @property
    def sh_degree(self) -> int:
        return spherical_harmonics.degree_of(self.sh.shape[2])

    @property
    def dtype(self) -> torch.dtype:
        return self.means.dtype

    def scales(self) -> Tensor:
        """Returns the standard deviations along the splats' own axes, [B, N, 3] world units."""
        return self.log_scales.exp()

    def unit_quats(self) -> Tensor:
        """Returns the rotations from the splats' axes to the world's, unit quaternions wxyz [B, N, 4]."""
        return F.normalize(self.quats, dim=-1, eps=QUAT_EPS)

    def opacities(self) -> Tensor:
        """Returns the peak opacities 0..1, [B, N, 1]."""
        return self.opacity_logits.sigmoid()

    def colors(self, viewpoints: Tensor | None = None) -> Tensor:
        """Returns RGB max(0, SH + 0.5), not limited from above; a clamped channel passes no gradient.

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

    def statistics(self, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
        """Returns the scenes' statistics under cameras [B, V]; see `gaussian.statistics.scene_statistics`."""
        return scene_statistics(self, cameras, resolution)

    def as_gaussians(self, viewpoint: Tensor | None = None) -> Gaussians:
        """Returns the scene itself: its colours are spherical harmonics, so the viewpoint [B, 3] changes nothing."""
        return self

    def transformed(
        self,
        rotation: Tensor | None = None,  # [3, 3] or one per scene [B, 3, 3]; None leaves directions as they are
        translation: Tensor | Sequence[float] = (0.0, 0.0, 0.0),  # [3] or [B, 3] in the new world units
        scale: Tensor | float = 1.0,  # new world units per old one, a number or [B]
    ) -> Self:
        """Returns the scenes after the similarity x -> scale * rotation x + translation of the world.

        Cameras moved alike (positions like points, axes rotated) see the same image, and depths times `scale`, as long
        as no splat crosses the near cut, which back ends keep at a fixed distance. Nested Gaussians move too; other
        fields of a subclass stay as they are. Differentiable in the scene and the arguments.
        Raises ValueError if `scale` is not positive and finite or `rotation` is no rotation (both wait for the device).
        """
        factor = torch.as_tensor(scale, dtype=self.dtype, device=self.device)
        if not bool(((factor > 0) & factor.isfinite()).all()):
            raise ValueError(f"scale must be positive and finite, got {scale}")
        shift = torch.as_tensor(translation, dtype=self.dtype, device=self.device)
        factor, shift = factor[..., None, None], shift[..., None, :]  # [1, 1] or [B, 1, 1], [1, 3] or [B, 1, 3]
        turned = self if rotation is None else self._rotated(rotation.to(self.means))
        changes: dict[str, Any] = {
            "means": turned.means * factor + shift,
            "log_scales": turned.log_scales + factor.log(),
        }
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Gaussians):
                changes[field.name] = value.transformed(rotation, translation, scale)
        return dataclasses.replace(turned, **changes)

    def _rotated(self, rotation: Tensor) -> Self:
        """Rotates splats and colours, but no nested Gaussians, about the origin by [3, 3] or [B, 3, 3]."""
        check_rotation(rotation)
        no_rotation = self.quats.norm(dim=-1, keepdim=True) < QUAT_EPS
        quats = torch.where(no_rotation, self.quats.new_tensor([1.0, 0.0, 0.0, 0.0]), self.quats)
        sh = self.sh
        if self.sh_degree > 0:
            sh = spherical_harmonics.rotation(rotation, self.sh_degree)[..., None, :, :] @ sh  # [B, N, K, 3]
        return dataclasses.replace(
            self,
            means=self.means @ rotation.mT,
            quats=multiply_quats(matrices_to_quats(rotation)[..., None, :], quats),
            sh=sh,
        )

    def rows_of(self, which: Tensor | slice | int) -> slice | Tensor:
        """Returns a selection along N as a slice start:stop if it is one, else as int64 indices [n] of 0..N-1.

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
        """Returns some of the splats of every scene; fields that a subclass adds stay as they are. See `rows_of`.

        Slices and levels are views, indices and masks gather.
        """
        rows = self.rows_of(which)
        fields = {name: getattr(self, name)[:, rows] for name in (*FIELD_WIDTHS, "sh")}
        sizes = () if isinstance(which, (Tensor, slice)) else (self.level_sizes[which],)
        return dataclasses.replace(self, **fields, level_sizes=sizes)
