"""Lists the families of generators by name."""

from __future__ import annotations

from training.families.base import Family
from training.families.cgof.family import FAMILY as CGOF
from training.families.cgs.family import FAMILY as CGS
from training.families.eg3d.family import FAMILY as EG3D
from training.families.epigraf.family import FAMILY as EPIGRAF
from training.families.gghead.family import FAMILY as GGHEAD
from training.families.gsgan.family import FAMILY as GSGAN
from training.families.pigan.family import FAMILY as PIGAN

FAMILIES: dict[str, Family] = {}
DEFAULT_FAMILY = "cgs"  # of runs that name no preset, and of checkpoints from before there were others


def register(family: Family) -> None:
    """Makes a family known under its name. Raises ValueError if the name, or one of its presets', is taken."""
    if family.name in FAMILIES:
        raise ValueError(f"a family called {family.name!r} exists already")
    taken = {preset: other.name for other in FAMILIES.values() for preset in other.presets}
    for preset in family.presets:
        if preset in taken:
            raise ValueError(f"a preset called {preset!r} exists already, in the family {taken[preset]!r}")
    FAMILIES[family.name] = family


def family(name: str) -> Family:
    """Returns the family called `name`. Raises ValueError that lists the legal names."""
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}; legal are {', '.join(FAMILIES)}")
    return FAMILIES[name]


register(CGS)
register(GGHEAD)
register(GSGAN)
register(EPIGRAF)
register(EG3D)
register(PIGAN)
register(CGOF)
