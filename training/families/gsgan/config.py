"""Describes a GSGAN generator in one record: the published members, and members of any other size."""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from gaussian.gaussians import LOW_PASS
from gaussian.rendering import check_low_pass
from training.families import base
from training.networks import color
from training.networks.point_encoding import POINT_ENCODINGS
from training.networks.start import STARTS, Start
from training.records import Record

RATIO = 4  # children of every point, from level to level
COARSEST = 4  # the published name of level 0; the next levels are called 8, 16, ...
CHILD_CLAMP = (-8.0, 0.0)  # ln of scales from level 1 on, world units

# By resolution, as published (Hyun and Heo 2024): levels of the hierarchy.
_PUBLISHED_LEVELS = {256: 5, 512: 6}
_PUBLISHED_WIDTHS = (512, 512, 256, 128, 128, 128)


@dataclass(frozen=True)
class Conventions(Record):
    """States in what the published code sees the world otherwise than its labels say, and how it rounds.

    The defaults, for new training, follow the labels and keep the precision. `PUBLISHED_CONVENTIONS` is what published
    weights were trained with: a field of view of its own (12.96, in degrees by its looks, read as radians), the wrong
    sign of a camera's sideways offset, and features rounded to half precision on any device.
    """

    tan_half_fov: float | None = None  # of all cameras, principal point in the middle; None: the labels' intrinsics
    flip_view_x: bool = False  # the world's offset along the camera's x axis has the wrong sign
    half_rounding: bool = False  # features of the fine levels pass through float16

    def __post_init__(self) -> None:
        if self.tan_half_fov is not None and not 0 < self.tan_half_fov < math.inf:
            raise ValueError(
                f"generator.conventions.tan_half_fov={self.tan_half_fov} must be finite and greater than 0"
            )


