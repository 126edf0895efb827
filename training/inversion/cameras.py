"""Searches and refines cameras by what they see, without a gradient through the renderer: any family will do."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, Geometry

# What a camera is moved by: turns about the axes of the camera through the centre of the data (pitch, yaw, roll, in
# radians), shifts along the camera's x and y (world units per unit of the radius), ln of focal length and of distance.
MOTIONS = 7
STEPS = (0.01, 0.01, 0.01, 0.002, 0.002, 0.01, 0.01)  # of the differences: a fraction of a pixel at 64
# Standard deviations of what is expected beyond the data's own cameras, where nothing else is known of them. Focal
# length and distance can hardly be told apart, so that the second is all but held.
DEVIATIONS = (1.0, 1.0, 0.1, 0.02, 0.02, 0.05, 0.01)
NOISE = 0.1  # standard deviation of a pixel's difference that the prior is weighed against
ALIKE = 75  # differences that count as one: neighbours err alike, and so do levels
Render = Callable[[Cameras], Tensor]  # cameras [S, V] to channels [S, V, C, H, W]


def moved(cameras: Cameras, motion: Tensor, geometry: Geometry) -> Cameras:
    """Returns cameras [...] after motions [..., 7], see MOTIONS."""
    centre = motion.new_tensor(geometry.centre)
    rotation = cameras.cam2world[..., :3, :3]
    turn = rotation @ _exponential(motion[..., :3]) @ rotation.mT  # about world axes
    arm = (cameras.positions - centre) * motion[..., 6:].exp()
    shift = geometry.radius * (rotation[..., :2] @ motion[..., 3:5, None])[..., 0]
    position = centre + (turn @ (arm + shift)[..., None])[..., 0]
    cam2world = torch.cat([torch.cat([turn @ rotation, position[..., None]], -1), cameras.cam2world[..., 3:, :]], -2)
    zoom = torch.ones_like(cameras.intrinsics)
    zoom[..., 0, 0] = zoom[..., 1, 1] = motion[..., 5].exp()
    return Cameras(cam2world, cameras.intrinsics * zoom)


def _exponential(vector: Tensor) -> Tensor:
    """Returns the rotations [..., 3, 3] about vectors [..., 3] by their lengths (Rodrigues)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)


def angle_between(first: Cameras, second: Cameras, geometry: Geometry) -> Tensor:
    """Returns the angle in degrees between the directions from the centre to two cameras [...]."""
    centre = first.positions.new_tensor(geometry.centre)
    ways = [F.normalize(c.positions - centre, dim=-1) for c in (first, second)]
    return torch.linalg.cross(*ways).norm(dim=-1).atan2((ways[0] * ways[1]).sum(-1)).rad2deg()


def grid_of_cameras(geometry: Geometry, yaws: Tensor, pitches: Tensor) -> Cameras:
    """Returns cameras [yaws x pitches] on the orbit of the data."""
    yaw, pitch = torch.meshgrid(yaws, pitches, indexing="ij")
    return geometry.orbit(yaw.flatten(), pitch.flatten()).to(dtype=torch.float32)


def best_starts(losses: Tensor, count: int, alternatives: int = 3) -> tuple[Tensor, Tensor]:
    """Ranks starts with different cameras by losses [K heads, V pictures, C cameras].

    Every picture takes the best camera for a head, and each picture in turn one of its next best.
    Returns heads [S] and cameras [S, V] as indices, S up to `count`, the best first.
    """
    heads, pictures, cameras = losses.shape
    order = losses.argsort(-1)[..., : min(alternatives, cameras)]  # [K, V, A]
    found: dict[tuple[int, ...], tuple[float, int]] = {}
    for k in range(heads):
        base = order[k, :, 0].tolist()
        for v, a in itertools.product(range(pictures), range(order.shape[-1])):
            cells = (*base[:v], int(order[k, v, a]), *base[v + 1 :])
            total = float(sum(losses[k, u, c] for u, c in enumerate(cells)))
            if cells not in found or total < found[cells][0]:
                found[cells] = total, k
    best = sorted((total, k, cells) for cells, (total, k) in found.items())[:count]
    return torch.tensor([k for _, k, _ in best]), torch.tensor([cells for *_, cells in best])


