"""Finds which way is up in a world of cameras, and turns or moves the world so that labels have it at +y."""

import torch

from gaussian import Cameras
from gaussian.geometry import REFERENCE_HALF_EXTENT
from training.data.image_store import DatasetError

AXES = ("x", "y", "z", "-x", "-y", "-z")
_SURROUND = 0.1  # mean horizontal offset, in camera distances, below which cameras count as surrounding the middle
_FREE = 0.2  # the least eigenvalue leaves a direction free up to this share of the middle one
_TURN = 0.02  # middle eigenvalue from which on the cameras' horizontal axes span a plane (a yaw spread of 8 degrees)
_NEAR = 0.98  # cosine of the angle (11 degrees) up to which a measured up is taken for the axis next to it
_TILTED = 0.7  # cosine of the angle (46 degrees) from which on labels' up counts as another one than +y
_CLEAR = 0.3  # length of the mean up of the cameras (1: all alike) from which on they have one in common


def align(cameras: Cameras, up: str = "auto") -> Cameras:
    """Moves cameras [N] to a world with y up, the subject in the middle, the front at +z and FFHQ's size; float64.

    up: "auto" or an axis of the given world ("z", "-y", ...). The result is the same for every rotation, shift and
    scale of the given world if `up` is "auto". Raises DatasetError if the cameras have no middle.
    """
    cameras = cameras.to(dtype=torch.float64)
    try:
        middle = torch.tensor(cameras.summary().pivot, dtype=torch.float64)
    except ValueError:
        raise DatasetError("imported cameras: all stand at one place, so nothing tells where the subject is") from None
    upward = up_of(cameras, up)
    offsets = cameras.positions - middle  # [N, 3]
    distance = float(offsets.norm(dim=-1).quantile(0.5))
    level = offsets - (offsets @ upward)[:, None] * upward
    front = level.mean(0)
    if front.norm() < _SURROUND * distance:
        front = level[int((level.norm(dim=-1) > _SURROUND * distance).to(torch.uint8).argmax())]
    if not front.norm() > 0:
        raise DatasetError("imported cameras: all stand right above the middle; there is no front to turn to")
    z = front / front.norm()
    turn = torch.stack([torch.linalg.cross(upward, z), upward, z])  # rows: the new axes in the given world
    focal = float(cameras.intrinsics[:, 0, 0].quantile(0.5))
    scale = 2 * focal * REFERENCE_HALF_EXTENT / distance
    poses = cameras.cam2world.clone()
    poses[:, :3, :3] = turn @ cameras.cam2world[:, :3, :3]
    poses[:, :3, 3] = scale * offsets @ turn.T
    return Cameras(poses, cameras.intrinsics)


def turn_up(cameras: Cameras, up: str) -> Cameras:
    """Turns cameras [N] about the world's origin by the least angle that brings their up to +y; float64.

    Nothing is moved or scaled. up: "auto" or an axis of the given world; a measured up close to an axis is that axis.
    Raises DatasetError if up is "auto" and the cameras have none in common.
    """
    cameras = cameras.to(dtype=torch.float64)
    upward = up_of(cameras, up)
    nearest = int(upward.abs().argmax())
    if upward.abs()[nearest] > _NEAR:
        upward = torch.eye(3, dtype=torch.float64)[nearest] * upward.sign()[nearest]
    y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    axis, cosine = torch.linalg.cross(upward, y), float(upward @ y)
    if cosine < -1 + 1e-9:  # half a turn, about z: what was in front stays there
        turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    else:
        x, y_, z = axis.tolist()
        skew = torch.tensor([[0.0, -z, y_], [z, 0.0, -x], [-y_, x, 0.0]], dtype=torch.float64)
        turn = torch.eye(3, dtype=torch.float64) + skew + skew @ skew / (1 + cosine)  # Rodrigues
    poses = cameras.cam2world.clone()
    poses[:, :3] = turn @ cameras.cam2world[:, :3]
    return Cameras(poses, cameras.intrinsics)


def up_of(cameras: Cameras, up: str = "auto") -> torch.Tensor:
    """Returns the up direction, a unit vector [3] in the given world. Raises DatasetError if there is none."""
    if up != "auto":
        axis = torch.zeros(3, dtype=torch.float64)
        axis["xyz".index(up[-1])] = -1.0 if up.startswith("-") else 1.0
        return axis
    right, down = cameras.cam2world[:, :3, 0], cameras.cam2world[:, :3, 1]
    mean = -down.mean(0)
    values, vectors = torch.linalg.eigh(right.T @ right / len(right))  # ascending
    if values[1] > _TURN and values[0] < _FREE * values[1]:
        free = vectors[:, 0]
        return free * torch.where(free @ mean < 0, -1.0, 1.0)
    if mean.norm() < 1e-6:
        raise DatasetError("imported cameras: have no common up direction; give --up")
    return mean / mean.norm()


def other_up(cameras: Cameras) -> str | None:
    """Names the axis of the world that is up for cameras [N] if it is not +y; None if it is, or if none is common."""
    cameras = cameras.to(dtype=torch.float64)
    if float(cameras.cam2world[:, :3, 1].mean(0).norm()) < _CLEAR:
        return None
    upward = up_of(cameras)
    if float(upward[1]) > _TILTED:
        return None
    nearest = int(upward.abs().argmax())
    return f"{'-' if upward[nearest] < 0 else ''}{'xyz'[nearest]}"
