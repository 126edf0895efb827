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

from torch_utils.constants import kept
from training.networks.layers import FullyConnected, normalize_second_moment

INITIAL_APPEARANCE = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # unit quaternion, grey; the opacity's logit follows
SURFACE_RADIUS = 0.6  # of the sphere of initial points, of which 1 is the most that a coordinate can be


@dataclass(frozen=True)
class Start:
    """Holds how a hierarchy starts."""

    reach: float  # world units per unit of the initial points, where coarse anchors start; 0: around the origin
    spread: float | None  # rms displacement of a coarse anchor from there, world units; None: as the heads have it
    opacity: float  # of every splat, but for what its heads add
    appearance: float  # factor of the first weights of colours and opacities

    @property
    def opacity_logit(self) -> float:
        """Returns the logit of the opacity."""
        return math.log(self.opacity / (1 - self.opacity))

    def origins(self, points: Tensor, count: int) -> Tensor | None:
        """Returns where the coarse anchors of `count` scenes start for points [P, 3]: [3, count P], scene by scene.

        None around the origin.
        """
        return self.reach * points.t().repeat(1, count) if self.reach else None

    def weight_of(self, head: str) -> float:
        """Returns the factor of the first weights of a head."""
        return self.appearance if head in ("color", "opacity") else 1.0

    def place(self, layer: FullyConnected, reach: float) -> None:
        """Scales the first weights of the layer that places coarse anchors, by `reach` world units per unit."""
        if self.spread is not None:
            with torch.no_grad():
                layer.weight.mul_(self.spread / reach)


STARTS = {
    "published": Start(reach=0.0, spread=None, opacity=0.1, appearance=1.0),
    "surface": Start(reach=1 / 3, spread=0.05, opacity=0.5, appearance=0.1),
}
PUBLISHED_OPACITY_LOGIT = STARTS["published"].opacity_logit


@kept
def initial_appearance(opacity_logit: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns what raw appearances of the first levels are added to, [8, 1]: quaternion wxyz, colour, opacity logit."""
    return torch.tensor((*INITIAL_APPEARANCE, opacity_logit), dtype=dtype, device=device)[:, None]


def initial_points(start: str, count: int, radius: float) -> Tensor:
    """Returns the initial points before their tanh, [count, 3]: normal numbers of an rms, or spread over a sphere.

    The sphere's points form a spiral with the golden angle between neighbours (a Fibonacci lattice).
    """
    if start == "published":
        return radius * normalize_second_moment(torch.randn(count, 3))
    i = torch.arange(count) + 0.5
    y, angle = 1 - 2 * i / count, math.pi * (1 + math.sqrt(5)) * i
    across = (1 - y.square()).sqrt()
    return torch.atanh(SURFACE_RADIUS * torch.stack([across * angle.cos(), y, across * angle.sin()], dim=-1))
