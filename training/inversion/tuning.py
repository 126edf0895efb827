"""Tunes what the latent cannot say: the generator's weights around a pivot, and the splats of one head on a leash."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussian import Cameras, Gaussians
from gaussian.scene import Scene
from torch_utils import random
from training.families.base import Generator
from training.inversion.fitting import Fit, Fitter, Progress, ramp
from training.inversion.similarity import pyramid_l1

NEIGHBOURS = 12  # heads and cameras at which the network must stay what it was
NEIGHBOUR_SHARE = 0.5  # of the way from the pivot to a head drawn anew
HELD_PITCH = 0.15  # radians to which the held views reach
COLOR_RATE = 0.02  # of the splats' Adam; in units of the spherical harmonics
SHAPE_RATES = {"opacity_logits": 0.05, "log_scales": 0.02, "means": 0.0005}
DEVIATIONS = {"sh": 0.3, "opacity_logits": 1.0, "log_scales": 0.3, "means": 0.01}  # that the leash expects


@dataclass(frozen=True)
class Held:
    """Holds what N heads looked like from one camera each before anything was tuned."""

    cameras: Cameras  # [N]
    rgb: Tensor  # [N, 3, R, R]
    alpha: Tensor  # [N, 1, R, R]

    def distance(self, i: int, rgb: Tensor, alpha: Tensor, color: float = 1.0) -> Tensor:
        """Returns how far head i is from what it was, given how it looks now, [3, R, R] and [1, R, R]."""
        change = (alpha - self.alpha[i]).abs().mean()
        return change + color * pyramid_l1(rgb[None], self.rgb[i : i + 1])[0] if color else change


def held_cameras(G: Generator, yaw_limits: tuple[float, float], count: int) -> Cameras:
    """Draws cameras [count] across the data's range."""
    low, high = yaw_limits
    u = random.uniform(0, "inversion/views", range(count), (2,))
    yaw, pitch = low + (high - low) * u[:, 0], HELD_PITCH * (2 * u[:, 1] - 1)
    return G.geometry.orbit(yaw, pitch).to(device=G.device, dtype=torch.float32)


def _look(fitter: Fitter, G: Generator, scene: Scene, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Returns rgb [V, 3, R, R] and alpha [V, 1, R, R] of one scene from cameras [V]."""
    out = G.render(scene, cameras.reshape(1, -1), fitter.target.images.shape[-1], fitter.target.background)
    return out.rgb[0], out.alpha[0]


def tune_generator(
    fitter: Fitter,
    fit: Fit,
    yaw_limits: tuple[float, float],
    steps: int,
    rate: float,  # of Adam
    locality: float,  # weight of how much other heads may change
    hold: float,  # weight of how much the silhouette may change where no picture looks
    progress: Progress,
) -> Generator:
    """Returns a copy of the generator that shows the pictures better at the pivot (Roich et al. 2022, PTI).

    The camera and the latent stay. In every step one head near the pivot, and the outline of the pivot itself, seen
    from somewhere else, are held as they were.
    """
    G = copy.deepcopy(fitter.G).requires_grad_(True)
    pivot, cameras = fitter.ws(fit.coordinates).detach(), fit.tracker.cameras
    views, shown = held_cameras(G, yaw_limits, NEIGHBOURS), fitter.views(cameras)
    z = random.normal(0, "inversion/neighbours", range(NEIGHBOURS), (fitter.space.axes.shape[0],)).to(pivot)
    others = torch.lerp(pivot, fitter.space.ws(z)[:, None], NEIGHBOUR_SHARE)  # [N, K, w_dim]
    near, own = _remember(fitter, others, views), _remember(fitter, pivot.expand_as(others), views)
    optimizer = torch.optim.Adam(G.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * ramp(step / steps)
        i = step % NEIGHBOURS
        scene = G.synthesis(torch.cat([pivot, others[i : i + 1]]))
        joined = Cameras.from_labels(torch.cat([shown.labels[0], views[i : i + 1].labels]))
        rgb, alpha = _look(fitter, G, scene.map(lambda t: t[:1]), joined)
        loss = fitter.loss(rgb[None, :-1], alpha[None, :-1], cameras)[0]
        loss = loss + hold * own.distance(i, rgb[-1], alpha[-1], color=0.0)
        other = _look(fitter, G, scene.map(lambda t: t[1:]), views[i : i + 1])
        loss = loss + locality * near.distance(i, other[0][0], other[1][0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(1)
    return G.requires_grad_(False)


@torch.no_grad()
def _remember(fitter: Fitter, ws: Tensor, cameras: Cameras) -> Held:
    """Returns how heads of ws [N, K, w_dim] look from a camera each."""
    seen = [_look(fitter, fitter.G, fitter.G.synthesis(ws[i : i + 1]), cameras[i : i + 1]) for i in range(len(cameras))]
    return Held(cameras, torch.cat([rgb for rgb, _ in seen]), torch.cat([alpha for _, alpha in seen]))


def refine_splats(
    fitter: Fitter,
    G: Generator,
    scene: Gaussians,
    cameras: Cameras,  # [1, V]
    yaw_limits: tuple[float, float],
    steps: int,
    leash: float,  # weight of the squared changes, in the deviations that are expected
    hold: float,  # weight of how much other views may change
    progress: Progress,
) -> Gaussians:
    """Returns the splats of one head moved a little towards the pictures: colours most, places least.

    The rest of the scene stays, as do the views from elsewhere as far as `hold` weighs them.
    """
    views, shown = held_cameras(G, yaw_limits, NEIGHBOURS), fitter.views(cameras)
    with torch.no_grad():
        held = Held(views, *_look(fitter, G, scene, views))
    rates = {"sh": COLOR_RATE, **SHAPE_RATES}
    changes = {name: torch.zeros_like(getattr(scene, name)).requires_grad_(True) for name in rates}
    optimizer = torch.optim.Adam([{"params": [changes[name]], "lr": rate} for name, rate in rates.items()])
    first = [group["lr"] for group in optimizer.param_groups]

    def changed() -> Gaussians:
        return dataclasses.replace(scene, **{name: getattr(scene, name) + change for name, change in changes.items()})

    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * ramp(step / steps)
        i = step % NEIGHBOURS
        joined = Cameras.from_labels(torch.cat([shown.labels[0], views[i : i + 1].labels]))
        rgb, alpha = _look(fitter, G, changed(), joined)
        loss = fitter.loss(rgb[None, :-1], alpha[None, :-1], cameras)[0]
        loss = loss + hold * held.distance(i, rgb[-1], alpha[-1])
        size = torch.stack([(change / DEVIATIONS[name]).square().mean() for name, change in changes.items()]).sum()
        optimizer.zero_grad()
        (loss + leash * size).backward()
        optimizer.step()
        progress(1)
    return changed().map(lambda t: t.detach())
