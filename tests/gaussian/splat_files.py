"""Readers of the formats of `gaussian.formats`, from their published descriptions and from none of our writers.

Compressed .ply and .sog: developer.playcanvas.com (Gaussian splat formats); .spz: github.com/nianticlabs/spz;
.splat: github.com/antimatter15/splat; .glb: Khronos, glTF 2.0 with KHR_gaussian_splatting.
"""

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gaussian import Gaussians

C0 = 0.28209479177387814
CHUNK = 256  # splats of a compressed .ply that share their ranges


def read(path: Path) -> Gaussians:
    name = path.name
    readers = {".compressed.ply": compressed_ply, ".splat": splat, ".spz": spz, ".sog": sog, ".glb": glb}
    [reader] = [reader for end, reader in readers.items() if name.endswith(end)]
    return reader(path.read_bytes())


def record(means, log_scales, quats, opacities, sh) -> Gaussians:
    opacities = np.clip(np.asarray(opacities, np.float64), 1e-9, 1 - 1e-9).reshape(-1, 1)
    parts = (means, log_scales, quats, np.log(opacities / (1 - opacities)), sh)
    return Gaussians(*(torch.from_numpy(np.array(part, np.float32))[None] for part in parts))


def smallest_three(three, largest):
    """The unit quaternion [N, 4] whose component number `largest` was left out of it, the others in their order."""
    quats = np.zeros((len(three), 4))
    rows = np.arange(len(three))
    others = np.array([[c for c in range(4) if c != k] for k in range(4)])[largest]  # [N, 3]
    np.put_along_axis(quats, others, three, axis=1)
    quats[rows, largest] = np.sqrt(np.maximum(0, 1 - (three**2).sum(1)))
    return quats


def bits(packed, *widths):
    """Fields of packed uint32, the highest first, as 0..1."""
    fields, at = [], 32
    for width in widths:
        at -= width
        fields.append(((packed >> at) & ((1 << width) - 1)) / ((1 << width) - 1))
    return np.stack(fields, axis=1)


def compressed_ply(data: bytes) -> Gaussians:
    head, body = data.split(b"end_header\n", 1)
    elements: dict[str, tuple[int, list]] = {}
    for line in head.decode().splitlines():
        words = line.split()
        if words[0] == "element":
            elements[words[1]] = (int(words[2]), fields := [])
        elif words[0] == "property":
            fields.append((words[2], {"float": "<f4", "uint": "<u4", "uchar": "u1"}[words[1]]))
    tables, at = {}, 0
    for name, (count, fields) in elements.items():
        tables[name] = np.frombuffer(body, np.dtype(fields), count, at)
        at += tables[name].nbytes
    assert at == len(body)
    chunks, vertex = tables["chunk"], tables["vertex"]
    chunk = np.arange(len(vertex)) // CHUNK

    def ranged(values, names):
        low, high = (np.stack([chunks[f"{end}_{n}"] for n in names], axis=1)[chunk] for end in ("min", "max"))
        return low + values * (high - low)

    rotation = vertex["packed_rotation"]
    three = (bits(rotation, 2, 10, 10, 10)[:, 1:] - 0.5) * np.sqrt(2)
    rgba = bits(vertex["packed_color"], 8, 8, 8, 8)
    sh = ((ranged(rgba[:, :3], ("r", "g", "b")) - 0.5) / C0)[:, None]
    if "sh" in tables:
        levels = np.stack([tables["sh"][n] for n in tables["sh"].dtype.names], axis=1).astype(float)
        rest = ((levels + 0.5) / 256 - 0.5) * 8
        sh = np.concatenate([sh, rest.reshape(len(vertex), 3, -1).transpose(0, 2, 1)], axis=1)
    return record(
        ranged(bits(vertex["packed_position"], 11, 10, 11), ("x", "y", "z")),
        ranged(bits(vertex["packed_scale"], 11, 10, 11), ("scale_x", "scale_y", "scale_z")),
        smallest_three(three, rotation >> 30),
        rgba[:, 3],
        sh,
    )


