"""Writes splats as binary glTF 2.0 with the extension KHR_gaussian_splatting (Khronos)."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from dnnlib.version import __version__
from gaussian.export.plain import Array, PlainSplats

EXTENSION = "KHR_gaussian_splatting"
FLOAT, POINTS = 5126, 0  # glTF's numbers for float32 components, and for primitives that are points
KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def glb_bytes(splats: PlainSplats) -> bytes:
    """Writes one mesh of points whose attributes are float32, so nothing but float32 is lost.

    By the extension's text sizes are standard deviations, opacities are 0..1, quaternions are xyzw, and harmonics are
    in the order and signs of 3DGS. glTF's world has +y up and the front towards +z, as ours.
    """
    attributes = {
        "POSITION": splats.means,
        f"{EXTENSION}:ROTATION": splats.quats[:, [1, 2, 3, 0]],
        f"{EXTENSION}:SCALE": np.exp(splats.log_scales),
        f"{EXTENSION}:OPACITY": splats.opacities[:, None],
    }
    for k in range(splats.sh.shape[1]):
        degree = int(k**0.5)
        attributes[f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{k - degree**2}"] = splats.sh[:, k]
    body, views = b"", []
    accessors: list[dict[str, Any]] = []
    for values in attributes.values():
        data = values.astype("<f4")
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": data.nbytes})
        accessors.append(_accessor(len(accessors), data))
        body += data.tobytes()
    accessors[0] |= {"min": splats.means.astype("f4").min(0).tolist(), "max": splats.means.astype("f4").max(0).tolist()}
    how = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    how |= {"projection": "perspective", "sortingMethod": "cameraDistance"}
    primitive = {
        "mode": POINTS,
        "attributes": {name: i for i, name in enumerate(attributes)},
        "extensions": {EXTENSION: how},
    }
    tree = {
        "asset": {"version": "2.0", "generator": f"SplatGAN {__version__}"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _accessor(view: int, data: Array) -> dict[str, Any]:
    return {"bufferView": view, "componentType": FLOAT, "count": len(data), "type": KINDS[data.shape[1]]}
