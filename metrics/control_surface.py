"""Compares in space the surfaces that a controlled generator makes, and those that its latents ask for.

Of every subject some expressions are looked at from the front, and as many identities with its expression. What the
pixels show within the face that was asked for becomes points in world units, and two sets of points are as far apart as
the mean distance to the nearest of the other set, of both directions (the chamfer distance).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gaussian import Cameras
from metrics.samples import Sampling, frontal_cameras, mapped
from torch_utils import distributed

LOOKS = 4  # surfaces of each factor: the first is compared with the others
POINTS = 2048  # of a surface, at most
SOLID = 0.5  # alpha of a pixel that shows a surface
FACTORS = ("expression", "identity")  # by which surfaces are moved
MOVED = {name: (f"chamfer_{name}", f"chamfer_{name}_asked") for name in FACTORS}  # the generator's, and what is asked
MISSED = "chamfer_to_asked"  # from what is asked to what the generator made of it


class Shapes:
    """Adds up distances between surfaces, over subjects and ranks; all in world units."""

    def __init__(self) -> None:
        names = (*(name for pair in MOVED.values() for name in pair), MISSED)
        self.sums = {name: torch.zeros(2, dtype=torch.float64) for name in names}  # of the distances, their number
        self.missing = torch.zeros(1, dtype=torch.float64)  # pairs one of which could not be seen

    def compare(self, name: str, one: Tensor, other: Tensor) -> None:
        """Adds the distance of points [P, 3] and [Q, 3]."""
        if len(one) and len(other):
            self.sums[name] += torch.stack([chamfer(one, other), one.new_ones(())]).double().cpu()
        else:
            self.missing += 1

    def values(self) -> dict[str, float]:
        """Returns the mean distances over all ranks, where there are any, and how many pairs were missing."""
        for total in (*self.sums.values(), self.missing):
            distributed.add_over_ranks_(total)
        found = {name: float(total / count) for name, (total, count) in self.sums.items() if count}
        return {**found, "chamfer_missing": float(self.missing)}


def chamfer(one: Tensor, other: Tensor) -> Tensor:
    """Returns the chamfer distance of points [P, 3] and [Q, 3], in their unit."""
    distances = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.amin(0).mean() + distances.amin(1).mean()) / 2


def surface_points(depth: Tensor, seen: Tensor, cameras: Cameras) -> list[Tensor]:
    """Returns what depth [B, R, R] (camera z, world units) shows where `seen` [B, R, R], as points [P <= POINTS, 3]."""
    found = [points[mask] for points, mask in zip(cameras.unproject(depth), seen, strict=True)]
    return [some[:: -(-len(some) // POINTS)] if len(some) else some for some in found]


def add_surfaces(shapes: Shapes, sampling: Sampling, latents: Mapping[str, Tensor]) -> None:
    """Adds a subject's surfaces: latents [N >= LOOKS, z_dim] in which a factor of FACTORS varies, for each of them."""
    G, colour = sampling.G, sampling.colour()
    for name in FACTORS:
        z = latents[name][:LOOKS]
        cameras = frontal_cameras(sampling, LOOKS)
        ws = mapped(sampling, z, cameras, torch.zeros(LOOKS, dtype=torch.int64))
        rendering = G.render(G.synthesis(ws), cameras.reshape(LOOKS, 1), background=colour.expand(LOOKS, 1, 3))
        alpha, depth = rendering.alpha[:, 0, 0].float(), rendering.depth[:, 0, 0].float()
        asked = G.asked_depth(z, cameras, G.resolution)
        made = surface_points(depth / alpha.clamp(min=1e-6), (alpha > SOLID) & (asked > 0), cameras)
        wanted = surface_points(asked, asked > 0, cameras)
        for i in range(1, LOOKS):
            for key, points in zip(MOVED[name], (made, wanted), strict=True):
                shapes.compare(key, points[0], points[i])
        for one, other in zip(made, wanted, strict=True):
            shapes.compare(MISSED, one, other)
