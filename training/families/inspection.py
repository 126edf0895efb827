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
GOLDEN_TURN = (3 - math.sqrt(5)) / 2  # of the colour circle from one initial point to the next: no two are alike


@dataclass(frozen=True)
class Inspection:
    """Chooses what of a scene to show, and how. The default shows the scene as it is."""

    levels: tuple[int, ...] | None = None  # levels of the hierarchy to show, 0 the coarsest; all if None
    anchors: bool = False  # show the anchors that splats hang on, in place of the splats
    point: tuple[int, ...] | None = None  # show only what descends from these initial points
    nearest: int = 0  # and from so many initial points nearest to each of them
    disable_background: bool = False  # leave out what a network puts behind the head
    opaque: bool = False  # every opacity 1
    scale: float = 1.0  # factor on the standard deviations
    color_levels: bool = False  # every splat in its level's colour of LEVEL_COLORS
    color_points: bool = False  # every splat in a colour of the initial point that it descends from
    colors_from: tuple[float, ...] | None = None  # yaw and, if not 0, pitch in degrees: the colours seen from there

    def asked(self) -> list[str]:
        """Returns the options, in the words of gen_videos.py, that differ from the default."""
        fields = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return [f"--{f.name.replace('_', '-')}" for f in fields]

    def __post_init__(self) -> None:
        chosen = [name for name in self.asked() if name in ("--color-levels", "--color-points", "--colors-from")]
        if len(chosen) > 1:
            raise ValueError(f"{chosen[0]} and {chosen[1]} both say which colours splats have; give one of the two")


View = Callable[[Any], Any]  # from a scene to the scene that is shown


class Inspect(Protocol):
    """Makes a view of a generator's scenes; raises ValueError with the option's name for what the family lacks."""

    def __call__(self, G: Any, inspection: Inspection, /) -> View: ...


def inspect_splats(G: Any, inspection: Inspection) -> View:
    """Views scenes of splats without levels. Raises ValueError, with the option's name, for what they do not have."""
    supported = {"--opaque", "--scale", "--colors-from", "--disable-background"} if G.makes_splats else set()
    if missing := [name for name in inspection.asked() if name not in supported]:
        what = "no levels and no anchors" if G.makes_splats else "no splats"
        raise ValueError(f"{missing[0]}: the scenes of this network have {what} to show")
    check_scene(G, inspection)
    if inspection == Inspection():
        return lambda scene: scene

    def view(scene: Any) -> Any:
        scene = scene.foreground() if inspection.disable_background else scene
        return changed_look(colored(scene, G, inspection), inspection)

    return view


def check_scene(G: Any, inspection: Inspection) -> None:
    """Raises ValueError, with the option's name, for what scenes of splats need not have, with levels or without."""
    if inspection.disable_background and not G.has_background:
        raise ValueError("--disable-background: the scenes of this network have no background of their own")
    if inspection.colors_from is not None and not G.colors_follow_view:
        raise ValueError("--colors-from: the colours of this network are the same from everywhere")


def colored(scene: Any, G: Any, inspection: Inspection) -> Any:
    """Returns the scene in the colours that one camera of the data's orbit sees, if asked, wherever it is seen from."""
    if inspection.colors_from is None:
        return scene
    yaw, pitch = (*inspection.colors_from, 0.0)[:2]
    place = G.geometry.orbit(math.radians(yaw), math.radians(pitch)).positions
    places = place.to(scene.means).expand(scene.batch_size, 3)
    shown = scene.as_gaussians(places)
    return dataclasses.replace(shown, sh=_harmonics(shown.colors(places[:, None])[:, 0]))


def changed_look(shown: Gaussians, inspection: Inspection, front: int | None = None) -> Gaussians:
    """Changes opacities and sizes of the first `front` splats as asked, or of all."""
    changes: dict[str, Tensor] = {}
    if inspection.opaque:
        changes["opacity_logits"] = torch.full_like(shown.opacity_logits, MAX_LOGIT)
    if inspection.scale != 1:
        changes["log_scales"] = shown.log_scales + math.log(inspection.scale)
    return _replaced(shown, changes, front)


def _replaced(shown: Gaussians, changes: dict[str, Tensor], front: int | None) -> Gaussians:
    """Returns the scene with other numbers of the first `front` splats."""
    if front is not None and front < shown.num_splats:
        for name, changed in changes.items():
            changes[name] = torch.cat([changed[:, :front], getattr(shown, name)[:, front:]], dim=1)
    return dataclasses.replace(shown, **changes) if changes else shown  # type: ignore[arg-type]


