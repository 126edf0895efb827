"""Casts the rays of cameras, and places samples along them: evenly, jittered, and where a first pass found something.

A point of a ray is origin + t direction with a direction of length 1, so t is a distance in world units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, SceneRecord
from gaussian.cameras import pixel_centres

GRIDS = ("centres", "corners")
JITTERS = ("centred", "inside", "onward")
EVERYWHERE = 2e-5  # added to every weight: empty space gets a few samples too (1e-5, twice, in the published codes)
EMPTY = 1e-5  # share of a ray's weight below which a bin is taken as empty


@dataclass(frozen=True)
class Rays(SceneRecord):
    """Holds R rays for each of B scenes."""

    origins: Tensor  # [B, R, 3] world units
    directions: Tensor  # [B, R, 3] of length 1
    cosines: Tensor  # [B, R] camera z per unit of distance along the ray

    def part(self, rows: slice) -> Rays:
        """Returns some of the rays of every scene."""
        return self.map(lambda values: values[:, rows])


def camera_rays(cameras: Cameras, resolution: int | tuple[int, int], grid: str = "centres") -> Rays:
    """Casts a ray through every pixel of cameras [B, V]: R = V H W, views first, then rows from the top.

    A patch of an image is the image of a crop camera (`Cameras.crop`).

    resolution: pixels, one number or (height, width).
    grid: "centres" are our pixels', at (i + 0.5) / W. "corners" are at i / (W - 1), as in pi-GAN and EpiGRAF: the
        outer rays run along the image's edges.
    Raises ValueError for another shape or grid.
    """
    if len(cameras.shape) != 2:
        raise ValueError(f"cameras must have leading shape [B, V], got {list(cameras.shape)}")
    if grid not in GRIDS:
        raise ValueError(f"grid {grid!r} does not exist; legal are {', '.join(GRIDS)}")
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(height, width) < 1 + (grid == "corners"):
        raise ValueError(f"images of {height} x {width} px have no grid of {grid}")
    places = pixel_centres if grid == "centres" else _pixel_corners
    local = cameras.rays(*(places(n, cameras.intrinsics) for n in (width, height))).flatten(2, 3)  # [B, V, H W, 3]
    cosines = 1 / local.norm(dim=-1)  # [B, V, H W]
    directions = (local * cosines[..., None]) @ cameras.cam2world[..., :3, :3].transpose(-1, -2)
    origins = cameras.positions[:, :, None].expand_as(directions)
    return Rays(origins.flatten(1, 2), directions.flatten(1, 2), cosines.flatten(1))


def _pixel_corners(count: int, like: Tensor) -> Tensor:
    """Returns places from the image's one edge to the other, in units of the image: [count]."""
    return torch.arange(count, dtype=like.dtype, device=like.device) / (count - 1)


def stratified(
    near: float | Tensor,
    far: float | Tensor,
    count: int,
    u: Tensor | None = None,
    jitter: str = "centred",
    like: Tensor | None = None,
) -> Tensor:
    """Places `count` distances evenly from near to far, both included, each moved by a draw of its own.

    near, far: world units; tensors have the shape [..., 1].
    u: [..., count] uniform in 0..1; None moves nothing. like: a tensor of the type and device, where u is None.
    jitter: "centred" moves by up to half the spacing either way, past the ends too (pi-GAN). "inside" draws between
        the midpoints with the neighbours, and from the ends only inwards (NeRF, EpiGRAF). "onward" moves by up to a
        spacing away from the camera (EG3D).
    Returns [..., count]. Raises ValueError for fewer than 2 samples and for an unknown jitter.
    """
    if count < 2:
        raise ValueError(f"{count} samples along a ray: there must be 2 or more")
    if jitter not in JITTERS:
        raise ValueError(f"jitter {jitter!r} does not exist; legal are {', '.join(JITTERS)}")
    model = u if u is not None else like
    dtype, device = (None, None) if model is None else (model.dtype, model.device)
    even = near + (far - near) * torch.linspace(0, 1, count, dtype=dtype, device=device)
    if u is None:
        return even
    if jitter == "inside":
        middles = (even[..., 1:] + even[..., :-1]) / 2
        lower, upper = torch.cat([even[..., :1], middles], -1), torch.cat([middles, even[..., -1:]], -1)
        return lower + (upper - lower) * u
    return even + (u - 0.5 if jitter == "centred" else u) * ((far - near) / (count - 1))


def inverse_cdf(edges: Tensor, weights: Tensor, u: Tensor, right: bool = False, spare: float = 0.0) -> Tensor:
    """Maps draws to a density that is constant within bins (Mildenhall et al. 2020, NeRF, section 5.2).

    edges: [..., M + 1] ascending; weights: [..., M] positive; u: [..., N] in 0..1.
    right: which bin a draw belongs to that falls on an edge of the distribution: the upper one, else the lower.
    spare: added to the sum of the weights, so that the largest draws give the last edge (CGOF).
    A bin with less than 1e-5 of the weight gives its lower edge, or little more. Returns [..., N], without gradient to
    follow: it is meant for no_grad.
    """
    last = weights.shape[-1]
    cdf = F.pad((weights / (weights.sum(-1, keepdim=True) + spare)).cumsum(-1), (1, 0)).contiguous()  # [..., M + 1]
    index = torch.searchsorted(cdf, u.contiguous(), right=right)
    below, above = (index - 1).clamp(min=0), index.clamp(max=last)
    start, share = cdf.gather(-1, below), cdf.gather(-1, above) - cdf.gather(-1, below)
    low, high = edges.gather(-1, below), edges.gather(-1, above)
    return low + (u - start) / torch.where(share < EMPTY, 1, share) * (high - low)


@torch.no_grad()
def importance(t: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Places samples where the first pass along a ray has weight, as pi-GAN and EpiGRAF do: [..., N], a constant.

    t, weights: [..., K] of the first pass, ascending, K 3 or more; u: [..., N] in 0..1. The bins are between the
    midpoints of neighbouring samples, and have the weights of the samples in them; the first and last one have none.
    """
    return inverse_cdf((t[..., 1:] + t[..., :-1]) / 2, weights[..., 1:-1] + EVERYWHERE, u)


def even_draws(count: int, like: Tensor) -> Tensor:
    """Returns (k + 0.5) / count, what stands for `count` draws where nothing is random: [count]."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count
