"""Posed pictures of six coloured dots at known places of the world, and by how far labels miss them in written sets.

A centroid of a dot shows where a camera sees it to a few hundredths of a pixel, so wrong lenses, sizes, axes and turns
show as pixels.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]])
PLACES = np.array(
    [
        [0.3, 0.02, 0.0],
        [-0.32, 0.04, 0.12],
        [0.05, 0.35, 0.0],
        [0.0, -0.33, 0.1],
        [0.14, 0.12, 0.3],
        [-0.12, -0.14, -0.25],
    ]
)
GREY, RADIUS, FINE = 90, 4.5, 4  # background, a dot's radius in pixels, samples per pixel and axis
Bend = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # of a lens: where (x, y, 1) is seen
Saver = Callable[[Image.Image, Path, int], object]


def facing(position: Sequence[float], up: Sequence[float] = (0.0, 1.0, 0.0), roll: float = 0.0) -> np.ndarray:
    """Camera to world [4, 4] with OpenCV axes, looking at the origin; turned by `roll` radians about its own axis."""
    place = np.asarray(position, dtype=float)
    z = -place / np.linalg.norm(place)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * x + np.sin(roll) * y
    pose[:3, 1] = np.cos(roll) * y - np.sin(roll) * x
    pose[:3, 2], pose[:3, 3] = z, place
    return pose


def arc(count: int, roll: float = 0.0, radius: float = 2.7) -> list[np.ndarray]:
    """Cameras from half a radian left to half a radian right, a little up and down in turns."""
    poses = []
    for i, yaw in enumerate(np.linspace(-0.5, 0.5, count)):
        pitch = 0.2 * np.sin(2.1 * i)
        way = [np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]
        poses.append(facing(radius * np.array(way), roll=roll))
    return poses


def matrix(focal: float, width: int, height: int) -> np.ndarray:
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def picture(pose: np.ndarray, k: np.ndarray, size: tuple[int, int], bend: Bend | None = None) -> Image.Image:
    """Draws what a camera sees; `k` in pixels."""
    width, height = size
    local = (PLACES - pose[:3, 3]) @ pose[:3, :3]
    x, y = local[:, 0] / local[:, 2], local[:, 1] / local[:, 2]
    x, y = bend(x, y) if bend else (x, y)
    centres = np.stack([x * k[0, 0] + k[0, 2], y * k[1, 1] + k[1, 2]], axis=1)
    pixels = np.full((height, width, 3), float(GREY))
    near = int(RADIUS) + 2
    for (u, v), colour in zip(centres, COLOURS, strict=True):
        top, left = max(0, int(v) - near), max(0, int(u) - near)
        part = pixels[top : max(0, int(v) + near), left : max(0, int(u) + near)]
        high, wide = part.shape[:2]
        rows, columns = (np.mgrid[: high * FINE, : wide * FINE] + 0.5) / FINE
        inside = (columns + left - u) ** 2 + (rows + top - v) ** 2 < RADIUS**2
        share = inside.reshape(high, FINE, wide, FINE).mean((1, 3))[..., None]
        part[:] = share * colour + (1 - share) * part
    return Image.fromarray(pixels.round().astype(np.uint8))


def save(image: Image.Image, path: Path, index: int) -> None:
    image.save(path)


def write_set(
    root: Path,
    poses: Sequence[np.ndarray],
    size: int = 64,
    label_names: Sequence[str] | None = None,
    saver: Saver = save,
) -> Path:
    """Writes root/dataset.json and root/<size>/00000.png, ...; returns the images' folder."""
    folder, k = root / str(size), matrix(1.2 * size, size, size)
    folder.mkdir(parents=True)
    names = [f"{i:05d}.png" for i in range(len(poses))]
    unit = [k[0, 0] / size, 0, 0.5, 0, k[1, 1] / size, 0.5, 0, 0, 1]
    for i, (name, pose) in enumerate(zip(names, poses, strict=True)):
        saver(picture(pose, k, (size, size)), folder / name, i)
    labels = [[name, [*pose.flatten().tolist(), *unit]] for name, pose in zip(label_names or names, poses, strict=True)]
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def write_frames(
    root: Path,
    poses: Sequence[np.ndarray],
    shared: dict,
    frame: Callable[[int], dict] = lambda i: {},
    lens: Callable[[int], tuple[float, tuple[int, int]]] = lambda i: (200.0, (256, 256)),
    bend: Bend | None = None,
) -> Path:
    """Writes root/transforms.json and root/images; `lens` gives each picture's true focal length and size in pixels."""
    (root / "images").mkdir(parents=True)
    frames = []
    for i, pose in enumerate(poses):
        focal, size = lens(i)
        picture(pose, matrix(focal, *size), size, bend).save(root / "images" / f"frame_{i:05d}.png")
        opengl = pose @ np.diag([1.0, -1.0, -1.0, 1.0])
        frames.append({"file_path": f"images/frame_{i:05d}.png", "transform_matrix": opengl.tolist(), **frame(i)})
    (root / "transforms.json").write_text(json.dumps({**shared, "frames": frames}))
    return root


