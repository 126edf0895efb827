"""Defines radiance fields as scenes: what has a colour and a density everywhere, whatever computes them."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussian import Cameras, SceneRecord
from training.fields.volume import absorption

LATTICE = 12  # points along each edge of the cube at which the statistics look


@dataclass(frozen=True)
class RadianceField(SceneRecord, abc.ABC):
    """Is the base of scenes that are fields: B of them, with the batch first in every tensor of the record.

    Subclasses are frozen dataclasses that add their tensors (planes, frequencies) and what reads them (a network, which
    is no tensor and stays as it is), and write `sample`. They satisfy `gaussian.Scene` and `gaussian.Density`.
    """

    half_width: float  # half the edge of the cube about the origin that holds the scene, world units
    unit: float  # units of the field per world unit: published fields keep the cameras at a distance of 1
    activation: str  # what makes a density of a raw value: "relu" or "softplus",
    shift: float  # after this was added to it

    @abc.abstractmethod
    def sample(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns features [B, P, C], as they are shown (RGB in 0..1), and raw densities [B, P].

        points: [B, P, 3] in units of the field; directions: [B, P, 3] of length 1, from the camera on. None asks for
        features from no direction in particular. Densities are per unit of the field.
        """

    def raw_density(self, points: Tensor) -> Tensor:
        """Returns the density [B, P] before shift and activation at points [B, P, 3] in units of the field."""
        return self.sample(points, None)[1]

    def density(self, points: Tensor) -> Tensor:
        """Returns the density [B, P] per world unit at points [B, P, 3] in world units."""
        return absorption(self.raw_density(points * self.unit), self.activation, self.shift) * self.unit

    def color(self, points: Tensor) -> Tensor:
        """Returns RGB [B, P, 3], 0..1 and perhaps somewhat beyond, from no direction, at points in world units."""
        return self.sample(points * self.unit, None)[0][..., :3]

    def normals(self, points: Tensor) -> Tensor:
        """Returns directions of length 1 in which the raw density falls, or 0 where it is even, [B, P, 3].

        points: [B, P, 3] in units of the field, with a gradient or without. Differentiable where gradients are kept.
        """
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points if points.requires_grad else points.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.raw_density(points).sum(), points, create_graph=create)
        return -slope / (slope.norm(dim=-1, keepdim=True) + 1e-7)

    @torch.no_grad()
    def statistics(self, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
        """Returns, over a lattice that fills the cube, the mean opacity [B] of a twelfth of its edge, and how much of
        it is opaque, over one half.
        """
        places = ((torch.arange(LATTICE, device=self.device) + 0.5) / LATTICE * 2 - 1) * self.half_width
        points = torch.stack(torch.meshgrid(places, places, places, indexing="ij"), dim=-1).flatten(0, 2)
        points = points.to(self._first.dtype).expand(self.batch_size, -1, -1)
        opacity = -torch.expm1(-self.density(points) * (2 * self.half_width / LATTICE))
        return {"Field/opacity": opacity.mean(1), "Field/opaque": (opacity > 0.5).float().mean(1)}