@dataclass(frozen=True)
class Tracker:
    """Follows cameras [S, V] by Levenberg and Marquardt's method: S trials, V pictures each. Steps return new ones."""

    start: Cameras  # [S, V], what the prior holds on to
    geometry: Geometry
    motion: Tensor  # [S, V, 7] from the start
    damping: Tensor  # [S, V]
    deviations: tuple[float, ...] = DEVIATIONS  # of the motions that are expected, 7

    @classmethod
    def at(cls, cameras: Cameras, geometry: Geometry, doubts: tuple[float, float] = DEVIATIONS[:2]) -> Tracker:
        """Starts at cameras [S, V], of which pitch and yaw are known up to `doubts`, standard deviations in radians."""
        motion = cameras.positions.new_zeros(*cameras.shape, MOTIONS)
        return cls(cameras, geometry, motion, motion.new_full(cameras.shape, 1.0), (*doubts, *DEVIATIONS[2:]))

    @property
    def cameras(self) -> Cameras:
        """Returns the cameras [S, V] as they are now."""
        return moved(self.start, self.motion, self.geometry)

    def chosen(self, trial: int) -> Tracker:
        """Returns one of the trials alone."""
        some = slice(trial, trial + 1)
        return dataclasses.replace(self, start=self.start[some], motion=self.motion[some], damping=self.damping[some])

    @torch.no_grad()
    def step(self, render: Render, targets: Tensor) -> Tracker:
        """Takes one step towards targets [V, C, H, W]; where it leads away from them, the camera stays.

        Derivatives are differences of pictures, of 7 more cameras for each. The least squares are those of blurred
        pictures, so that features attract from afar.
        """
        steps = self.motion.new_tensor(STEPS)
        tried = torch.cat([self.motion[:, :, None], self.motion[:, :, None] + steps.diag()], dim=2)  # [S, V, 8, 7]
        seen = self._residuals(render, tried, targets)  # [S, V, 8, P]
        now = seen[:, :, 0]
        slopes = (seen[:, :, 1:] - seen[:, :, :1]) / steps[:, None]  # [S, V, 7, P]
        prior = ALIKE * (NOISE / self.motion.new_tensor(self.deviations)).square()  # [7]
        normal = slopes @ slopes.mT + prior.diag()
        moment = (slopes @ now[..., None])[..., 0] + prior * self.motion
        damped = normal + self.damping[..., None, None] * torch.diag_embed(normal.diagonal(dim1=-2, dim2=-1))
        motion = self.motion - torch.linalg.solve(damped, moment)
        then = self._residuals(render, motion[:, :, None], targets)[:, :, 0]
        better = self._energy(then, motion, prior) < self._energy(now, self.motion, prior)
        return dataclasses.replace(
            self,
            motion=torch.where(better[..., None], motion, self.motion),
            damping=torch.where(better, self.damping / 3, self.damping * 4).clamp(1e-3, 1e3),
        )

    def _residuals(self, render: Render, motion: Tensor, targets: Tensor) -> Tensor:
        """Returns differences [S, V, T, P] of what motions [S, V, T, 7] show from the targets."""
        trials, views, times = motion.shape[:3]
        start = self.start.reshape(trials, views, 1).expand(trials, views, times)
        cameras = moved(start, motion, self.geometry).reshape(trials, views * times)
        pictures = render(cameras).unflatten(1, (views, times))
        difference = (pictures - targets[:, None]).flatten(0, 2)
        parts = []
        for _ in range(3):
            difference = F.avg_pool2d(difference, 2)
            parts.append(2 * difference.flatten(1))  # a pixel of a level stands for four of the one above
        return torch.cat(parts, 1).unflatten(0, (trials, views, times))

    def _energy(self, residual: Tensor, motion: Tensor, prior: Tensor) -> Tensor:
        return residual.square().sum(-1) + (prior * motion.square()).sum(-1)


def yaw_pitch_degrees(cameras: Cameras, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Returns yaw and pitch of cameras, in degrees."""
    yaw, pitch = cameras.yaw_pitch(geometry)
    return yaw * (180 / math.pi), pitch * (180 / math.pi)
