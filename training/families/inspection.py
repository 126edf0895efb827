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
