"""Writes scenes as files that other programs open. `FORMATS` lists the formats by the ends of their files' names.

All but `.ply` are written here from their published descriptions, without other packages than NumPy and Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gaussian.export.glb import glb_bytes
from gaussian.export.packed import compressed_ply_bytes, splat_bytes, spz_bytes
from gaussian.export.plain import PlainSplats
from gaussian.export.sog import sog_bytes
from gaussian.gaussians import Gaussians
from gaussian.ply import HALF_TURN, UPS, save_ply

__all__ = ["FORMATS", "Format", "check_format", "save_splats"]


@dataclass(frozen=True)
class Format:
    """Describes a format of splats."""

    content: Callable[[PlainSplats], bytes] | None  # None: `save_ply`
    max_degree: int = 3  # of the spherical harmonics that a file holds
    y_is_up: bool = False  # the format's own description says so; in the others either may be


FORMATS = {
    "ply": Format(None),
    "compressed.ply": Format(compressed_ply_bytes),
    "splat": Format(splat_bytes, max_degree=0),
    "spz": Format(spz_bytes, y_is_up=True),
    "sog": Format(sog_bytes, max_degree=0),
    "glb": Format(glb_bytes, y_is_up=True),
}


def check_format(name: str, gaussians: Gaussians, up: str) -> None:
    """Raises ValueError if there is no such format, if it cannot hold the scene's colours, or if `up` is not legal."""
    if name not in FORMATS:
        raise ValueError(f"{name!r} is no format of splats; legal are {', '.join(FORMATS)}")
    kind = FORMATS[name]
    if gaussians.sh_degree > kind.max_degree:
        raise ValueError(
            f"a .{name} holds no colours that change with the direction, and these splats have spherical harmonics of "
            f"degree {gaussians.sh_degree}; take another format, or the colours of one direction"
        )
    if up not in UPS:
        raise ValueError(f"up={up!r}: {' and '.join(UPS)} are legal")
    if kind.y_is_up and up != "y":
        raise ValueError(f"up={up!r}: in a .{name} +y is up, by the format's description")


def save_splats(path: str | Path, gaussians: Gaussians, scene: int = 0, up: str = "y") -> None:
    """Writes one scene of the batch in the format that the end of the file's name says: one of `FORMATS`.

    up: as in `save_ply`. All formats but `.ply` and `.glb` round the numbers (docs/after-training.md has the figures);
    the order of the splats may change. Infinite opacity logits become opacities of 0 and 1.
    Raises ValueError for what `check_format` refuses, for a scene that does not exist, or values that are not finite.
    """
    name = Path(path).name.lower()
    ends = [end for end in FORMATS if name.endswith("." + end)]
    if not ends:
        raise ValueError(f"{path}: the end of the name is none of .{', .'.join(FORMATS)}")
    kind = max(ends, key=len)
    check_format(kind, gaussians, up)
    content = FORMATS[kind].content
    if content is None:
        save_ply(path, gaussians, scene, up)
        return
    one = gaussians.scene(scene).detach()
    data = content(PlainSplats.of(one.transformed(rotation=HALF_TURN) if up == "-y" else one))
    Path(path).write_bytes(data)
