"""Says what a hierarchy looks like before it has learnt anything: the published fog, or a closed surface.

As published, coarse anchors start at random places of a ball, splats are a tenth opaque, and each level adds a random
colour to that of its parent. A discriminator then sees through a fog of confetti, every splat has to lose a colour of
its own, and what a view is made of lies at every depth. Long runs forget that; in short ones it is most of what is
seen. Under the start "surface" anchors begin on a sphere, where each keeps its place from latent to latent, half opaque
and grey, so that what is learnt first is a shape with a colour, and then its details.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.networks.layers import normalize_second_moment

POINT_RADIUS = 0.3  # rms coordinate of the published initial points, before the tanh
SURFACE_RADIUS = 0.6  # of the sphere of initial points, of which 1 is the most that a coordinate can be


@dataclass(frozen=True)
class Start:
    """Holds how a hierarchy starts. All weights multiply unit-normal first ones."""

    reach: float  # world units per unit of the initial points, where coarse anchors start; 0: around the origin
    opacity: float  # of every splat, but for what its heads add
    coarse_weight: float  # of the head that places coarse anchors
    appearance_weight: float  # of the heads of colours and opacities
    scale_bias: float  # of the heads of scales: a splat starts at the sigmoid of it times its bound

    @property
    def opacity_logit(self) -> float:
        """Returns the logit of the opacity."""
        return math.log(self.opacity / (1 - self.opacity))


STARTS = {
    "published": Start(reach=0.0, opacity=0.1, coarse_weight=1.0, appearance_weight=1.0, scale_bias=-1.0),
    "surface": Start(reach=1 / 3, opacity=0.5, coarse_weight=0.25, appearance_weight=0.1, scale_bias=-1.0),
}


def initial_points(start: str, count: int) -> Tensor:
    """Returns the initial points before their tanh, [count, 3]: normal numbers, or evenly spread over a sphere.

    The sphere's points form a spiral with the golden angle between neighbours (a Fibonacci lattice).
    """
    if start == "published":
        return POINT_RADIUS * normalize_second_moment(torch.randn(count, 3))
    i = torch.arange(count) + 0.5
    y, angle = 1 - 2 * i / count, math.pi * (1 + math.sqrt(5)) * i
    across = (1 - y.square()).sqrt()
    return torch.atanh(SURFACE_RADIUS * torch.stack([across * angle.cos(), y, across * angle.sin()], dim=-1))