PUBLISHED_CONVENTIONS = Conventions(tan_half_fov=math.tan(12.96 / 2), flip_view_x=True, half_rounding=True)


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    """Holds everything that a Generator is built from. Raises ValueError for values that cannot be built."""

    resolution: int  # pixels of an image; sets the smallest splat
    z_dim: int  # numbers of a latent
    w_dim: int  # numbers of a w
    num_points: int  # tokens of the transformer, which are the splats of level 0; each level has RATIO times as many
    widths: tuple[int, ...]  # features per splat and level; the first is the transformer's width
    blocks: int  # transformer blocks
    num_heads: int  # attention heads of a transformer block
    neighbours: int = 16  # of a point in the edge attention before levels 1 and 2
    map_depth: int = 2  # layers of the mapping network
    pose_conditioned: bool = True  # the mapping is told a camera
    view_features: int = 32  # numbers that the viewing direction becomes for the colour heads
    background_points: int = (
        2000  # splats of the background's first level, with four times as many on the second; 0: none
    )
    background_width: int = 128  # features of a background splat
    background_nimg: int = 50_000  # images seen before the background appears
    point_encoding: str = "fourier+table"  # second half: a table read at the point (published), or a code per point
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads
    scale_bias: float = (
        0.0  # of the heads of log scales at the start; 0 (published) makes a first child rho * 2 smaller
    )
    low_pass: float = LOW_PASS  # square pixels that splats are wider by in an image, see `gaussian.render`
    color_rule: str = "published"  # or "inward": black splats still learn to be brighter, see networks/color.py
    start: str = "published"  # or "surface": how it looks before it has learnt anything, see networks/start.py
    conventions: Conventions = field(default_factory=Conventions)

    def __post_init__(self) -> None:
        ones = ("resolution", "z_dim", "w_dim", "num_points", "blocks", "num_heads", "neighbours", "map_depth",
                "view_features", "background_width")  # fmt: skip
        for name in ones:
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 1 or more")
        check_low_pass(self.low_pass, "generator.low_pass")
        for name in ("background_points", "background_nimg"):
            if getattr(self, name) < 0:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 0 or more")
        if len(self.widths) < 2 or min(self.widths) < 2 or any(width % 2 for width in self.widths[:-1]):
            raise ValueError(f"widths {self.widths} must be two or more even numbers, one per level")
        if self.widths[0] % self.num_heads:
            raise ValueError(f"widths[0] = {self.widths[0]} must be a multiple of num_heads = {self.num_heads}")
        if self.neighbours >= self.num_points:
            raise ValueError(f"neighbours={self.neighbours} must be fewer than num_points = {self.num_points}")
        if self.point_encoding not in POINT_ENCODINGS:
            raise ValueError(f"point_encoding={self.point_encoding!r}; legal are {', '.join(POINT_ENCODINGS)}")
        if self.color_rule not in color.RULES:
            raise ValueError(f"color_rule={self.color_rule!r}; legal are {', '.join(color.RULES)}")
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r}; legal are {', '.join(STARTS)}")

    def warm_start(self) -> dict[str, Any]:
        """Returns values for `changed` with a background from the first image on."""
        return {"background_nimg": 0}

    @classmethod
    def published(cls, resolution: int, conventions: Conventions | None = None) -> Self:
        """Returns the member of the published family for 256 or 512 pixels, by default without its conventions."""
        if resolution not in _PUBLISHED_LEVELS:
            raise ValueError(f"no published generator for resolution {resolution}; legal are {list(_PUBLISHED_LEVELS)}")
        return cls(
            resolution=resolution,
            z_dim=512,
            w_dim=512,
            num_points=256,
            widths=_PUBLISHED_WIDTHS[: _PUBLISHED_LEVELS[resolution]],
            blocks=6,
            num_heads=8,
            conventions=conventions or Conventions(),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverts `to_dict`, which holds the conventions as a dict."""
        if isinstance(values, dict) and "conventions" in values:
            values = values | {"conventions": Conventions.from_dict(values["conventions"])}
        return super().from_dict(values)

    @classmethod
    def field_types(cls) -> dict[str, Any]:
        """Returns the types of the fields by name; those of the conventions as "conventions.NAME"."""
        types = super().field_types()
        del types["conventions"]
        return types | {f"conventions.{name}": kind for name, kind in Conventions.field_types().items()}

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values; "conventions.NAME" changes one of the conventions."""
        own = {name: values.pop(name) for name in list(values) if name.startswith("conventions.")}
        if own:
            inner = {name.removeprefix("conventions."): value for name, value in own.items()}
            values["conventions"] = values.get("conventions", self.conventions).changed(**inner)
        return super().changed(**values)

    @property
    def start_rule(self) -> Start:
        """Returns how the hierarchy starts."""
        return STARTS[self.start]

    @property
    def num_levels(self) -> int:
        """Returns the levels of the hierarchy, without the background."""
        return len(self.widths)

    @property
    def level_names(self) -> tuple[int, ...]:
        """Returns what the levels are called in published state dicts: 4, 8, 16, ..."""
        return tuple(COARSEST << i for i in range(self.num_levels))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Returns the splats of each level of the hierarchy, without the background."""
        return tuple(self.num_points * RATIO**i for i in range(self.num_levels))

    @property
    def background_sizes(self) -> tuple[int, ...]:
        """Returns the splats of both levels of the background; () if there is none."""
        return (self.background_points, RATIO * self.background_points) if self.background_points else ()

    @property
    def modulated_levels(self) -> int:
        """Counts the levels after the first that look among all points and follow w: those called 8 and 16."""
        return min(self.num_levels - 1, 2)

    @property
    def num_ws(self) -> int:
        """Counts the ws: two for a transformer block, two for a modulated level, and the background's."""
        return 2 * self.blocks + 2 * self.modulated_levels + 1

    @property
    def coarse_log_scale(self) -> float:
        """Returns the upper bound of a coarse scale, ln of world units: the spacing of num_points on a unit square."""
        return -math.log(math.sqrt(self.num_points))

    @property
    def smallest_log_scale(self) -> float:
        """Returns the ln of the scale from which down an anchor is not divided further: a pixel of a unit image."""
        return -math.log(self.resolution)

    @property
    def split(self) -> float:
        """Returns the ln of the ratio by which a child is smaller than its parent."""
        return (self.coarse_log_scale - self.smallest_log_scale) / (self.num_levels - 1)

    def rounds_to_half(self, level: int) -> bool:
        """Says whether features enter `level` through float16: from the published level res_end / 16 on."""
        return self.conventions.half_rounding and level >= max(self.num_levels - 4, 1)


def published_constants(config: GeneratorConfig) -> dict[str, Tensor]:
    """Returns constants that published checkpoints have on record; the values in use follow from the config."""
    found: dict[str, Tensor] = {}
    for owner, scale, shape in (("point_gen", config.coarse_log_scale, ()), ("point_gen_bg", -2.0, (1,))):
        if owner == "point_gen_bg" and not config.background_points:
            continue
        found |= {
            f"{owner}.scale_init": torch.full((*shape, 3), scale),
            f"{owner}.scale_threshold": torch.full((*shape, 3), scale),
            f"{owner}.rotation_init": torch.tensor([1, 0, 0, 0]).view(*shape, 4),
            f"{owner}.color_init": torch.zeros(*shape, 3),
            f"{owner}.opacity_init": torch.full((*shape, 1), math.log(0.1 / 0.9)),
        }
    return found
