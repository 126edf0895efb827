"""Lists the published networks that people look for, with where they are and what is known of the files.

Sizes and checksums are facts about files; where nobody of ours has held the file, they are None and said to be unknown.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedNetwork:
    """Names a published network."""

    system: str  # as its authors call it
    name: str  # what it was trained on, and its resolution
    family: str  # of ours, whose networks it has
    preset: str  # of ours, with its sizes and settings
    page: str  # of its authors, which says where the file lies and under which terms
    bytes: int | None = None  # of the file
    sha256: str | None = None  # of the file


_CGS = "https://github.com/fraunhoferhhi/cgs-gan"
_GSGAN = "https://github.com/hse1032/GSGAN"
_GGHEAD = "https://github.com/tobias-kirschstein/gghead"

GALLERY = (
    PublishedNetwork("CGS-GAN", "FFHQC 256", "cgs", "cgs256", _CGS),
    PublishedNetwork("CGS-GAN", "FFHQC 512", "cgs", "cgs512", _CGS),
    PublishedNetwork("CGS-GAN", "FFHQC 1024", "cgs", "cgs1024", _CGS),
    PublishedNetwork("CGS-GAN", "FFHQC 2048", "cgs", "cgs2048", _CGS),
    PublishedNetwork("GSGAN", "FFHQ 256", "gsgan", "gsgan-ffhq256", _GSGAN),
    PublishedNetwork("GSGAN", "FFHQ 512", "gsgan", "gsgan-ffhq512", _GSGAN),
    PublishedNetwork("GSGAN", "AFHQ 256", "gsgan", "gsgan-afhq256", _GSGAN),
    PublishedNetwork("GSGAN", "AFHQ 512", "gsgan", "gsgan-afhq512", _GSGAN),
    PublishedNetwork("GGHead", "FFHQ 512", "gghead", "gghead-ffhq512", _GGHEAD),
    PublishedNetwork("GGHead", "FFHQ 1024", "gghead", "gghead-ffhq1024", _GGHEAD),
    PublishedNetwork("GGHead", "AFHQ 512", "gghead", "gghead-afhq512", _GGHEAD),
)


def find(sha256: str) -> PublishedNetwork | None:
    """Returns the listed network whose file has this checksum, if there is one."""
    return next((network for network in GALLERY if network.sha256 == sha256), None)


def table() -> str:
    """Returns the list for people, as a Markdown table."""
    heads = ("system", "network", "family", "preset", "size", "sha256", "page")
    rows = [heads, tuple("---" for _ in heads)]
    for n in GALLERY:
        size = f"{n.bytes / 1e6:.0f} MB" if n.bytes is not None else "unknown"
        rows.append((n.system, n.name, n.family, f"`{n.preset}`", size, n.sha256 or "unknown", n.page))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
