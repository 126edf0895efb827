"""Ways to look into the hierarchy of splats: parts of a scene, and other colours, opacities and sizes for it."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussian import Gaussians
from gaussian.ply import MAX_LOGIT
from gaussian.spherical_harmonics import Y00
from training.families.cgs.generator import Generator, HierarchicalGaussians

# RGB of level 0, 1, ...; eight hues that stay apart for colour-blind eyes (after Okabe and Ito 2008).
LEVEL_COLORS = ((0.84, 0.37, 0.0), (0.0, 0.45, 0.70), (0.0, 0.62, 0.45), (0.90, 0.62, 0.0), (0.80, 0.47, 0.65),
                (0.34, 0.71, 0.91), (0.94, 0.89, 0.26), (0.35, 0.35, 0.35))  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """What of a scene to show, and how. The default shows the scene as it is."""

    levels: tuple[int, ...] | None = None  # of the hierarchy, 0 the coarsest; all if None
    anchors: bool = False  # the anchors that splats hang on, in place of the splats; they have one level fewer
    point: int | None = None  # show only what descends from this initial point
    nearest: int = 0  # and from so many initial points nearest to it
    opaque: bool = False  # every opacity 1
    scale: float = 1.0  # factor on the standard deviations
    color_levels: bool = False  # every splat in its level's colour of LEVEL_COLORS

    def check(self, G: Generator) -> None:
        """Raises ValueError, in the words of gen_videos.py's options, for what this generator does not have."""
        num_levels = G.config.num_levels - self.anchors
        if self.levels is not None and (wrong := [n for n in self.levels if n >= num_levels]):
            of = "anchors" if self.anchors else "splats"
            raise ValueError(f"--levels: level {wrong[0]} does not exist; the {of} have levels 0 to {num_levels - 1}")
        points = G.config.num_points
        if self.point is not None and self.point >= points:
            raise ValueError(f"--point={self.point}: the initial points are 0 to {points - 1}")
        if self.nearest and self.point is None:
            raise ValueError(f"--nearest={self.nearest} needs a --point to be near to")
        if self.nearest >= points:
            raise ValueError(f"--nearest={self.nearest}: there are {points - 1} other initial points")

    def apply(self, scene: HierarchicalGaussians, G: Generator) -> Gaussians:
        """The part of every scene that is to be seen, changed as asked."""
        shown: Gaussians = scene.anchors if self.anchors else scene
        changes = {}
        if self.color_levels:
            changes["sh"] = _level_sh(shown)
        if self.opaque:
            changes["opacity_logits"] = torch.full_like(shown.opacity_logits, MAX_LOGIT)
        if self.scale != 1:
            changes["log_scales"] = shown.log_scales + math.log(self.scale)
        if changes:
            shown = dataclasses.replace(shown, **changes)
        keep = self._kept(shown.level_sizes, G)
        return shown if keep is None else shown.select(keep.to(shown.device))

    def _kept(self, level_sizes: tuple[int, ...], G: Generator) -> Tensor | None:
        """Mask [N] of the splats to show; None for all."""
        if self.levels is None and self.point is None:
            return None
        points = level_sizes[0]
        kept_points = torch.ones(points, dtype=torch.bool)
        if self.point is not None:
            kept_points = torch.zeros(points, dtype=torch.bool)
            kept_points[nearest_points(G, self.point, self.nearest)] = True
        kept = []
        for level, size in enumerate(level_sizes):
            wanted = self.levels is None or level in self.levels
            # The descendants of a point are consecutive within a level.
            kept.append(kept_points.repeat_interleave(size // points) & wanted)
        return torch.cat(kept)


def nearest_points(G: Generator, point: int, count: int) -> Tensor:
    """Numbers [count + 1] of an initial point and the `count` ones nearest to it, nearest first.

    Initial points are learned and the same for every head, so a film of changing heads keeps showing the same ones.
    """
    positions = G.initial_points.detach().cpu()  # [P, 3]
    distance = (positions - positions[point]).norm(dim=-1)
    distance[point] = -1  # first, whatever else lies on it
    return distance.argsort(stable=True)[: count + 1]


def _level_sh(shown: Gaussians) -> Tensor:
    """Coefficients [B, N, 1, 3] of a constant colour per level."""
    palette = shown.sh.new_tensor(LEVEL_COLORS)
    levels = torch.arange(len(shown.level_sizes), device=palette.device) % len(palette)
    colors = palette[levels].repeat_interleave(torch.tensor(shown.level_sizes, device=palette.device), dim=0)
    return ((colors - 0.5) / Y00)[None, :, None].expand(shown.batch_size, -1, -1, -1)
