"""Makes "photographs" of procedural heads: off-centre, rolled, before a background, with landmarks and true cameras.

The landmarks lie on the head's own geometry in the 68-point order (the outline of the jaw as it is seen from
the front): what a detector would be trained to find, plus noise and outliers of a stated size. Nothing here knows the
face with which poses are found.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gaussian import Cameras
from training.data.synthetic.heads import EYE, LIPS, SKIN, Head, build_head, shade
from training.data.synthetic.raycast import cast, resolve_samples
from training.data.synthetic.traits import HEAD_UNIT, CameraSpread, Traits, sample_traits

JAW = 17  # points 0 to 16
_STREAM = 7  # of the photographer's numbers; identities and cameras have streams of their own


@dataclass(frozen=True)
class Photographer:
    """Describes how the photographs are taken and their landmarks found."""

    width: int = 480  # pixels
    height: int = 360
    focal: float = 2.2  # in picture widths
    distance: tuple[float, float] = (2.4, 3.2)  # world units, evenly
    yaw_std: float = 0.55  # radians, cut at two
    pitch_std: float = 0.15
    roll_std: float = 0.15
    shift: float = 0.12  # of the head from the middle, in picture widths, evenly up to this
    noise: float = (
        0.015  # standard deviation of a landmark along x and along y, in distances of the eyes' outer corners
    )
    outliers: float = 0.05  # share of landmarks that lie anywhere within half that distance, evenly


@dataclass(frozen=True)
class Portrait:
    """Holds one photograph and what is known of it."""

    picture: np.ndarray  # uint8 [H, W, 3]
    mask: np.ndarray  # uint8 [H, W], of the head
    landmarks: np.ndarray  # [68, 2] pixels as a detector gives them
    points: np.ndarray  # [68, 3] in the head's world
    rotation: np.ndarray  # [3, 3] world to camera axes of the camera that looks at the head's origin from there, rolled
    yaw: float  # radians, of the camera as seen from the head
    distance: float  # world units from the camera to the head's origin
    focal: float  # pixels


def take(seed: int, index: int, photographer: Photographer | None = None, picture: bool = True) -> Portrait:
    """Photographs head `index` of the set `seed`; without `picture`, only its landmarks are found."""
    p = photographer or Photographer()
    rng = np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(_STREAM, index)))
    spread = CameraSpread(yaw_std=p.yaw_std, pitch_std=p.pitch_std, roll_std=p.roll_std)
    yaw, pitch, roll = spread.angles(seed, index)
    way = np.array([math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)])
    position = rng.uniform(*p.distance) * way
    aimed = Cameras.look_at(torch.from_numpy(position), (0.0, 0.0, 0.0), intrinsics=torch.eye(3, dtype=torch.float64))
    turn = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    rotation = turn.T @ aimed.cam2world[:3, :3].numpy().T
    away = rng.uniform(-p.shift, p.shift, 2) * (1.0, p.height / p.width) / p.focal  # tangents of the angles off axis
    pose = np.eye(4)
    pose[:3, :3] = (_off_axis(away) @ rotation).T
    pose[:3, 3] = position
    head = build_head(sample_traits(seed, index))
    points = landmark_points(head)
    local = (points - position) @ pose[:3, :3]
    exact = p.focal * p.width * local[:, :2] / local[:, 2:] + np.array([p.width, p.height]) / 2
    nearness = p.focal * p.width / np.linalg.norm(position)  # pixels per world unit
    found = _found(exact, float(nearness) * float(np.linalg.norm(points[45] - points[36])), p, rng)
    pixels, mask = (
        _render(head, pose, p, rng) if picture else (np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.uint8))
    )
    return Portrait(pixels, mask, found, points, rotation, yaw, float(np.linalg.norm(position)), p.focal * p.width)


def _off_axis(away: np.ndarray) -> np.ndarray:
    """Returns a rotation of the camera's axes that moves what lies on its axis to the tangents `away` [2]."""
    goal = np.array([*away, 1.0]) / math.sqrt(1 + away @ away)
    axis = np.cross([0.0, 0.0, 1.0], goal)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + goal[2])


