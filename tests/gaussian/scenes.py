"""Makes small scenes and cameras for the tests of gaussian/, and lists the back ends that they run on."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from gaussian import Cameras, Gaussians, backend_cpu

BACKENDS = [
    "torch",
    pytest.param("cpu", marks=pytest.mark.skipif(not backend_cpu.available(), reason="no native back end")),
]


def make_scene(batch=1, splats=20, size=0.05, seed=0, coefficients=1, dtype=torch.float32):
    """Draws random splats of about that standard deviation in a ball of radius 0.3 about the origin."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scene = Gaussians(
        means=0.3 * F.normalize(normal(batch, splats, 3), dim=-1) * torch.rand(
            batch, splats, 1, generator=generator, dtype=torch.float64),
        log_scales=math.log(size) + 0.5 * normal(batch, splats, 3),
        quats=normal(batch, splats, 4),
        opacity_logits=normal(batch, splats, 1),
        sh=normal(batch, splats, coefficients, 3),
    )  # fmt: skip
    return scene.to(dtype=dtype)


def one_splat(point, size=1e-4, opacity_logit=4.0, dtype=torch.float32):
    """Returns a round white splat [1, 1] at a world point."""
    return Gaussians(
        means=torch.as_tensor(point, dtype=dtype).reshape(1, 1, 3),
        log_scales=torch.full((1, 1, 3), math.log(size), dtype=dtype),
        quats=torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], dtype=dtype),
        opacity_logits=torch.full((1, 1, 1), opacity_logit, dtype=dtype),
        sh=torch.full((1, 1, 1, 3), 0.5 / 0.28209479177387814, dtype=dtype),
    )


def make_intrinsics(fx=4.2647, fy=None, cx=0.5, cy=0.5, dtype=torch.float32):
    return torch.tensor([[fx, 0, cx], [0, fx if fy is None else fy, cy], [0, 0, 1]], dtype=dtype)


def make_cameras(batch=1, views=1, seed=0, distance=2.7, roll=0.0, dtype=torch.float32, **intrinsics):
    """Draws cameras [batch, views] at a distance from the origin, looking near it, rolled by up to `roll` radians."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(batch, views, 3, generator=generator, dtype=torch.float64)
    position = distance * F.normalize(direction * torch.tensor([1.0, 0.5, 1.0]), dim=-1)
    target = 0.05 * torch.randn(batch, views, 3, generator=generator, dtype=torch.float64)
    angle = roll * (2 * torch.rand(batch, views, generator=generator, dtype=torch.float64) - 1)
    up = torch.stack([angle.sin(), angle.cos(), torch.zeros_like(angle)], dim=-1)
    return Cameras.look_at(position, target, up, intrinsics=make_intrinsics(**intrinsics).double()).to(dtype=dtype)


def centroid(alpha):
    """Returns the centre of mass [..., 2] of images [..., H, W], x then y in pixels, where pixel i spans i..i+1."""
    height, width = alpha.shape[-2:]
    total = alpha.sum((-1, -2))
    x = (alpha.sum(-2) * (torch.arange(width) + 0.5)).sum(-1) / total
    y = (alpha.sum(-1) * (torch.arange(height) + 0.5)).sum(-1) / total
    return torch.stack([x, y], dim=-1)


@dataclass(frozen=True)
class Anchored(Gaussians):
    """Splats that know others, as those of a hierarchy know their anchors."""

    anchors: Gaussians | None = None


def anchored():
    scene, anchors = make_scene(2, 6), make_scene(2, 4, seed=1)
    fields = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)}
    return Anchored(**{**fields, "level_sizes": (2, 4)}, anchors=anchors)