def splat(data: bytes) -> Gaussians:
    table = np.frombuffer(data, [("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])
    rgba = table["rgba"] / 255
    return record(
        table["mean"],
        np.log(np.maximum(table["scale"], 1e-30)),
        (table["quat"].astype(float) - 128) / 128,
        rgba[:, 3],
        ((rgba[:, :3] - 0.5) / C0)[:, None],
    )


def spz(data: bytes) -> Gaussians:
    raw = gzip.decompress(data)
    magic, version, count, degree, fraction, _, _ = struct.unpack("<4sIIBBBB", raw[:16])
    assert (magic, version) == (b"NGSP", 3)
    at = 16

    def take(width):
        nonlocal at
        part = np.frombuffer(raw, np.uint8, count * width, at).reshape(count, width)
        at += count * width
        return part

    triples = take(9).reshape(count, 3, 3).astype(np.int64)
    fixed = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
    means = (fixed - ((fixed >> 23) << 24)) / (1 << fraction)
    opacities = take(1) / 255
    colors = (take(3) / 255 - 0.5) / 0.15
    log_scales = take(3) / 16 - 10
    packed = np.ascontiguousarray(take(4)).view("<u4")[:, 0]
    fields = [(packed >> shift) & 1023 for shift in (20, 10, 0)]
    three = np.stack([(f & 511) / 511 * np.sqrt(0.5) * np.where(f >> 9, -1, 1) for f in fields], axis=1)
    xyzw = smallest_three(three, packed >> 30)
    rest = take(3 * ((degree + 1) ** 2 - 1))
    assert at == len(raw)
    higher = ((rest.astype(float) - 128) / 128).reshape(count, -1, 3)
    return record(means, log_scales, xyzw[:, [3, 0, 1, 2]], opacities, np.concatenate([colors[:, None], higher], 1))


def sog(data: bytes) -> Gaussians:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        meta = json.loads(archive.read("meta.json"))
        assert meta["version"] == 2
        count = meta["count"]

        def image(name, channels):
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGBA"))
            return pixels.reshape(-1, 4)[:count, :channels].astype(np.int64)

        low, high = (image(name, 3) for name in meta["means"]["files"])
        quats = image(meta["quats"]["files"][0], 4)
        scales = np.array(meta["scales"]["codebook"])[image(meta["scales"]["files"][0], 3)]
        rgba = image(meta["sh0"]["files"][0], 4)
    least, most = np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
    logs = least + (low + 256 * high) / 65535 * (most - least)
    return record(
        np.sign(logs) * np.expm1(np.abs(logs)),
        scales,
        smallest_three((quats[:, :3] / 255 - 0.5) * np.sqrt(2), quats[:, 3] - 252),
        rgba[:, 3] / 255,
        np.array(meta["sh0"]["codebook"])[rgba[:, :3]][:, None],
    )


def glb(data: bytes) -> Gaussians:
    magic, version, length, json_length, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    tree = json.loads(data[20 : 20 + json_length])
    body_length, kind = struct.unpack("<I4s", data[20 + json_length : 28 + json_length])
    body = data[28 + json_length :]
    assert kind == b"BIN\0" and len(body) == body_length and not len(body) % 4 and not json_length % 4
    assert tree["asset"]["version"] == "2.0" and tree["extensionsUsed"] == ["KHR_gaussian_splatting"]
    [primitive] = tree["meshes"][tree["nodes"][tree["scenes"][tree["scene"]]["nodes"][0]]["mesh"]]["primitives"]
    assert primitive["mode"] == 0 and primitive["extensions"]["KHR_gaussian_splatting"]["kernel"] == "ellipse"

    def values(name):
        accessor = tree["accessors"][primitive["attributes"][name]]
        view = tree["bufferViews"][accessor["bufferView"]]
        assert accessor["componentType"] == 5126 and view["byteOffset"] % 4 == 0
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        assert view["byteLength"] == 4 * width * accessor["count"]
        return np.frombuffer(body, "<f4", width * accessor["count"], view["byteOffset"]).reshape(-1, width)

    place = tree["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(place["min"], values("POSITION").min(0))
    np.testing.assert_array_equal(place["max"], values("POSITION").max(0))
    prefix = "KHR_gaussian_splatting:"
    names = sorted(name for name in primitive["attributes"] if name.startswith(f"{prefix}SH_DEGREE_"))
    assert len(names) in (1, 4, 9, 16)
    return record(
        values("POSITION"),
        np.log(values(f"{prefix}SCALE")),
        values(f"{prefix}ROTATION")[:, [3, 0, 1, 2]],
        values(f"{prefix}OPACITY"),
        np.stack([values(name) for name in names], axis=1),
    )
