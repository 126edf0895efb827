"""Looks into scenes of splats: parts of a scene, and other colours, opacities and sizes for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gaussian import Gaussians
from gaussian.ply import MAX_LOGIT
from gaussian.spherical_harmonics import Y00

# RGB of level 0, 1, ...; eight hues that stay apart for colour-blind eyes (after Okabe and Ito 2008).
LEVEL_COLORS = ((0.84, 0.37, 0.0), (0.0, 0.45, 0.70), (0.0, 0.62, 0.45), (0.90, 0.62, 0.0), (0.80, 0.47, 0.65),
                (0.34, 0.71, 0.91), (0.94, 0.89, 0.26), (0.35, 0.35, 0.35))  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """Chooses what of a scene to show, and how. The default shows the scene as it is."""

    levels: tuple[int, ...] | None = None  # levels of the hierarchy to show, 0 the coarsest; all if None
    anchors: bool = False  # show the anchors that splats hang on, in place of the splats
    point: int | None = None  # show only what descends from this initial point
    nearest: int = 0  # and from so many initial points nearest to it
    opaque: bool = False  # every opacity 1
    scale: float = 1.0  # factor on the standard deviations
    color_levels: bool = False  # every splat in its level's colour of LEVEL_COLORS

    def asked(self) -> list[str]:
        """Returns the options, in the words of gen_videos.py, that differ from the default."""
        fields = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return [f"--{f.name.replace('_', '-')}" for f in fields]


View = Callable[[Any], Any]  # from a scene to the scene that is shown


class Inspect(Protocol):
    """Makes a view of a generator's scenes; raises ValueError with the option's name for what the family lacks."""

    def __call__(self, G: Any, inspection: Inspection, /) -> View: ...


def inspect_splats(G: Any, inspection: Inspection) -> View:
    """Views scenes of splats without levels: --opaque and --scale. Raises ValueError for every other option."""
    supported = {"--opaque", "--scale"} if G.makes_splats else set()
    if missing := [name for name in inspection.asked() if name not in supported]:
        what = "no levels and no anchors" if G.makes_splats else "no splats"
        raise ValueError(f"{missing[0]}: the scenes of this network have {what} to show")
    return lambda scene: scene if inspection == Inspection() else changed_look(scene.as_gaussians(), inspection)


def changed_look(shown: Gaussians, inspection: Inspection) -> Gaussians:
    """Changes colours, opacities and sizes of all splats, as asked."""
    changes: dict[str, Tensor] = {}
    if inspection.color_levels:
        changes["sh"] = _level_sh(shown)
    if inspection.opaque:
        changes["opacity_logits"] = torch.full_like(shown.opacity_logits, MAX_LOGIT)
    if inspection.scale != 1:
        changes["log_scales"] = shown.log_scales + math.log(inspection.scale)
    return dataclasses.replace(shown, **changes) if changes else shown  # type: ignore[arg-type]


def _level_sh(shown: Gaussians) -> Tensor:
    """Returns coefficients [B, N, 1, 3] of a constant colour per level."""
    palette = shown.sh.new_tensor(LEVEL_COLORS)
    levels = torch.arange(len(shown.level_sizes), device=palette.device) % len(palette)
    colors = palette[levels].repeat_interleave(torch.tensor(shown.level_sizes, device=palette.device), dim=0)
    return ((colors - 0.5) / Y00)[None, :, None].expand(shown.batch_size, -1, -1, -1)


# ---------------------------------------------------------------- hierarchies of splats


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
        if level >= G.config.num_levels:  # a background hangs on no point and is no level to ask for
            kept.append(torch.zeros(size, dtype=torch.bool))
            continue
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
