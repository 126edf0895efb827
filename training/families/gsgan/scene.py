"""Defines the scenes of GSGAN: splats whose colours depend on the direction in which the camera looks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, Gaussians
from gaussian.spherical_harmonics import Y00
from gaussian.statistics import scene_statistics
from torch_utils.ops import LRELU_SLOPE
from training.networks import color

FRONTAL = (0.0, 0.0, -1.0)  # direction in which a frontal camera looks


@dataclass(frozen=True, kw_only=True)
class ViewedGaussians(Gaussians):
    """Holds splats of all levels, coarse first, and then those of a background, which looks alike from everywhere.

    `sh` is the colour without what the direction adds: for every level the same for all of its splats,
    heads * leaky_relu(encoder * [direction, 1]).
    """

    anchors: Gaussians  # what the splats hang on (level 0 first, one level fewer), as the heads leave them
    encoder: Tensor  # [B, E, 4] weight and bias of the direction's encoder
    tints: Tensor  # [B, L, 3, E] what the encoded direction adds to `sh`, by level
    tinted_sizes: tuple[int, ...]  # splats of each of the L levels, in their order; what follows is background
    color_rule: str  # one of training.networks.color.RULES

    def tint(self, directions: Tensor) -> Tensor:
        """Returns what directions [B, V, 3], of length 1, add to `sh`: [B, V, L, 3]."""
        encoded = torch.einsum("bvd,bed->bve", directions, self.encoder[..., :3]) + self.encoder[:, None, :, 3]
        return torch.einsum("bve,blce->bvlc", F.leaky_relu(encoded, LRELU_SLOPE), self.tints)

    def viewed_sh(self, directions: Tensor) -> Tensor:
        """Returns degree-0 coefficients as seen in directions [B, V, 3], of length 1: [B, V, N, 3]."""
        tint, base = self.tint(directions), self.sh[:, None, :, 0]  # [B, V, L, 3], [B, 1, N, 3]
        rest = base.shape[2] - sum(self.tinted_sizes)
        *levels, background = base.split([*self.tinted_sizes, rest], dim=2)
        parts = [part + tint[:, :, i, None] for i, part in enumerate(levels)]
        sh = torch.cat([*parts, background.expand(-1, directions.shape[1], -1, -1)], dim=2)
        return color.inward_floor(sh) if self.color_rule == "inward" else sh

    def viewed_colors(self, directions: Tensor) -> Tensor:
        """Returns RGB [B, V, N, 3] as seen in directions [B, V, 3], 0 and up, not limited from above."""
        return torch.relu(Y00 * self.viewed_sh(directions) + 0.5)

    def colors(self, viewpoints: Tensor | None = None) -> Tensor:
        """Returns RGB as seen from viewpoints [B, V, 3] looking at the origin: [B, V, N, 3]; frontally without any."""
        if viewpoints is None:
            return self.as_gaussians().colors()
        return self.viewed_colors(F.normalize(-viewpoints, dim=-1))

    def as_gaussians(self, viewpoint: Tensor | None = None) -> Gaussians:
        """Returns the splats in the colours that viewpoint [B, 3], looking at the origin, sees; or a frontal camera."""
        if viewpoint is None:
            directions = self.means.new_tensor(FRONTAL).expand(self.batch_size, 3)
        else:
            directions = F.normalize(-viewpoint.to(self.means), dim=-1)
        sh = self.viewed_sh(directions[:, None])[:, 0, :, None]
        return Gaussians(self.means, self.log_scales, self.quats, self.opacity_logits, sh, self.level_sizes)

    def statistics(self, cameras: Cameras, resolution: int) -> dict[str, Tensor]:
        """Returns the statistics of the levels, without the background, in the colours of the first view."""
        return scene_statistics(self.foreground().as_gaussians(cameras.positions[:, 0]), cameras, resolution)

    def select(self, which: Tensor | slice | int) -> Self:
        """Returns some of the splats of every scene. Raises ValueError for an order that mixes their levels."""
        sizes = torch.tensor([*self.tinted_sizes, self.num_splats - sum(self.tinted_sizes)])
        rows = self.rows_of(which)
        chosen = torch.arange(len(sizes)).repeat_interleave(sizes)[rows if isinstance(rows, slice) else rows.cpu()]
        if bool((chosen.diff() < 0).any()):
            raise ValueError("splats whose colours depend on the view are selected level by level, coarse first")
        counts = tuple(chosen.bincount(minlength=len(sizes)).tolist())
        return dataclasses.replace(super().select(which), tinted_sizes=counts[:-1])

    def foreground(self) -> Self:
        """Returns the scene without its background."""
        front = self.select(slice(0, sum(self.tinted_sizes)))
        return dataclasses.replace(front, level_sizes=self.level_sizes[: len(self.tinted_sizes)])

    def _rotated(self, rotation: Tensor) -> Self:
        """Rotates directions along with the splats."""
        turned = super()._rotated(rotation)
        encoder = torch.cat([self.encoder[..., :3] @ rotation.mT, self.encoder[..., 3:]], dim=-1)
        return dataclasses.replace(turned, encoder=encoder)
