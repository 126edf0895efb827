"""Writes splats as `.sog`: images in a zip (PlayCanvas, "SOG format", version 2)."""

from __future__ import annotations

import io
import json
import math
import zipfile

import numpy as np
from PIL import Image

from gaussian.export.plain import Array, PlainSplats, smallest_three, whole

CODES = 256  # values of a code book
BINS = 4096  # of the histogram that a code book starts from
ROUNDS = 20  # of Lloyd's algorithm; the error falls by less than 1 % from 10 to 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # of the files in the zip: equal splats give equal bytes


def sog_bytes(splats: PlainSplats) -> bytes:
    """Packs splats as lossless WebP images, a pixel a splat along a Z-order curve.

    Coordinates v are sign(v) ln(1 + |v|) in 16 bits between their ends, quaternions three bytes and the number of the
    component left out; the ln of sizes, and colours, are each one of 256 values that fit best; opacities are bytes.
    """
    splats = splats.sorted()
    logs = np.sign(splats.means) * np.log1p(np.abs(splats.means))
    least, most = logs.min(0), logs.max(0)
    places = whole((logs - least) / np.maximum(most - least, 1e-12) * 65535, 65535, np.uint16)
    three, largest = smallest_three(splats.quats)
    sizes, size_codes = _code_book(splats.log_scales)
    colors, color_codes = _code_book(splats.sh[:, 0])
    images = {
        "means_l.webp": places & 255,
        "means_u.webp": places >> 8,
        "quats.webp": np.column_stack([whole(255 * (three / math.sqrt(2) + 0.5), 255), 252 + largest]),
        "scales.webp": size_codes,
        "sh0.webp": np.column_stack([color_codes, whole(255 * splats.opacities, 255)]),
    }
    meta = {
        "version": 2,
        "count": len(splats),
        "means": {"mins": least.tolist(), "maxs": most.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": sizes.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colors.tolist(), "files": ["sh0.webp"]},
    }
    files = {"meta.json": json.dumps(meta).encode()} | {name: _webp(pixels) for name, pixels in images.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return buffer.getvalue()


def _webp(pixels: Array) -> bytes:
    """Encodes RGB or RGBA bytes [N, 3 or 4] as a lossless image of about equal sides, filled up with zeros."""
    width = 4 * math.ceil(math.sqrt(len(pixels)) / 4)
    height = 4 * math.ceil(len(pixels) / width / 4)
    canvas = np.zeros((height * width, 4), np.uint8)
    canvas[: len(pixels), 3] = 255
    canvas[: len(pixels), : pixels.shape[1]] = pixels
    buffer = io.BytesIO()
    image = Image.fromarray(canvas.reshape(height, width, 4))
    image.save(buffer, "WEBP", lossless=True, exact=True)  # exact: colours under alpha 0 stay
    return buffer.getvalue()


def _code_book(values: Array) -> tuple[Array, Array]:
    """Returns 256 float32 values that fit numbers [N, k] best by least squares, and bytes [N, k]: the nearest of them.

    Lloyd's algorithm in one dimension: cells between midpoints, found in the sorted numbers, and their means by
    running sums. A value whose cell is empty stays where it is.
    """
    ordered = np.sort(values, axis=None)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    # Starts with values as dense as the cube root of the numbers' density, the best there is for fine steps (Panter and
    # Dite 1951).
    counts, edges = np.histogram(ordered, BINS)
    weights = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    codes = np.interp((np.arange(CODES) + 0.5) / CODES * weights[-1], weights, edges)
    for _ in range(ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(ordered, (codes[1:] + codes[:-1]) / 2), [len(ordered)]])
        counts = np.diff(edges)
        codes = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), codes)
    nearest = np.searchsorted((codes[1:] + codes[:-1]) / 2, values)
    return codes.astype(np.float32), nearest.astype(np.uint8)
