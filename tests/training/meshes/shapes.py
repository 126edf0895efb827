"""Shapes whose surface is known: balls of density, shells of splats, ray-cast heads, and a generator of balls."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, Gaussians, Geometry, Rendering
from gaussian.rotations import matrices_to_quats
from tests.training.visualization import toys
from training.data.synthetic import heads
from training.data.synthetic.raycast import cast
from training.data.synthetic.traits import sample_traits
from training.families.base import AT_REST, Generator, StepContext
from training.fields.field import RadianceField
from training.fields.marching import March, render_field
from training.meshes.fusion import DepthViews

INTRINSICS = ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0))
GEOMETRY = Geometry(pivot=(0.0, 0.0, 0.0), centre=(0.0, 0.0, 0.0), radius=2.7, intrinsics=INTRINSICS)


@dataclass(frozen=True)
class SoftBall(RadianceField):
    """Balls that are red above y = 0 and green below."""

    balls: Tensor  # [B, 6] centre, radius, density inside, width of the edge; units of the field

    def sample(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        centre, radius, density, edge = self.balls[:, None].split([3, 1, 1, 1], dim=-1)
        away = (points - centre).norm(dim=-1, keepdim=True) - radius
        up = (points[..., 1:2] > 0).to(points)
        return torch.cat([up, 1 - up, torch.zeros_like(up)], dim=-1), (density * torch.sigmoid(-away / edge))[..., 0]


def soft_ball(*numbers: float, half_width: float = 0.5, unit: float = 1.0) -> SoftBall:
    return SoftBall(half_width, unit, "relu", 0.0, torch.tensor([numbers]))


class BallGenerator(toys.FogGenerator):
    """Makes balls whose radius is 0.3 for even numbers of seeds before it, and no balls for odd ones."""

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> Any:
        self.batches.append(len(ws))
        opaque = 100.0 * (len(self.batches) % 2 == 0)
        return soft_ball(0.1, 0.0, 0.0, 0.3, opaque, 0.005)

    def render(
        self,
        scene: Any,
        cameras: Cameras,
        resolution: int | tuple[int, int] | None = None,
        background: Tensor | None = None,
        at: StepContext = AT_REST,
    ) -> Rendering:
        return render_field(scene, cameras, resolution or self.resolution, March(2.0, 3.4, 16, 0), background)


def shell(count: int, radius: float, size: float, flat: float, opacity: float, centre: Tensor) -> Gaussians:
    """Splats spread evenly over a sphere, `flat` times as thick as they are wide, white above and black below."""
    k = torch.arange(count, dtype=torch.float64)
    y, angle = 1 - (2 * k + 1) / count, k * math.pi * (3 - math.sqrt(5))
    ring = (1 - y * y).sqrt()
    out = torch.stack([ring * angle.sin(), y, ring * angle.cos()], dim=-1).float()
    side = F.normalize(torch.linalg.cross(out, torch.tensor([0.02, 1.0, 0.1]).expand_as(out)), dim=-1)
    quats = matrices_to_quats(torch.stack([side, torch.linalg.cross(out, side), out], dim=-1))
    return Gaussians(
        means=(centre + radius * out)[None],
        log_scales=torch.tensor([size, size, size * flat]).log().expand(1, count, 3),
        quats=quats[None],
        opacity_logits=torch.full((1, count, 1), math.log(opacity / (1 - opacity))),
        sh=torch.where(out[None, :, None, 1:2] > 0, 1.7, -1.7).expand(1, count, 1, 3),
    )


class ShellGenerator(Generator):
    """Renders splats that it is handed."""

    def __init__(self, geometry: Geometry = GEOMETRY) -> None:
        super().__init__()
        self.info = dataclasses.replace(toys.FogGenerator(geometry).info)

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        return z

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> Any:
        raise NotImplementedError

    def render(
        self,
        scene: Any,
        cameras: Cameras,
        resolution: int | tuple[int, int] | None = None,
        background: Tensor | None = None,
        at: StepContext = AT_REST,
    ) -> Rendering:
        from gaussian import render

        return render(scene, cameras, resolution or 32, background)


@dataclass(frozen=True)
class HeadViews:
    """What rays find of a head: depth maps, and the points and normals of its surface."""

    views: DepthViews
    points: np.ndarray  # [K, 3]
    normals: np.ndarray  # [K, 3]
    colors: np.ndarray  # [K, 3] RGB 0..1


def head_views(index: int, cameras: Cameras, resolution: int) -> HeadViews:
    head = heads.build_head(sample_traits(0, index))
    depths, images, points, normals, colors = [], [], [], [], []
    for camera in cameras.to(dtype=torch.float64):
        hits = cast(head.solids, camera.cam2world.numpy(), camera.intrinsics.numpy(), resolution, 1)
        shaded = heads.shade(head, hits)
        image = np.zeros((resolution, resolution, 3))
        image[np.isfinite(hits.z)] = shaded
        depths.append(torch.from_numpy(hits.z).float())
        images.append(torch.from_numpy(np.rint(255 * image.clip(0, 1)).astype(np.uint8)))
        points.append(hits.points)
        normals.append(hits.normals)
        colors.append(shaded)
    views = DepthViews(cameras, torch.stack(depths), torch.stack(images))
    return HeadViews(views, np.concatenate(points), np.concatenate(normals), np.concatenate(colors))
