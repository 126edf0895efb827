"""Writes splats in formats that round every number to a few bits: compressed `.ply`, `.splat` and `.spz`."""

from __future__ import annotations

import gzip
import math
import struct

import numpy as np

from gaussian.export.plain import Array, PlainSplats, smallest_three, whole
from gaussian.spherical_harmonics import Y00

CHUNK = 256  # splats of a compressed .ply that share their ranges
SPZ_VERSION = 3  # quaternions without their largest component; gzip
SPZ_COLOR = 0.15  # share of a byte's range per unit of a constant harmonic, by the format's description
SPZ_MAX_FRACTION = 20  # bits behind the point of a coordinate; 1e-6 world units are finer than any splat


def compressed_ply_bytes(splats: PlainSplats) -> bytes:
    """Packs splats as SuperSplat's compressed `.ply` does: 16 bytes a splat, and ranges for every 256.

    Source: developer.playcanvas.com, "Compressed PLY format". A splat has four uint32: its place (11, 10 and 11 bits),
    rotation (2 bits for the component that is left out, 3 x 10), ln of its sizes (11, 10, 11) and RGBA (8 each).
    Places, sizes and colours run between the least and the largest of their chunk. Higher harmonics are bytes.
    """
    splats = splats.sorted()
    count, starts = len(splats), np.arange(0, len(splats), CHUNK)
    rgb = Y00 * splats.sh[:, 0] + 0.5
    ranges, shares = [], []
    for values in (splats.means, splats.log_scales, rgb):
        low, high = (ends.reduceat(values, starts).astype("<f4") for ends in (np.minimum, np.maximum))
        ranges += [low, high]
        low, high = (np.repeat(end.astype(np.float64), CHUNK, axis=0)[:count] for end in (low, high))
        shares.append((values - low) / np.maximum(high - low, 1e-12))
    three, largest = smallest_three(splats.quats)
    packed = [
        _pack(shares[0], (11, 10, 11)),
        _pack(three / math.sqrt(2) + 0.5, (10, 10, 10)) | (largest.astype(np.uint32) << 30),
        _pack(shares[1], (11, 10, 11)),
        _pack(np.column_stack([shares[2], splats.opacities]), (8, 8, 8, 8)),
    ]
    names = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
    names += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
    names += [f"{end}_{axis}" for end in ("min", "max") for axis in "rgb"]
    lines = ["ply", "format binary_little_endian 1.0", f"element chunk {len(starts)}"]
    lines += [f"property float {name}" for name in names] + [f"element vertex {count}"]
    lines += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    higher = splats.sh[:, 1:].transpose(0, 2, 1).reshape(count, -1)  # channel-major, as in a plain .ply
    if higher.size:
        lines += [f"element sh {count}"] + [f"property uchar f_rest_{i}" for i in range(higher.shape[1])]
    body = [np.column_stack(ranges).tobytes(), np.column_stack(packed).astype("<u4").tobytes()]
    body.append(np.clip(np.floor((higher / 8 + 0.5) * 256), 0, 255).astype(np.uint8).tobytes())  # +-4 in 256 steps
    return "\n".join([*lines, "end_header", ""]).encode("ascii") + b"".join(body)


def _pack(shares: Array, widths: tuple[int, ...]) -> Array:
    """Joins columns [N, k] of numbers 0..1 to uint32 [N], the first in the highest of sum(widths) bits."""
    packed = np.zeros(len(shares), np.uint32)
    for column, width in zip(shares.T, widths, strict=True):
        packed = (packed << np.uint32(width)) | whole(column * ((1 << width) - 1), (1 << width) - 1, np.uint32)
    return packed


def splat_bytes(splats: PlainSplats) -> bytes:
    """Packs splats as `.splat` does: 32 bytes each, without a header (antimatter15/splat, README).

    Means and standard deviations are float32, RGBA and the quaternion are bytes: colours end at 0 and 1.
    """
    rgba = np.column_stack([Y00 * splats.sh[:, 0] + 0.5, splats.opacities])
    table = np.empty(len(splats), [("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])
    table["mean"], table["scale"] = splats.means, np.exp(splats.log_scales)
    table["rgba"], table["quat"] = whole(255 * rgba, 255), whole(128 * splats.quats + 128, 255)
    # Viewers draw what has arrived, so the splats that cover most come first.
    order = np.argsort(-splats.opacities * np.exp(splats.log_scales.sum(1)), kind="stable")
    return table[order].tobytes()


def spz_bytes(splats: PlainSplats) -> bytes:
    """Packs splats as `.spz`, version 3: 20 bytes each before gzip (nianticlabs/spz, README).

    Coordinates have 24 bits with a fixed point, as far back as the largest one allows; quaternions 32; all else is a
    byte: ln of a size in steps of 1/16, an opacity, a colour within -0.44..1.44, a higher harmonic within +-1.
    """
    splats = splats.sorted()
    extent = max(float(np.abs(splats.means).max()), 1e-9)
    fraction = max(0, min(SPZ_MAX_FRACTION, math.floor(math.log2(((1 << 23) - 1) / extent))))
    fixed = np.rint(splats.means * (1 << fraction)).astype("<i4")[..., None].view(np.uint8)[..., :3]
    three, largest = smallest_three(splats.quats[:, [1, 2, 3, 0]])  # xyzw
    magnitudes = whole(np.abs(three) * math.sqrt(2) * 511, 511, np.uint32) | ((three < 0).astype(np.uint32) << 9)
    packed = largest.astype(np.uint32)
    for column in magnitudes.T:
        packed = (packed << np.uint32(10)) | column
    head = struct.pack(
        "<4sIIBBBB", b"NGSP", SPZ_VERSION, len(splats), math.isqrt(splats.sh.shape[1]) - 1, fraction, 0, 0
    )
    parts = [
        fixed,
        whole(255 * splats.opacities, 255),
        whole(255 * (SPZ_COLOR * splats.sh[:, 0] + 0.5), 255),
        whole(16 * (splats.log_scales + 10), 255),
        packed.astype("<u4"),
        whole(128 * splats.sh[:, 1:] + 128, 255),
    ]
    return gzip.compress(head + b"".join(part.tobytes() for part in parts), mtime=0)
