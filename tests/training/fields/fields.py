"""Fields to test with: waves of any features, and a ball whose opacity is known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gaussian import Cameras, Geometry
from training.fields.field import RadianceField
from training.fields.marching import March, RayDraws

NEAR, FAR = 0.7, 1.3
GEOMETRY = Geometry(
    pivot=(0.0, 0.0, 0.0),
    centre=(0.0, 0.0, 0.0),
    radius=1.0,
    intrinsics=((1.9, 0.0, 0.47), (0.0, 2.1, 0.52), (0.0, 0.0, 1.0)),
)


@dataclass(frozen=True)
class Waves(RadianceField):
    """Features and density that change along rays, and features that change with the direction."""

    first: Tensor  # [B, 3, 6]
    second: Tensor  # [B, 6, C + 1]

    def sample(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = torch.sin(points @ self.first)
        out = hidden @ self.second
        tint = 0 if directions is None else 0.3 * directions.sum(-1, keepdim=True)
        return (out[..., :-1] + tint).sigmoid(), 8 * out[..., -1]


@dataclass(frozen=True)
class Balls(RadianceField):
    """Red balls of even density."""

    balls: Tensor  # [B, 5] centre, radius, density

    def sample(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        centre, radius, density = self.balls[:, None].split([3, 1, 1], dim=-1)
        inside = (points - centre).norm(dim=-1, keepdim=True) < radius
        color = torch.tensor([1.0, 0.0, 0.0], dtype=points.dtype).expand_as(points)
        return color, (inside * density)[..., 0]


def waves(batch: int = 2, channels: int = 3, activation: str = "softplus", dtype: torch.dtype = torch.float64) -> Waves:
    g = torch.Generator().manual_seed(3)
    first = 6 * torch.randn(batch, 3, 6, generator=g, dtype=torch.float64)
    second = torch.randn(batch, 6, channels + 1, generator=g, dtype=torch.float64)
    return Waves(0.3, 1.0, activation, -0.5, first.to(dtype), second.to(dtype))


def cameras(batch: int = 2, views: int = 2, dtype: torch.dtype = torch.float64) -> Cameras:
    yaw = torch.linspace(-0.8, 0.9, batch * views, dtype=torch.float64).view(batch, views)
    return GEOMETRY.orbit(yaw, 0.3 * yaw.sin()).to(dtype=dtype)


def numbers(march: March, rays: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> RayDraws:
    g = torch.Generator().manual_seed(5)
    first, fine = march.samples, march.fine_samples

    def uniform(count: int) -> Tensor:
        return torch.rand(batch, rays, count, generator=g, dtype=torch.float64).to(dtype)

    def normal(count: int) -> Tensor:
        return torch.randn(batch, rays, count, generator=g, dtype=torch.float64).to(dtype)

    return RayDraws(uniform(first), uniform(fine), normal(first), normal(first + fine))
