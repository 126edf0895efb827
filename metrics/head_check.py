"""Computes `head_check<N>`, ours: do generated heads have two eyes and a mouth, and do these stay where they are?

A finder (metrics/landmarks.py) looks at N generated pictures from cameras of the data, and at as many reals:

    share = pictures that show what a head shows from that camera, in its place and no more: a mouth, and two eyes, of
            which the one that is turned away may be hidden beyond 40 degrees of yaw
    pose  = mean angle between the camera that rendered the picture and the one that it looks seen from

and at seven yaws of every fourth head. The rays through one landmark as it was found should meet in a point:

    drift = root of the mean squared distance of the rays from their point, over the height of a head

It judges heads as `dataset_tool.py synthesize` makes them, and refuses other data: it must find its features in
the reals first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras
from metrics.errors import MetricUnavailable
from metrics.feature_stats import FeatureRows
from metrics.landmarks import SIZE, Found, LandmarkFinder, load_finder
from metrics.results import MetricSpec, Outcome
from metrics.samples import (
    Sampling,
    data_cameras,
    each,
    fake_images,
    fake_items,
    frontal_cameras,
    latents,
    mapped,
    random_items,
    real_images,
)
from torch_utils import distributed
from training.images import quantize

LEAST_REALS = 100  # that are looked at, if there are as many
TRUSTED = 0.9  # share of the reals that must pass
TURNED = 4  # of so many heads one is turned
YAWS = 7  # from -1 to 1 radian
SURE = (0.4, 0.3, 0.3)  # scores from which an eye, a mouth and a chin count in their places,
FURTHER = 0.5  # and from which another one counts, wherever it is
FAR_EYE = 40.0  # degrees of yaw beyond which the eye that is turned away may be hidden
NEAR = 6 / SIZE  # of the picture's width: how far a feature may lie from its place in the mean head
HEAD_HEIGHT = 0.47  # world units from the chin to the crown of the mean head
# The mean head of dataset_tool.py synthesize, in world units: the eye at world -x, the other, the mouth, the chin.
PLACES = ((-0.065, 0.014, 0.171), (0.065, 0.014, 0.171), (0.0, -0.116, 0.169), (0.0, -0.213, 0.039))
EYES, MOUTH, CHIN = (0, 1), 2, 3  # of PLACES
KIND_OF_SLOT = (0, 0, 1, 2)  # of PLACES, indices into landmarks.KINDS


@dataclass(frozen=True)
class Verdict:
    """Says of B pictures what they show of the four slots of PLACES."""

    filled: Tensor  # bool [B, 4] whether a feature lies in its place
    places: Tensor  # [B, 4, 2] where, in units of the picture
    eyes: Tensor  # bool [B] those that the camera should see, in their places, and no other
    mouth: Tensor  # bool [B] likewise
    pose_deg: Tensor  # [B] angle between the camera and the one that the picture looks seen from

    def rows(self) -> Tensor:
        """Returns [B, 4]: all well, eyes well, mouth well, angle."""
        columns = (self.eyes & self.mouth, self.eyes, self.mouth, self.pose_deg)
        return torch.stack([column.float() for column in columns], dim=1)


def judge(found: Found, cameras: Cameras, centre: tuple[float, float, float]) -> Verdict:
    """Compares what was found in B pictures with what cameras [B] should see of a head about `centre`."""
    wanted, _ = cameras.project(torch.tensor(PLACES, device=cameras.device, dtype=cameras.dtype))  # [B, 4, 2]
    kinds = torch.tensor(KIND_OF_SLOT, device=cameras.device)
    sure = found.scores >= torch.tensor(SURE, device=cameras.device)[:, None]  # [B, 3, M]
    places = found.places[:, kinds]  # [B, 4, M, 2]
    away = (places - wanted[:, :, None]).norm(dim=-1).masked_fill(~sure[:, kinds], math.inf)
    # An eye belongs to the nearer of the two places.
    away[:, EYES] = away[:, EYES].masked_fill(away[:, EYES] > away[:, EYES[::-1]], math.inf)
    nearest, which = away.min(dim=2)  # [B, 4]
    filled = nearest < NEAR
    places = places.gather(2, which[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    used = F.one_hot(which, found.scores.shape[2]).bool() & filled[..., None]  # [B, 4, M]
    further = (found.scores >= FURTHER) & ~torch.stack([used[:, :2].any(1), used[:, MOUTH], used[:, CHIN]], dim=1)
    more = further.any(2)  # [B, 3]
    way = F.normalize(cameras.positions - cameras.positions.new_tensor(centre), dim=-1)
    yaw = torch.atan2(way[:, 0], way[:, 2]).rad2deg()
    hidden = torch.stack([yaw > FAR_EYE, yaw < -FAR_EYE], dim=1)  # the eye at -x is turned away where yaw is positive
    eyes = (filled[:, :2] | hidden).all(1) & ~more[:, 0]
    mouth = filled[:, MOUTH] & ~more[:, 1]
    cosine = (way * found.directions).sum(1).clamp(-1, 1)
    return Verdict(filled, places, eyes, mouth, cosine.acos().rad2deg())


def triangulate(places: Tensor, known: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Finds points from where V cameras see them, and how far the rays miss them.

    places: [B, V, P, 2] in units of the picture; known: bool [B, V, P]; cameras: [B, V]. Returns points [B, P, 3] and
    the root mean square distance of a point's rays from it along one axis [B, P]: the sum of squares over 2 V - 3, as
    each ray has two equations and a point three unknowns. NaN where fewer than three cameras see the point.
    """
    x, y = places.double().unbind(-1)
    k = cameras.intrinsics.double()[:, :, None]  # [B, V, 1, 3, 3]
    v = (y - k[..., 1, 2]) / k[..., 1, 1]
    u = (x - k[..., 0, 2] - k[..., 0, 1] * v) / k[..., 0, 0]
    pose = cameras.cam2world.double()
    rays = F.normalize(torch.stack([u, v, torch.ones_like(u)], dim=-1) @ pose[..., :3, :3].mT, dim=-1)  # [B, V, P, 3]
    across = torch.eye(3, dtype=torch.float64, device=rays.device) - rays[..., :, None] * rays[..., None, :]
    across = across * known[..., None, None]
    origins = pose[:, :, None, :3, 3:]  # [B, V, 1, 3, 1]
    count = known.sum(1)  # [B, P]
    matrix = across.sum(1) + torch.eye(3, dtype=torch.float64, device=rays.device) * (count < 3)[..., None, None]
    points = torch.linalg.solve(matrix, (across @ origins).sum(1))[..., 0]  # [B, P, 3]
    misses = (across @ (points[:, None, :, :, None] - origins)).square().sum((-1, -2)).sum(1)  # [B, P]
    error = (misses / (2 * count - 3).clamp_min(1)).sqrt()
    return points, error.masked_fill(count < 3, math.nan)


