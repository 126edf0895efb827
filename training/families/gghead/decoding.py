"""Turns the numbers of a UV map into splats, and draws what else a map holds: GGHead's activations and backdrop.

Source: Kirschstein et al. 2024 (GGHead), section 3, and the published weights, whose quaternions have an order of
their own.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Gaussians, Rendering
from gaussian.spherical_harmonics import Y00
from training.families.gghead.config import GeneratorConfig

OVERSHOOT = 0.001  # how far opacities and colours reach beyond 0..1, so that both ends can be had
LEAST_OPACITY = 1e-6  # and 1 minus it: the largest opacity that has a logit to be stored


@dataclass(frozen=True, kw_only=True)
class UvGaussians(Gaussians):
    """Holds splats with the numbers that they were decoded from."""

    raw: Tensor  # [B, N, 10 + 3 K] position, scale, rotation, colour, opacity before their activations
    uv: Tensor  # [B, N, 2] where in the map they lie, -1..1
    backdrop: Tensor | None = None  # [B, 3, R, R] image behind the splats before its activation

    def foreground(self) -> Self:
        """Returns the scene without its backdrop."""
        return dataclasses.replace(self, backdrop=None)

    def raw_parts(self) -> dict[str, Tensor]:
        """Returns `raw` by attribute: position, scale, rotation, color, opacity."""
        widths = (3, 3, 3, self.raw.shape[-1] - 10, 1)
        return dict(zip(("position", "scale", "rotation", "color", "opacity"), self.raw.split(widths, -1), strict=True))


def decode(
    raw: Tensor,  # [B, N, sum of config.attributes], positions after the zero convolution
    anchors: Tensor,  # [N, 3] world units
    uv: Tensor,  # [N, 2]
    config: GeneratorConfig,
    backdrop: Tensor | None = None,
) -> UvGaussians:
    """Applies the activations: splats near their anchors, of limited size, at any angle."""
    position, scale, rotation, color, opacity = raw.split(config.attributes, dim=-1)
    return UvGaussians(
        means=anchors + config.position_range * position.tanh(),
        log_scales=log_scales(scale, config.log_scale_offset, config.largest_log_scale),
        quats=quaternions(2 * math.pi * rotation.tanh()),
        opacity_logits=_limited(opacities(opacity)).logit(),
        sh=harmonics(color).unflatten(-1, (config.sh_coefficients, 3)),
        raw=raw,
        uv=uv.expand(len(raw), -1, -1),
        backdrop=backdrop,
    )


def log_scales(raw: Tensor, offset: float = -5.0, largest: float = -3.0) -> Tensor:
    """Returns ln of sizes that bend towards `largest` and follow raw + offset far below it."""
    return largest - F.softplus(largest - (raw + offset))


def opacities(raw: Tensor) -> Tensor:
    """Returns opacities that overshoot 0 and 1 by a thousandth; rasterisers drop and limit them there."""
    return (1 + 2 * OVERSHOOT) * raw.sigmoid() - OVERSHOOT


def _limited(values: Tensor) -> Tensor:
    """Returns opacities that have a logit. Those beyond pass gradients on as if they were not limited."""
    return values + (values.clamp(LEAST_OPACITY, 1 - LEAST_OPACITY) - values).detach()


def harmonics(raw: Tensor) -> Tensor:
    """Returns coefficients of spherical harmonics, within half of the brightness from black to white each."""
    return 0.5 / Y00 * ((1 + 2 * OVERSHOOT) * raw.tanh() - OVERSHOOT)


def quaternions(axis_angle: Tensor) -> Tensor:
    """Returns the numbers [..., 4] that a rasteriser reads as w, x, y, z for rotation vectors [..., 3] in radians.

    The quaternion (w, x, y, z) of the vector is handed on as (z, w, x, y), as the published code does: its weights
    have learnt under that order, and make other splats under any other.
    """
    squared = axis_angle.square().sum(-1, keepdim=True)
    small = squared < 1e-12  # there sin(a/2)/a and cos(a/2) come from their series, which have gradients
    angle = torch.where(small, 1.0, squared).sqrt()
    xyz = axis_angle * torch.where(small, 0.5 - squared / 48, (angle / 2).sin() / angle)
    w = torch.where(small, 1 - squared / 8, (angle / 2).cos())
    return torch.cat([xyz[..., 2:], w, xyz[..., :2]], dim=-1)


def with_backdrop(rendering: Rendering, backdrop: Tensor, exact: bool) -> Rendering:
    """Puts images [B, 3, R, R], before their activation, behind the splats, which were rendered over white.

    They are enlarged where the picture is larger. The published blend counts the splats' coverage twice, so that
    white shows at soft edges; `exact` counts it once. What is returned is opaque: no other background shows.
    """
    size = rendering.rgb.shape[-2:]
    if backdrop.shape[-1] < max(size):
        backdrop = F.interpolate(backdrop, size, mode="bilinear", align_corners=False)
    elif tuple(backdrop.shape[-2:]) != tuple(size):
        backdrop = F.interpolate(backdrop, size, mode="bilinear", align_corners=False, antialias=True)
    behind = (((1 + 2 * OVERSHOOT) * backdrop.tanh() - OVERSHOOT) + 1)[:, None] / 2  # [B, 1, 3, H, W]
    alpha = rendering.alpha
    front = rendering.rgb - (1 - alpha) if exact else alpha * rendering.rgb
    return Rendering((1 - alpha) * behind + front, torch.ones_like(alpha), rendering.depth)
