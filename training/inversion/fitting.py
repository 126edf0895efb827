"""Fits latents and cameras to pictures: a search over heads and cameras, then both together by descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras
from gaussian.scene import Scene
from torch_utils import random
from training.families.base import Generator
from training.inversion.cameras import Tracker, angle_between, best_starts
from training.inversion.latents import LatentSpace
from training.inversion.similarity import Similarity, mask_distance, pyramid_l1

CAMERA_PIXELS = 64  # at most, of the pictures that cameras are found by
SEARCH_PIXELS = 32  # likewise, of those that are ranked
SEARCH_PSI = 0.7  # truncation of the heads that are tried
BETAS = (0.9, 0.99)  # of Adam
FULLY_TURNED = 40.0  # degrees between a camera and its mirror image from which the latter counts fully
CAMERA_EVERY = 4  # steps of the latent for each step of the camera
Progress = Callable[[int], object]  # is told how many steps were done


@dataclass(frozen=True)
class Target:
    """Holds V pictures of one head."""

    images: Tensor  # [V, 3, R, R] RGB in 0..1 over the background
    masks: Tensor | None  # [V, 1, R, R] in 0..1
    background: Tensor  # [3] RGB in 0..1

    def to(self, device: torch.device) -> Target:
        """Returns the pictures on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        return Target(self.images.to(device), masks, self.background.to(device))

    def channels(self, size: int) -> Tensor:
        """Returns images, and masks if there are any, [V, 3 or 4, s, s] with s about `size` and no less than half."""
        whole = self.images if self.masks is None else torch.cat([self.images, self.masks], 1)
        return F.interpolate(whole, (size, size), mode="area") if size < whole.shape[-1] else whole


@dataclass(frozen=True)
class Fit:
    """Holds S trials: a head each, and the camera that each picture was taken with."""

    coordinates: Tensor  # [S, K, D] of the ws in `LatentSpace`; K is 1 for one w that serves everywhere
    tracker: Tracker  # of cameras [S, V]
    losses: Tensor  # [S]

    def chosen(self, trial: int) -> Fit:
        """Returns one of the trials alone."""
        some = slice(trial, trial + 1)
        return Fit(self.coordinates[some], self.tracker.chosen(trial), self.losses[some])