def turned_heads(sampling: Sampling, count: int) -> Iterator[tuple[range, Tensor]]:
    """Yields this rank's batches uint8 [B, 7, 3, R, R] of the first `count` heads, told the frontal camera."""
    G, colour = sampling.G, sampling.colour()
    at_once = max(1, sampling.batch_size // YAWS)
    batches = [range(i, min(i + at_once, count)) for i in range(0, count, at_once)]
    for indices in batches[distributed.rank() :: distributed.world_size()]:
        number, cameras = len(indices), _turntable(sampling, len(indices))
        with torch.no_grad():
            items = fake_items(sampling, indices, np.arange(len(sampling.dataset)))
            z, frontal = latents(sampling, indices), frontal_cameras(sampling, number)
            scene = G.synthesis(mapped(sampling, z, frontal, items))
            image = G.render(scene, cameras, background=colour.expand(number, YAWS, 3)).image
        yield indices, quantize(image)
        sampling.report_progress("turned heads", indices.stop, count)


def _turntable(sampling: Sampling, count: int) -> Cameras:
    """Returns cameras [count, 7] at equal steps of yaw."""
    cameras = sampling.dataset.geometry.orbit(torch.linspace(-1, 1, YAWS)).to(sampling.device)
    return cameras.reshape(1, YAWS).expand(count, YAWS)


def drift_rows(images: Tensor, cameras: Cameras, finder: LandmarkFinder, centre: tuple[float, float, float]) -> Tensor:
    """Returns [B, 4] of heads seen as images uint8 [B, V, 3, R, R] from cameras [B, V]: the error of each landmark.

    In heights of a head; NaN for what fewer than three of the views show.
    """
    number, views = images.shape[:2]
    verdict = judge(finder(images.flatten(0, 1)), cameras.reshape(-1), centre)
    shape = (number, views, len(PLACES))
    _, error = triangulate(verdict.places.view(*shape, 2), verdict.filled.view(shape), cameras)
    return (error / HEAD_HEIGHT).float()


def head_check(spec: MetricSpec, sampling: Sampling) -> Outcome:
    """Computes `head_check<N>`. Raises MetricUnavailable for data that the finder does not know."""
    dataset, finder = sampling.dataset, load_finder(sampling.device)
    if dataset.resolution < SIZE:
        raise MetricUnavailable(f"it needs pictures of at least {SIZE} px; these have {dataset.resolution}")
    centre = dataset.geometry.centre
    real_items = random_items(sampling, max(spec.count, LEAST_REALS))
    items = fake_items(sampling, range(spec.count), np.arange(len(dataset)))

    def looked_at(batches: Iterator[tuple[range, Tensor]], items: np.ndarray) -> dict[str, float]:
        rows = FeatureRows(len(items), 4)

        def look(indices: range, images: Tensor) -> None:
            cameras = data_cameras(sampling, items[indices.start : indices.stop])
            rows.add(indices, judge(finder(images), cameras, centre).rows())

        each(batches, look)
        return distributed.on_main(lambda: _summary(rows.gather()))

    real = looked_at(real_images(sampling, real_items), real_items)
    if real["share"] < TRUSTED:
        raise MetricUnavailable(
            f"it finds eyes and a mouth in {real['share']:.0%} of the reals: it knows heads of dataset_tool.py "
            "synthesize alone"
        )
    fake = looked_at(fake_images(sampling, spec.count), items)
    turned = turned_count(spec.count)
    drift = FeatureRows(turned, len(PLACES))

    def turn(indices: range, images: Tensor) -> None:
        drift.add(indices, drift_rows(images, _turntable(sampling, len(indices)), finder, centre))

    each(turned_heads(sampling, turned), turn)
    values = {**fake, **distributed.on_main(lambda: _drift(drift.gather()))}
    values |= {f"real_{name}": value for name, value in real.items()}
    protocol = {
        "num_real": len(real_items),
        "num_fake": spec.count,
        "turned_heads": turned,
        "finder_key": finder.key,
    }
    return Outcome(fake["share"], {spec.name: fake["share"], **values}, protocol)


def turned_count(count: int) -> int:
    """Returns how many of `count` heads are turned."""
    return max(1, count // TURNED)


def image_counts(count: int, size: int) -> tuple[int, int]:
    """Returns how many images `head_check<count>` generates and at how many reals of `size` it looks."""
    return count + YAWS * turned_count(count), min(max(count, LEAST_REALS), size)


def _summary(rows: Tensor | None) -> dict[str, float]:
    assert rows is not None  # on the first rank
    return dict(zip(("share", "eyes", "mouth", "pose_deg"), rows.double().mean(0).tolist(), strict=True))


def _drift(rows: Tensor | None) -> dict[str, float]:
    """Returns the share of landmarks that could be followed, and the root mean square over them, if there are any."""
    assert rows is not None
    known = rows[rows.isfinite()].double()
    drift = {"drift": float(known.square().mean().sqrt())} if len(known) else {}
    return {**drift, "followed": len(known) / rows.numel()}
