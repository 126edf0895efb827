"""Writes a page that shows heads by itself: one file with splats, pictures and the program that draws them."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dnnlib
from gaussian import Gaussians
from gaussian.export.plain import Array, PlainSplats, whole
from training.viewer.studio import HeadChoice, Shown, Studio
from training.visualization import video

TEMPLATE = Path(__file__).with_name("static.html")
BYTES_A_SPLAT = 17  # before gzip
MOST_BYTES = 1 << 28  # of a page before gzip; browsers take the file in whole
THUMBNAIL = 96  # pixels
MEANS, SIZES = 65535, 255  # steps of a coordinate, and of the ln of a standard deviation


def write_page(path: str | Path, studio: Studio, network: str, seeds: Sequence[int], psi: float) -> Path:
    """Writes an HTML file with a network's heads of these seeds; it fetches nothing and needs WebGL 2.

    All heads have the same splats in the same order, so that the page may show heads between two of them by numbers
    between theirs. Colours are those that the data's frontal camera sees.
    Raises ValueError for scenes that are no splats, or whose number differs, and for more heads than a page takes.
    """
    G = studio.generator(network)
    if not G.makes_splats:
        raise ValueError("--static: the scenes of this network are no splats")
    background = video.shown_background(G, None)
    shown = Shown(background=background)
    plain, heads = [], []
    for seed in seeds:
        head = HeadChoice(network, seed, psi=psi)
        plain.append(_colored(studio.splats(head, shown), G.geometry.frontal().positions))
        if len(plain[-1]) != len(plain[0]):
            raise ValueError(f"--static: head {seed} has {len(plain[-1]):,} splats, and the first {len(plain[0]):,}")
        most = MOST_BYTES // (len(plain[0]) * BYTES_A_SPLAT)
        if len(seeds) > most:
            raise ValueError(
                f"--heads: {len(seeds):,} heads of {len(plain[0]):,} splats do not fit on a page of "
                f"{dnnlib.format_bytes(MOST_BYTES)}; {most:,} do"
            )
        picture = studio.picture(head, shown, G.geometry.frontal(), (THUMBNAIL, THUMBNAIL))
        heads.append({"seed": seed, "picture": "data:image/jpeg;base64," + _coded(_jpeg(picture))})
    ends = {
        name: [float(f([getattr(p, name) for p in plain])) for f in (np.min, np.max)]
        for name in ("means", "log_scales")
    }
    geometry = G.geometry
    meta: dict[str, Any] = {
        "count": len(plain[0]), "heads": heads, "means": ends["means"], "scales": ends["log_scales"],
        "centre": geometry.centre, "pivot": geometry.pivot, "radius": geometry.radius,
        "focal": geometry.intrinsics[1][1], "background": background,
        "sway": min(0.6, max(abs(limit) for limit in video.checkpoint_info(G).yaw_limits)),
    }  # fmt: skip
    data = gzip.compress(b"".join(_packed(p, ends) for p in plain), mtime=0)
    color = "rgb({}, {}, {})".format(*(round(255 * value) for value in background))
    text = TEMPLATE.read_text(encoding="utf-8")
    # A "<" inside the JSON could end the script that holds it.
    for name, value in (
        ("BACKGROUND", color),
        ("META", json.dumps(meta).replace("<", "\\u003c")),
        ("DATA", _coded(data)),
    ):
        text = text.replace("{{" + name + "}}", value)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def _colored(splats: Gaussians, viewpoint: Any) -> PlainSplats:
    """Returns the scene of a batch of one with RGB 0..1, as seen from one place, for its harmonics."""
    rgb = splats.colors(viewpoint.to(splats.means)[None, None])[:, 0]
    plain = PlainSplats.of(splats)
    return PlainSplats(plain.means, plain.log_scales, plain.quats, plain.opacities, rgb[0, :, None].cpu().numpy())


def _packed(plain: PlainSplats, ends: dict[str, list[float]]) -> bytes:
    """Returns a head's arrays one after the other: means, ln of sizes, quaternions wxyz, and RGBA."""

    def steps(values: Array, name: str, most: int) -> Array:
        low, high = ends[name]
        return (values - low) / max(high - low, 1e-12) * most

    parts = [
        whole(steps(plain.means, "means", MEANS), MEANS, np.uint16).astype("<u2"),
        whole(steps(plain.log_scales, "log_scales", SIZES), SIZES),
        np.rint(127 * plain.quats).astype(np.int8),
        whole(255 * np.column_stack([plain.sh[:, 0], plain.opacities]), 255),
    ]
    return b"".join(part.tobytes() for part in parts)


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