@dataclass(frozen=True)
class Fitter:
    """Knows the generator, its latents and the pictures."""

    G: Generator
    space: LatentSpace
    target: Target
    similarity: Similarity
    symmetry: float = 0.0  # weight of mirror images beside the pictures, see `loss`

    def ws(self, coordinates: Tensor) -> Tensor:
        """Returns the ws [S, num_ws or block_ws, w_dim] of coordinates [S, K, D]."""
        ws = self.space.ws(coordinates)
        return ws.expand(-1, self.G.num_ws, -1) if ws.shape[1] == 1 else ws

    def scene(self, coordinates: Tensor) -> Scene:
        """Returns the scenes of coordinates [S, K, D]."""
        return self.G.synthesis(self.ws(coordinates))

    def seen(self, scene: Scene, cameras: Cameras, size: int) -> Tensor:
        """Returns what cameras [S, V] see as channels [S, V, 3 or 4, s, s], like those of the target."""
        out = self.G.render(scene, cameras, size, self.target.background)
        return out.rgb if self.target.masks is None else torch.cat([out.rgb, out.alpha], 2)

    def views(self, cameras: Cameras) -> Cameras:
        """Returns those that `loss` is told of, [S, V or 2 V]: the cameras of pictures [S, V], and mirrored ones."""
        if not self.symmetry:
            return cameras
        return Cameras.from_labels(torch.cat([cameras.labels, cameras.mirror().labels], -2))

    def loss(self, rgb: Tensor, alpha: Tensor, cameras: Cameras) -> Tensor:
        """Returns the loss [S] of what `views` of cameras [S, V] see, rgb [S, V or 2 V, 3, R, R] and alpha likewise.

        A head looks from the mirrored camera much like the mirror image of its picture (Yin et al. 2023, "3D GAN
        inversion with facial symmetry prior"). That counts the more the further the head is turned: pictures from the
        front say nothing of other sides, and their mirror images would only blur what is not symmetric.
        """
        pictures = cameras.shape[-1]
        total = self.similarity(rgb[:, :pictures], alpha[:, :pictures], cameras.labels).mean(1)
        if not self.symmetry:
            return total
        images, masks = self.target.images.flip(-1), self.target.masks
        apart = angle_between(cameras, cameras.mirror(), self.G.geometry)
        weights = self.symmetry * (apart / FULLY_TURNED).clamp(max=1.0)  # [S, V]
        distance = pyramid_l1(rgb[:, pictures:].flatten(0, 1), images.repeat(len(rgb), 1, 1, 1))
        if masks is not None:
            flipped = masks.flip(-1).repeat(len(rgb), 1, 1, 1)
            weight = self.similarity.weights.mask
            distance = distance + weight * mask_distance(alpha[:, pictures:].flatten(0, 1), flipped)
        return total + (weights * distance.unflatten(0, weights.shape)).mean(1)

    def candidates(self, heads: int) -> Tensor:
        """Returns coordinates [heads, 1, D] of heads to begin with: the mean one, and others near it."""
        z = SEARCH_PSI * random.normal(0, "inversion/heads", range(heads), (self.space.axes.shape[0],))
        z[0] = 0
        return z.to(self.space.mean)[:, None]

    @torch.no_grad()
    def search(self, coordinates: Tensor, cells: Cameras, given: bool, count: int, progress: Progress) -> Fit:
        """Tries heads of coordinates [K, 1, D] under cameras and returns the best `count` trials.

        cells: [C] cameras, all of which every picture is held against; or, if they are given, [V], one for each.
        """
        size = min(SEARCH_PIXELS, self.G.resolution)
        goal, tried = self.target.channels(size), []
        for each in coordinates.split(1):
            shown = self.seen(self.scene(each), cells.reshape(1, -1), size)[0]  # [C, 3 or 4, s, s]
            tried.append(torch.stack([_distance(shown, picture) for picture in goal]))  # [V, C]
            progress(1)
        losses = torch.stack(tried)  # [K, V, C]
        if given:
            value, chosen = losses.diagonal(dim1=1, dim2=2).mean(1).topk(min(count, len(coordinates)), largest=False)
            places = torch.arange(len(goal)).expand(len(chosen), -1)
        else:
            chosen, places = best_starts(losses, count)
            value = losses[chosen[:, None], torch.arange(len(goal)), places].mean(1)
        return Fit(coordinates[chosen], Tracker.at(cells[places], self.G.geometry), value)

    def track(self, fit: Fit, steps: int) -> Fit:
        """Moves the cameras alone, for `steps` steps."""
        size = min(CAMERA_PIXELS, self.G.resolution)
        goal, tracker = self.target.channels(size), fit.tracker
        with torch.no_grad():
            scene = self.scene(fit.coordinates)
            for _ in range(steps):
                tracker = tracker.step(lambda cameras: self.seen(scene, cameras, size), goal)
        return Fit(fit.coordinates, tracker, fit.losses)

    def descend(
        self,
        fit: Fit,
        steps: int,
        rate: float,  # of Adam, in standard deviations a step
        prior: float,  # weight of the mean square of the coordinates
        leash: float,  # weight of the mean square distance of ws from their mean, where there are several
        moves_camera: bool,
        progress: Progress,
    ) -> Fit:
        """Moves latents by Adam, and in between the cameras; the rate grows at first and falls to 0 at the end."""
        coordinates = fit.coordinates.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([coordinates], lr=rate, betas=BETAS)
        losses, background = fit.losses, self.target.background
        for step in range(steps):
            if moves_camera and step % CAMERA_EVERY == 0:
                fit = self.track(Fit(coordinates.detach(), fit.tracker, fit.losses), 1)
            optimizer.param_groups[0]["lr"] = rate * ramp(step / steps)
            cameras = fit.tracker.cameras
            out = self.G.render(self.scene(coordinates), self.views(cameras), self.target.images.shape[-1], background)
            losses = self.loss(out.rgb, out.alpha, cameras)
            spread = (coordinates - coordinates.mean(1, keepdim=True)).square().mean((1, 2))
            total = losses + prior * coordinates.square().mean((1, 2)) + leash * spread
            (coordinates.grad,) = torch.autograd.grad(total.sum(), coordinates)
            optimizer.step()
            progress(1)
        return Fit(coordinates.detach(), fit.tracker, losses.detach())


def _distance(shown: Tensor, picture: Tensor) -> Tensor:
    """Returns how far channels [C, 3 or 4, s, s] are from a picture's [3 or 4, s, s]: [C]."""
    goal = picture.expand_as(shown)
    distance = pyramid_l1(shown[:, :3], goal[:, :3])
    return distance if len(picture) == 3 else distance + 0.1 * mask_distance(shown[:, 3:], goal[:, 3:])


def ramp(progress: float) -> float:
    """Returns the factor on a rate: up over the first 5 %, down over the last 25 % (StyleGAN2)."""
    down = min(1.0, (1 - progress) / 0.25)
    return (0.5 - 0.5 * math.cos(down * math.pi)) * min(1.0, progress / 0.05 + 0.05)
