"""Views into the hierarchy of splats: levels, anchors, and what descends from an initial point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaussian import Gaussians
from training.families.inspection import Inspection, View, changed_look


def inspect_hierarchy(G: Any, inspection: Inspection) -> View:
    """Views scenes of the generator G as asked.

    Raises ValueError, in the words of gen_videos.py's options, for what this generator does not have.
    """
    _check(G, inspection)

    def view(scene: Any) -> Gaussians:
        shown = changed_look(scene.anchors if inspection.anchors else scene, inspection)
        keep = _kept(shown.level_sizes, G, inspection)
        return shown if keep is None else shown.select(keep.to(shown.device))

    return view


def _check(G: Any, inspection: Inspection) -> None:
    num_levels = G.config.num_levels - inspection.anchors
    if inspection.levels is not None and (wrong := [n for n in inspection.levels if n >= num_levels]):
        of = "anchors" if inspection.anchors else "splats"
        raise ValueError(f"--levels: level {wrong[0]} does not exist; the {of} have levels 0 to {num_levels - 1}")
    points = G.config.num_points
    if inspection.point is not None and inspection.point >= points:
        raise ValueError(f"--point={inspection.point}: the initial points are 0 to {points - 1}")
    if inspection.nearest and inspection.point is None:
        raise ValueError(f"--nearest={inspection.nearest} needs a --point to be near to")
    if inspection.nearest >= points:
        raise ValueError(f"--nearest={inspection.nearest}: there are {points - 1} other initial points")


def _kept(level_sizes: tuple[int, ...], G: Any, inspection: Inspection) -> Tensor | None:
    """Returns a mask [N] of the splats to show; None for all."""
    if inspection.levels is None and inspection.point is None:
        return None
    points = level_sizes[0]
    kept_points = torch.ones(points, dtype=torch.bool)
    if inspection.point is not None:
        kept_points = torch.zeros(points, dtype=torch.bool)
        kept_points[nearest_points(G, inspection.point, inspection.nearest)] = True
    kept = []
    for level, size in enumerate(level_sizes):
        wanted = inspection.levels is None or level in inspection.levels
        # The descendants of a point are consecutive within a level.
        kept.append(kept_points.repeat_interleave(size // points) & wanted)
    return torch.cat(kept)


def nearest_points(G: Any, point: int, count: int) -> Tensor:
    """Returns the numbers [count + 1] of an initial point and the `count` ones nearest to it, nearest first.

    Initial points are learned and the same for every head, so a film of changing heads keeps showing the same ones.
    """
    positions = G.initial_points.detach().cpu()  # [P, 3]
    distance = (positions - positions[point]).norm(dim=-1)
    distance[point] = -1  # first, whatever else lies on it
    return distance.argsort(stable=True)[: count + 1]
