"""Extracts the surface of a density: its volume, the level where cameras see it, and vertices moved onto that level."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, Density
from torch_utils.precision import exact_float32
from training.fields.rays import camera_rays
from training.meshes.lattice import Lattice
from training.meshes.surface import Mesh, NoSurfaceError, marching_cubes

POINTS = 2**17  # that a scene is asked for at once
RAYS = 16  # along an edge of the images whose rays look for the surface
STEPS = 384  # along each of these rays
LEVELS = 128  # that are tried, from a thousandth of the largest density up
BISECTIONS = 6  # of an edge of the lattice, for the place where the density has the level
Progress = Callable[[float], object]  # is told which share of the work was done since its last call


def evaluated(ask: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Returns what `ask` makes of points [P, 3], asked for POINTS at a time as [1, P, 3], in float32 exactly."""
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False), exact_float32():
        return torch.cat([ask(part[None])[0] for part in points.split(POINTS)])


def density_volume(scene: Density, lattice: Lattice, progress: Progress | None = None) -> np.ndarray:
    """Returns the density [R, R, R] per world unit of a batch of one scene at the points of a lattice, float32.

    Memory beyond the volume itself does not grow with the resolution.
    """
    volume = np.empty(lattice.count, np.float32)
    for rows, points in lattice.parts(POINTS, scene.device):
        volume[rows] = evaluated(scene.density, points).float().cpu().numpy()
        if progress is not None:
            progress((rows.stop - rows.start) / lattice.count)
    return volume.reshape((lattice.resolution,) * 3)


def seen_level(scene: Density, cameras: Cameras) -> float:
    """Returns the density whose surface lies closest to what cameras [V] see: where half of a ray's light is absorbed.

    A ray that loses half of its light does so at some distance, and its density reaches a level at another, or at the
    end of the cube if it never does. The level is the one for which these distances differ least in the median over
    such rays; of all within one step along a ray of it, as where the density jumps, the one in the middle.
    No lattice has a part in it. Raises NoSurfaceError if no ray of this batch of one scene loses half of its light.
    """
    density, step = _along_rays(scene, cameras)
    absorbed = F.pad((density[:, 1:] + density[:, :-1]).cumsum(1) * (step / 2), (1, 0))  # [n, S] optical depth
    half = _crossing(absorbed, absorbed.new_tensor([math.log(2)]))  # [n, 1] in steps
    opaque = half[:, 0] < STEPS - 1
    if not bool(opaque.any()):
        raise NoSurfaceError("no ray of the data's cameras loses half of its light")
    density, half, step = density[opaque], half[opaque], step[opaque]
    top = float(density.max())
    levels = torch.logspace(math.log10(top) - 3, math.log10(top), LEVELS, device=density.device)
    first = _crossing(density.cummax(1).values, levels)  # [n, L]
    away = ((first - half).abs() * step).median(0).values  # [L]
    good = (away <= away.min() + step.median()).tolist()
    low = high = int(away.argmin())
    while low > 0 and good[low - 1]:
        low -= 1
    while high < LEVELS - 1 and good[high + 1]:
        high += 1
    return float((levels[low] * levels[high]).sqrt())


def _along_rays(scene: Density, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Returns densities [n, STEPS] along the rays that meet the cube, through all of it, and their steps [n, 1]."""
    rays = camera_rays(cameras.reshape(1, -1).to(device=scene.device, dtype=torch.float32), RAYS)
    origins, directions = rays.origins[0], rays.directions[0]
    slope = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    walls = torch.stack([(side * scene.half_width - origins) / slope for side in (-1, 1)])  # [2, R, 3]
    near = walls.amin(0).amax(-1, keepdim=True).clamp(min=0)
    far = walls.amax(0).amin(-1, keepdim=True)
    meets = (far > near)[:, 0]
    near, step = near[meets], (far - near)[meets] / (STEPS - 1)
    t = near + step * torch.arange(STEPS, device=scene.device)  # [n, S]
    points = origins[meets, None] + t[..., None] * directions[meets, None]
    return evaluated(scene.density, points.flatten(0, 1)).float().view(t.shape), step


def _crossing(rising: Tensor, levels: Tensor) -> Tensor:
    """Returns in steps [n, L] where values [n, S] that never fall reach levels [L]; S - 1 where they do not."""
    last = rising.shape[1] - 1
    after = torch.searchsorted(rising, levels.expand(len(rising), -1).contiguous())
    inside = after.clamp(1, last)
    above, below = rising.gather(1, inside), rising.gather(1, inside - 1)
    share = ((levels - below) / (above - below).clamp(min=1e-20)).clamp(0, 1)
    place = torch.where(after == 0, 0.0, inside - 1 + share)
    return torch.where(after > last, float(last), place)


def density_mesh(scene: Density, volume: np.ndarray, level: float, lattice: Lattice) -> Mesh:
    """Returns the surface, in colours, where the density of a batch of one scene has the level. Raises NoSurfaceError.

    Marching cubes take the density between two points of the lattice as linear. Here every vertex is moved along its
    edge to where the scene itself has the level: densities that rise steeply make no terraces.
    """
    mesh, indices = marching_cubes(volume, level, lattice)
    places = lattice.places(_on_level(scene, torch.from_numpy(indices).to(scene.device), level, lattice))
    colors = evaluated(scene.color, places).clamp(0, 1)
    return dataclasses.replace(mesh, vertices=places.float().cpu().numpy(), colors=colors.float().cpu().numpy())


def _on_level(scene: Density, indices: Tensor, level: float, lattice: Lattice) -> Tensor:
    """Moves vertices [V, 3] that lie on edges of the lattice to where the density has the level, by bisection."""
    start, end = indices.floor(), indices.ceil()
    moves = ((end - start).sum(1) == 1).nonzero()[:, 0]  # not those in cells, of ambiguous cases, nor those on points
    start, end = start[moves], end[moves]
    above = evaluated(scene.density, lattice.places(start)) > level
    inner, outer = torch.where(above[:, None], start, end), torch.where(above[:, None], end, start)
    for _ in range(BISECTIONS):
        middle = (inner + outer) / 2
        above = (evaluated(scene.density, lattice.places(middle)) > level)[:, None]
        inner, outer = torch.where(above, middle, inner), torch.where(above, outer, middle)
    result = indices.clone()
    result[moves] = (inner + outer) / 2
    return result