def quaternion(rotation: np.ndarray) -> list[float]:
    """wxyz of a rotation matrix, by the eigenvector of Bar-Itzhack (2000)."""
    r = rotation
    k = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
        [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
        [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
    ])  # fmt: skip
    return np.linalg.eigh(k)[1][[3, 0, 1, 2], -1].tolist()


def write_model(
    root: Path,
    poses: Sequence[np.ndarray],
    camera: str = "PINHOLE 256 256 200 200 128 128",  # one for all, after the number
    names: Sequence[str] | None = None,
    points: str = "\n",  # what stands behind the line of each picture
    model: str = "sparse/0",
    head: str = "",
) -> Path:
    """Writes a text model of COLMAP; returns its folder."""
    folder = root / model
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"# cameras\n1 {camera}\n")
    lines = head
    for i, pose in enumerate(poses):
        inverse = np.linalg.inv(pose)
        row = [
            i + 1,
            *quaternion(inverse[:3, :3]),
            *inverse[:3, 3],
            1,
            (names or [])[i] if names else f"img_{i:03d}.png",
        ]
        lines += " ".join(str(v) for v in row) + "\n" + points
    (folder / "images.txt").write_text(lines)
    return folder


def write_pictures(
    root: Path,
    poses: Sequence[np.ndarray],
    k: np.ndarray | None = None,
    size: tuple[int, int] = (256, 256),
    names: Sequence[str] | None = None,
    saver: Saver = save,
    bend: Bend | None = None,
) -> None:
    """Writes root/images/img_000.png, ..., or under `names`."""
    for i, pose in enumerate(poses):
        path = root / "images" / (names[i] if names else f"img_{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        saver(picture(pose, matrix(200, *size) if k is None else k, size, bend), path, i)


def labels_of(images: Path) -> tuple[list[str], np.ndarray]:
    """Names and labels [N, 25] of a written set."""
    entries = json.loads((images.parent / "dataset.json").read_text())["labels"]
    return [name for name, _ in entries], np.array([label for _, label in entries])


def miss(images: Path) -> float:
    """Median distance in pixels between the dots of a written set and what its labels say of the triangulated dots."""
    names, labels = labels_of(images)
    seen, matrices = [], []
    for name, label in zip(names, labels, strict=True):
        image = Image.open(images / name).convert("RGB")
        k = label[16:].reshape(3, 3) * np.array([[image.width], [image.height], [1.0]])
        matrices.append(k @ np.linalg.inv(label[:16].reshape(4, 4))[:3])
        seen.append(_centroids(np.asarray(image).astype(float)))
    distances = []
    for dot in range(len(COLOURS)):
        pairs = [(m, s[dot]) for m, s in zip(matrices, seen, strict=True) if np.isfinite(s[dot]).all()]
        if len(pairs) < 3:
            continue
        rows = np.array([row for m, (u, v) in pairs for row in (u * m[2] - m[0], v * m[2] - m[1])])
        point = np.linalg.svd(rows)[2][-1]
        for m, spot in pairs:
            there = m @ point
            distances.append(float(np.hypot(*(there[:2] / there[2] - spot))))
    assert distances
    return float(np.median(distances))


def _centroids(pixels: np.ndarray) -> np.ndarray:
    """Centres [6, 2] of the dots in pixels; NaN for one that is not there."""
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
    found = np.full((len(COLOURS), 2), np.nan)
    for i, colour in enumerate(COLOURS):
        weight = np.clip(1 - np.abs(pixels - colour).max(-1) / 130, 0, None)
        if weight.sum() > 5:
            found[i] = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
    return found


def angles(images: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Yaw and pitch of the cameras about the origin in radians, and the cameras' mean up, a unit vector."""
    poses = labels_of(images)[1][:, :16].reshape(-1, 4, 4)
    x, y, z = poses[:, :3, 3].T
    up = -poses[:, :3, 1].mean(0)
    return np.arctan2(x, z), np.arctan2(y, np.hypot(x, z)), up / np.linalg.norm(up)