def _harmonics(rgb: Tensor) -> Tensor:
    """Returns coefficients [..., 1, 3] of degree 0 whose colour is RGB [..., 3]."""
    return ((rgb - 0.5) / Y00)[..., None, :]


# ---------------------------------------------------------------- hierarchies of splats


def inspect_hierarchy(G: Any, inspection: Inspection) -> View:
    """Views scenes of the generator G as asked. What a look changes, it changes in front of a background.

    Raises ValueError, in the words of gen_videos.py's options, for what this generator does not have.
    """
    check_scene(G, inspection)
    _check(G, inspection)
    if inspection == Inspection():
        return lambda scene: scene

    def view(scene: Any) -> Gaussians:
        shown = scene.foreground() if inspection.disable_background else scene
        shown = shown.anchors if inspection.anchors else colored(shown, G, inspection)
        front = sum(shown.level_sizes[: G.config.num_levels])
        palette = _palette(shown.level_sizes[: G.config.num_levels], inspection)
        if palette is not None:
            rgb = palette.to(shown.means).expand(shown.batch_size, -1, -1)
            shown = _replaced(shown.as_gaussians(), {"sh": _harmonics(rgb)}, front)  # without what a direction adds
        shown = changed_look(shown, inspection, front)
        kept = _kept(shown.level_sizes, G, inspection)
        if kept is None:
            return shown
        counts = tuple(int(level.sum()) for level in kept)
        return dataclasses.replace(shown.select(torch.cat(kept).to(shown.device)), level_sizes=counts)

    return view


def _check(G: Any, inspection: Inspection) -> None:
    num_levels = G.config.num_levels - inspection.anchors
    if inspection.levels is not None and (wrong := [n for n in inspection.levels if n >= num_levels]):
        of = "anchors" if inspection.anchors else "splats"
        raise ValueError(f"--levels: level {wrong[0]} does not exist; the {of} have levels 0 to {num_levels - 1}")
    points = G.config.num_points
    if inspection.point is not None and (wrong := [n for n in inspection.point if n >= points]):
        raise ValueError(f"--point={wrong[0]}: the initial points are 0 to {points - 1}")
    if inspection.nearest and inspection.point is None:
        raise ValueError(f"--nearest={inspection.nearest} needs a --point to be near to")
    if inspection.nearest >= points:
        raise ValueError(f"--nearest={inspection.nearest}: there are {points - 1} other initial points")
    if inspection.anchors and inspection.colors_from is not None:
        raise ValueError("--colors-from: anchors look the same from everywhere; leave out --anchors or this")


def _palette(level_sizes: tuple[int, ...], inspection: Inspection) -> Tensor | None:
    """Returns RGB [N, 3] by level or by initial point; None if neither is asked for."""
    if inspection.color_levels:
        palette, levels = torch.tensor(LEVEL_COLORS), torch.arange(len(level_sizes))
        return palette[levels % len(palette)].repeat_interleave(torch.tensor(level_sizes), dim=0)
    if inspection.color_points:
        points = level_sizes[0]
        hues = torch.arange(points)[:, None] * GOLDEN_TURN + torch.tensor([0.0, 1 / 3, 2 / 3])
        colors = 0.5 + 0.5 * (2 * math.pi * hues).cos()
        return torch.cat([colors.repeat_interleave(size // points, dim=0) for size in level_sizes])
    return None


def _kept(level_sizes: tuple[int, ...], G: Any, inspection: Inspection) -> list[Tensor] | None:
    """Returns a mask of the splats to show for every level; None for all."""
    if inspection.levels is None and inspection.point is None:
        return None
    points = level_sizes[0]
    kept_points = torch.ones(points, dtype=torch.bool)
    if inspection.point is not None:
        kept_points = torch.zeros(points, dtype=torch.bool)
        for point in inspection.point:
            kept_points[nearest_points(G, point, inspection.nearest)] = True
    kept = []
    for level, size in enumerate(level_sizes):
        if level >= G.config.num_levels:  # a background hangs on no point and is no level to ask for
            kept.append(torch.zeros(size, dtype=torch.bool))
            continue
        wanted = inspection.levels is None or level in inspection.levels
        # The descendants of a point are consecutive within a level.
        kept.append(kept_points.repeat_interleave(size // points) & wanted)
    return kept


def nearest_points(G: Any, point: int, count: int) -> Tensor:
    """Returns the numbers [count + 1] of an initial point and the `count` ones nearest to it, nearest first.

    Initial points are learned and the same for every head, so a film of changing heads keeps showing the same ones.
    """
    positions = G.initial_points.detach().cpu()  # [P, 3]
    distance = (positions - positions[point]).norm(dim=-1)
    distance[point] = -1  # first, whatever else lies on it
    return distance.argsort(stable=True)[: count + 1]
