"""Turns cameras into the angles that EpiGRAF's networks are told, and angles of data sets into cameras.

Published angles: pitch runs from 0 at the zenith to pi, yaw turns from the front, and grows towards the side that our
world calls -x. Our front is world +z; the axes of a field are turned so that its front is +x (`to_field`).

Source: Skorokhodov et al. 2022 (EpiGRAF).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaussian import Cameras

POLE = 1e-5  # radians that a pitch stays away from the poles, where the camera has no upright
FRONT = (0.0, math.pi / 2)  # yaw and pitch of a level frontal camera
FREQUENCIES = 6  # of the Fourier form of a camera code, whose first wave is
PERIOD = 64.0  # so many of its units long


def cameras_of(angles: Tensor, intrinsics: Tensor, radius: float = 1.0) -> Cameras:
    """Places cameras by yaw and pitch, angles [..., 2 or more] in radians, looking at the origin from `radius` off.

    intrinsics: [..., 3, 3] or [3, 3].
    """
    yaw, pitch = angles[..., 0], angles[..., 1].clamp(POLE, math.pi - POLE)
    way = torch.stack([-pitch.sin() * yaw.sin(), pitch.cos(), pitch.sin() * yaw.cos()], dim=-1)  # [..., 3]
    right = torch.stack([yaw.cos(), torch.zeros_like(yaw), yaw.sin()], dim=-1)
    down = torch.linalg.cross(-way, right)
    cam2world = torch.zeros(*way.shape[:-1], 4, 4, dtype=way.dtype, device=way.device)
    cam2world[..., :3, :] = torch.stack([right, down, -way, radius * way], dim=-1)
    cam2world[..., 3, 3] = 1
    return Cameras(cam2world, intrinsics.to(way).expand(*way.shape[:-1], 3, 3))


def angles_of(positions: Tensor) -> Tensor:
    """Returns yaw and pitch [..., 2] in radians of camera positions [..., 3]; the inverse of `cameras_of`."""
    x, y, z = positions.unbind(-1)
    return torch.stack([torch.atan2(-x, z), torch.atan2(torch.hypot(x, z), y)], dim=-1)


def to_field(vectors: Tensor) -> Tensor:
    """Returns world vectors [..., 3] in the axes of a field: a quarter turn about y, (z, y, -x)."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([z, y, -x], dim=-1)


def camera_code(angles: Tensor) -> Tensor:
    """Returns angles [..., 2] in whole turns, with their sign and less than one: what a mapping is told."""
    return torch.sign(angles) * torch.remainder(angles.abs(), 2 * math.pi) / (2 * math.pi)


def fourier(code: Tensor, frequencies: Tensor) -> Tensor:
    """Returns sines, then cosines, of each number of code [N, C] at K frequencies: [N, C 2K], number by number."""
    phases = code[..., None] * frequencies  # [N, C, K]
    return torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)
