"""Writes one posed scene as other programs would: a COLMAP model (text or binary) and a transforms.json."""

import json
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gaussian import Cameras
from training.data.synthetic.synthesize import CameraSpread, render_heads, sample_cameras

MODELS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4, "OPENCV_FISHEYE": 5}


def turned(cameras: Cameras, seed: int) -> Cameras:
    """Returns the same cameras in a world that is rotated, shifted and scaled at random."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation = torch.from_numpy(rotation * np.sign(np.linalg.det(rotation)))
    poses = cameras.cam2world.clone()
    poses[:, :3, :3] = rotation @ cameras.cam2world[:, :3, :3]
    poses[:, :3, 3] = 7.3 * cameras.positions @ rotation.T + torch.from_numpy(rng.normal(size=3) * 20)
    return Cameras(poses, cameras.intrinsics)


def make_scene(folder: Path, num: int = 10, width: int = 32, height: int = 32, **spread) -> Cameras:
    """Writes <folder>/images/view NN.png and returns the cameras in float64. A wide picture shows more to the sides."""
    cameras = sample_cameras(1, range(num), CameraSpread(yaw_std=0.5, roll_std=0.0, **spread)).to(dtype=torch.float64)
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(render_heads(1, range(num), cameras, height).images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        wide = Image.new("RGB", (width, height))
        wide.paste(picture, ((width - height) // 2, 0))
        wide.save(folder / "images" / f"view {i:02d}.png")
    # The square picture is the middle part of the wide one.
    extra = (width - height) / 2 / height
    return cameras.crop((-extra, 0.0, 1 + extra, 1.0)) if extra else cameras


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Returns wxyz of a rotation matrix: an eigenvector (Bar-Itzhack 2000)."""
    r = rotation
    k = np.zeros((4, 4))  # lower triangle, xyzw
    k[0, 0], k[1, 1], k[2, 2] = r[0, 0] - r[1, 1] - r[2, 2], r[1, 1] - r[0, 0] - r[2, 2], r[2, 2] - r[0, 0] - r[1, 1]
    k[1, 0], k[2, 0], k[2, 1] = r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1]
    k[3] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)
    return np.linalg.eigh(k)[1][[3, 0, 1, 2], -1]


def write_colmap(
    folder: Path, cameras: Cameras, size: tuple[int, int], binary: bool, model: str = "PINHOLE", extra: tuple = ()
) -> None:
    """Writes sparse/0 with one camera per picture, the pictures in reverse order, and some points."""
    place = folder / "sparse" / "0"
    place.mkdir(parents=True)
    (width, height), count = size, len(cameras)
    rows, lenses = [], []
    for i in reversed(range(count)):
        world2cam, k = cameras.world2cam[i].numpy(), cameras.intrinsics[i].numpy()
        fx, fy, cx, cy = k[0, 0] * width, k[1, 1] * height, k[0, 2] * width, k[1, 2] * height
        lenses.append((i + 1, [fx, cx, cy] if model.startswith("SIMPLE") else [fx, fy, cx, cy]))
        rows.append((i + 1, *quaternion(world2cam[:3, :3]), *world2cam[:3, 3], i + 1, f"view {i:02d}.png"))
    if binary:
        data = struct.pack("<Q", count)
        for identity, values in lenses:
            values = [*values, *extra]
            data += struct.pack(f"<iiQQ{len(values)}d", identity, MODELS[model], width, height, *values)
        (place / "cameras.bin").write_bytes(data)
        data = struct.pack("<Q", count)
        for row in rows:
            data += struct.pack("<i7di", *row[:9]) + row[9].encode() + b"\0"
            data += struct.pack("<Q", 2) + struct.pack("<ddq", 1.0, 2.0, -1) * 2
        (place / "images.bin").write_bytes(data)
        return
    lines = ["# Camera list"]
    for identity, values in lenses:
        lines.append(" ".join(map(repr, [identity, *map(float, [*values, *extra])])).replace(
            f"{identity} ", f"{identity} {model} {width} {height} ", 1))  # fmt: skip
    (place / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines = ["# Image list with two lines of data per image"]
    for i, row in enumerate(rows):
        lines += [
            " ".join(str(v if isinstance(v, int | str) else float(v)) for v in row),
            "" if i % 2 else "1.0 2.0 -1",
        ]
    (place / "images.txt").write_text("\n".join(lines) + "\n")


def write_transforms(folder: Path, cameras: Cameras, size: tuple[int, int], style: str) -> None:
    """style: "nerfstudio" (pixels per file), "frames" (pixels per frame) or "blender" (field of view, no extension)."""
    (width, height), frames = size, []
    for i in range(len(cameras)):
        pose = cameras.cam2world[i].numpy() * np.array([1.0, -1.0, -1.0, 1.0])
        frame = {"file_path": f"images/view {i:02d}.png", "transform_matrix": pose.tolist()}
        k = cameras.intrinsics[i].numpy()
        lens = {"fl_x": k[0, 0] * width, "fl_y": k[1, 1] * height, "cx": k[0, 2] * width, "cy": k[1, 2] * height}
        if style == "frames":
            frame |= lens | {"w": width, "h": height}
        frames.append(frame)
    content: dict = {"frames": frames}
    if style == "nerfstudio":
        content |= lens | {"w": width, "h": height, "k1": 0.0, "p2": 0, "camera_model": "OPENCV"}
    if style == "blender":
        content["camera_angle_x"] = 2 * float(np.arctan(0.5 / k[0, 0]))
        for frame in frames:
            frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    (folder / "transforms.json").write_text(json.dumps(content))
