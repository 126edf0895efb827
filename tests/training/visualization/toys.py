"""Defines generators of a family of their own, as small as can be, to see what the scripts take for granted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from gaussian import Cameras, Gaussians, Geometry, Rendering, render
from training.families import FAMILIES
from training.families.base import AT_REST, CheckpointInfo, Family, Generator, StepContext
from training.families.inspection import inspect_splats

NAME = "toy"
# The family itself: nothing but the view into scenes is asked of it here.
FAMILY: Family = dataclasses.replace(FAMILIES["cgs"], name=NAME, inspect=inspect_splats)


@dataclass(frozen=True)
class Fog:
    """Fills everything with one colour: a scene without splats."""

    colors: Tensor  # [B, 3] RGB 0..1

    @property
    def batch_size(self) -> int:
        """Returns B."""
        return len(self.colors)

    @property
    def device(self) -> torch.device:
        """Returns where the colours are."""
        return self.colors.device

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Applies `fn` to the colours."""
        return type(self)(fn(self.colors))

    def statistics(self, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
        """Returns nothing."""
        return {}


@dataclass(frozen=True)
class Chameleon(Fog):
    """Can be given as one splat, whose colour is the place that it is seen from."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Returns no levels."""
        return ()

    def as_gaussians(self, viewpoint: Tensor | None = None) -> Gaussians:
        """Returns a splat at (0.1, 0, 0) whose raw colour is the viewpoint."""
        count = len(self.colors)
        place = torch.zeros(count, 3) if viewpoint is None else viewpoint
        quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 1, 4)
        means = torch.tensor([0.1, 0.0, 0.0]).expand(count, 1, 3)
        return Gaussians(means, torch.full((count, 1, 3), -3.0), quats, torch.ones(count, 1, 1), place[:, None, None])


class FogGenerator(Generator):
    """Maps a latent, and the camera that it insists on, to fog."""

    makes_splats = False
    scene_type: type[Fog] = Fog

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.z_dim, self.w_dim, self.num_ws, self.resolution = 4, 3, 2, 8
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.info = CheckpointInfo({"family": NAME}, geometry, (-0.6, 0.5), "0,0,1")
        self.told: list[Cameras] = []  # what mapping was told
        self.batches: list[int] = []  # scenes that were synthesised at once

    @property
    def scene_numbers(self) -> int:
        """Returns the cost of a scene, in splats."""
        return 100

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Returns ws that depend on the latents and on psi. Raises ValueError without a camera for each of them."""
        if cameras is None or cameras.shape != (len(z),):
            raise ValueError("this mapping must be told a camera")
        self.told.append(cameras)
        return (psi * z[:, None, :3]).sigmoid().expand(-1, self.num_ws, -1)

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> Fog:
        """Makes fog of the first w's colour."""
        self.batches.append(len(ws))
        return self.scene_type(ws[:, 0])

    def render(
        self,
        scene: Any,
        cameras: Cameras,
        resolution: int | tuple[int, int] | None = None,
        background: Tensor | None = None,
        at: StepContext = AT_REST,
    ) -> Rendering:
        """Renders fog, or the Gaussians that a view made of it."""
        size = resolution or self.resolution
        if isinstance(scene, Gaussians):
            return render(scene, cameras, size, background)
        assert isinstance(size, int)
        ones = torch.ones(*cameras.shape, 1, size, size)
        return Rendering(scene.colors[:, None, :, None, None] * ones, ones, 2 * ones)

    def update_average(self, mean_ws: Tensor, batch: int) -> None:
        """Does nothing: there is no truncation centre."""


class ChameleonGenerator(FogGenerator):
    """Maps a latent and a camera to scenes that can be given as splats, but are none themselves."""

    makes_splats = True
    scene_type = Chameleon
