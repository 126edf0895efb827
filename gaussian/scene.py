"""Defines what a generator's synthesis returns: any scene, one of splats, one with a density; a base of records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gaussian.cameras import Cameras
    from gaussian.gaussians import Gaussians


@runtime_checkable
class Scene(Protocol):
    """Describes a batch of B scenes that a generator's `render` turns into images; `Gaussians` is one."""

    @property
    def batch_size(self) -> int:
        """Returns B."""
        ...

    @property
    def device(self) -> torch.device: ...

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Returns the same scene with `fn` applied to every tensor in it, e.g. to move, detach or slice them."""
        ...

    def statistics(self, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
        """Returns named tensors to be averaged over a run's reporting interval, without gradient; may be empty.

        cameras: [B, V], those that the scenes are rendered from, in pictures of `resolution` pixels.
        """
        ...


@runtime_checkable
class Splats(Scene, Protocol):
    """Describes a scene that can be given as 3D Gaussians, as a .ply export and a splat viewer need it."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Returns the number of splats per level of a hierarchy, coarse first; () if there is no hierarchy."""
        ...

    def as_gaussians(self, viewpoint: Tensor | None = None) -> Gaussians:
        """Returns the scene as Gaussians, with any learned view-dependent colour frozen as seen from one place.

        viewpoint: [B, 3] world units; None lets the scene choose.
        """
        ...


@runtime_checkable
class Density(Scene, Protocol):
    """Describes a scene with a volume density and a colour everywhere, as mesh extraction needs it."""

    @property
    def half_width(self) -> float:
        """Returns half the edge of the cube about the origin that holds the scene, in world units."""
        ...

    def density(self, points: Tensor) -> Tensor:
        """Returns the density [B, P] per world unit at points [B, P, 3] in world units."""
        ...

    def color(self, points: Tensor) -> Tensor:
        """Returns RGB [B, P, 3], 0..1 and perhaps somewhat beyond, at points [B, P, 3] in world units."""
        ...


class SceneRecord:
    """Makes a `Scene` of a frozen dataclass whose tensors [B, ...] have the batch first. `Gaussians` is one.

    Other fields stay as they are, and a field that is a SceneRecord itself goes along.
    """

    @property
    def batch_size(self) -> int:
        """The number B of scenes."""
        return len(self._first)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._first.device

    @property
    def _first(self) -> Tensor:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return next(value for value in values if isinstance(value, Tensor))

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Returns the same record with `fn` applied to every tensor, nested records included."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = fn(value)
            elif isinstance(value, SceneRecord):
                changes[field.name] = value.map(fn)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Returns the record on another device, or in another type."""
        return self.map(lambda t: t.to(device=device, dtype=dtype))

    def detach(self) -> Self:
        """Returns the record without gradients."""
        return self.map(Tensor.detach)

    def scene(self, b: int) -> Self:
        """Returns scene b alone, as a batch of one."""
        if not -self.batch_size <= b < self.batch_size:
            raise ValueError(f"scene {b} does not exist; there are {self.batch_size}")
        b %= self.batch_size
        return self.map(lambda t: t[b : b + 1])

    def statistics(self, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
        """Returns no statistics; see `Scene.statistics`."""
        return {}
