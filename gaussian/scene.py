"""Defines what a generator's synthesis returns, as protocols: any scene, one of splats, one with a density."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

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

    def statistics(self, cameras: Cameras) -> dict[str, Tensor]:
        """Returns named tensors to be averaged over a run's reporting interval, without gradient; may be empty.

        cameras: [B, V], those that the scenes are rendered from.
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
    """Describes a scene with a volume density, as mesh extraction needs it."""

    @property
    def half_width(self) -> float:
        """Returns half the edge of the cube about the origin that holds the scene, in world units."""
        ...

    def density(self, points: Tensor) -> Tensor:
        """Returns the density [B, P] per world unit at points [B, P, 3] in world units."""
        ...