def _render(head: Head, pose: np.ndarray, p: Photographer, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    side = max(p.width, p.height)
    focal = p.focal * p.width / side
    intrinsics = np.array([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
    hits = cast(head.solids, pose, intrinsics, side, 2)
    image, mask, _ = resolve_samples(hits, shade(head, hits), side)
    top, left = (side - p.height) // 2, (side - p.width) // 2
    place = slice(top, top + p.height), slice(left, left + p.width)
    share = mask[0][place][..., None] / 255.0
    colours = image.transpose(1, 2, 0)[place].astype(np.float64)
    picture = share * colours + (1 - share) * _background(p.width, p.height, rng)
    return (picture + rng.normal(0, 2, picture.shape)).clip(0, 255).round().astype(np.uint8), mask[0][place]


def _background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Paints a wall with a gradient and some soft discs, [H, W, 3] in 0..255."""
    y, x = np.mgrid[:height, :width] / width
    corners = rng.uniform(20, 235, (3, 3))
    wall = corners[0] + x[..., None] * (corners[1] - corners[0]) + y[..., None] * (corners[2] - corners[0])
    for _ in range(8):
        cx, cy, radius = rng.uniform(0, 1), rng.uniform(0, height / width), rng.uniform(0.03, 0.2)
        edge = 1 / (1 + np.exp(np.clip((np.hypot(x - cx, y - cy) - radius) / 0.004, -50, 50)))
        wall += edge[..., None] * (rng.uniform(10, 245, 3) - wall)
    return wall


def _found(exact: np.ndarray, unit: float, p: Photographer, rng: np.random.Generator) -> np.ndarray:
    """Returns landmarks as a detector gives them; `unit` is the distance of the eyes' outer corners in pixels."""
    found = exact + rng.normal(0, p.noise * unit, exact.shape)
    wild = rng.random(len(exact)) < p.outliers
    found[wild] = exact[wild] + rng.uniform(-0.5, 0.5, (int(wild.sum()), 2)) * unit
    return found


def write_portraits(folder: Path, num: int, seed: int = 0, photographer: Photographer | None = None) -> list[Portrait]:
    """Writes the photographs of `num` heads, 00000.jpg and so on, and landmarks.json into a folder."""
    portraits = [take(seed, i, photographer) for i in range(num)]
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for i, portrait in enumerate(portraits):
        Image.fromarray(portrait.picture).save(folder / f"{i:05d}.jpg", quality=95)
        found[f"{i:05d}.jpg"] = {"faces": [portrait.landmarks.round(3).tolist()]}
    (folder / "landmarks.json").write_text(json.dumps({"order": "dlib68", "pictures": found}))
    return portraits


# ---- landmarks


def landmark_points(head: Head) -> np.ndarray:
    """Returns the 68 points [68, 3] on the head in world units."""
    t = head.traits
    flat = np.concatenate([_brows(t), _nose(t), _eyes(t), _mouth(t)])  # [51, 2] in HEAD_UNIT, seen from the front
    skin = np.isin(head.paints, (SKIN, EYE, LIPS))
    depth = head.front(HEAD_UNIT * flat, skin)
    points = np.column_stack([HEAD_UNIT * flat, depth])
    angles = np.radians(np.linspace(200, 340, JAW))
    jaw = [t.jaw_width * np.cos(angles), -0.045 + t.jaw_length * np.sin(angles), np.full(JAW, 0.035)]
    return np.concatenate([HEAD_UNIT * np.column_stack(jaw), points])


def _rolled(points: Sequence[tuple[float, float]], angle: float, centre: tuple[float, float]) -> list[list[float]]:
    c, s = math.cos(angle), math.sin(angle)
    return [[centre[0] + c * x - s * y, centre[1] + s * x + c * y] for x, y in points]


def _brows(t: Traits) -> np.ndarray:
    y = t.eye_height + t.brow_height
    left, right = [
        _rolled([(0.034 * u, 0.0) for u in (-1, -0.5, 0, 0.5, 1)], side * t.brow_tilt, (1.04 * side * t.eye_spacing, y))
        for side in (-1, 1)
    ]
    return np.array(left + right)


def _eyes(t: Traits) -> np.ndarray:
    wide, tall = 0.92 * t.eye_size, 0.72 * t.eye_size
    up, down = min(2 * t.eye_open - 1.0 + 0.14, 0.85), -0.80
    outline = [(-wide, 0), (-0.4 * wide, up * tall), (0.4 * wide, up * tall)]
    outline += [(wide, 0), (0.4 * wide, down * tall), (-0.4 * wide, down * tall)]
    both = [_rolled(outline, side * t.eye_tilt, (side * t.eye_spacing, t.eye_height)) for side in (-1, 1)]
    return np.array(both[0] + both[1])


def _nose(t: Traits) -> np.ndarray:
    tip = t.eye_height - 1.45 * t.nose_length
    bridge = [[0.0, t.eye_height + u * (tip - t.eye_height)] for u in (0, 1 / 3, 2 / 3, 1)]
    wing, nostril = 1.2 * t.nose_width, 0.6 * t.nose_width
    low = tip - 0.020
    base = [[-wing, low + 0.008], [-nostril, low + 0.001], [0.0, low], [nostril, low + 0.001], [wing, low + 0.008]]
    return np.array(bridge + base)


def _mouth(t: Traits) -> np.ndarray:
    wide, tall = 0.62 * t.mouth_width, t.mouth_thickness
    middle = 0.45 * t.mouth_width, t.mouth_height + 0.4 * t.mouth_width * t.smile

    def half(points: Sequence[tuple[float, float]], side: int) -> list[list[float]]:
        """Points of one half, (share of its half width outwards, share of its height)."""
        inside = [(side * u * wide, v * tall) for u, v in points]
        return _rolled(inside, side * t.smile, (side * middle[0], middle[1]))

    corner, peak, inner = (0.95, 0.0), (-0.35, 0.9), (0.85, 0.0)
    left_top, right_top = half([corner, (0.35, 0.9), peak], -1), half([corner, (0.35, 0.9), peak], 1)
    left_low, right_low = half([(0.35, -0.9), (-0.35, -0.9)], -1), half([(0.35, -0.9), (-0.35, -0.9)], 1)
    inside = [half([inner, (0.0, 0.12), (0.0, -0.12)], side) for side in (-1, 1)]
    y = t.mouth_height - 0.1 * t.mouth_width * t.smile
    return np.array(
        [
            *(*left_top, [0.0, y + 0.75 * tall], *right_top[::-1]),
            *(*right_low, [0.0, y - 0.75 * tall], *left_low[::-1]),
            *(inside[0][0], inside[0][1], [0.0, y + 0.1 * tall], inside[1][1], inside[1][0]),
            *(inside[1][2], [0.0, y - 0.1 * tall], inside[0][2]),
        ]
    )
