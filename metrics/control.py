"""Measures control: whether a named block of a latent changes what it is called, and nothing else.

N subjects are varied 10 times in each block, and in the camera, while all else stays, and a regressor reads all blocks
off every picture. With s_jk the mean standard deviation of what is read of block j while k varies, in units of the same
in the data's pictures, the disentanglement score of block k is the product of s_kk / s_jk over all others j (Deng et
al. 2020, DiscoFaceGAN, section 4.2, and CGOF, for whose three factors it is the same).

What a latent asks for is known: so the correlation of asked and found is measured too, and how far the identity that is
read moves with each factor, as a share of what it varies between subjects. Both are measured once more from cameras
that stand YAWS to the side, and surfaces are compared in space (`metrics.control_surface`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from gaussian import Cameras
from metrics.control_surface import Shapes, add_surfaces
from metrics.errors import MetricUnavailable
from metrics.results import MetricSpec, Outcome
from metrics.samples import Sampling, data_cameras, each, latents, picture, random_items, real_images
from torch_utils import distributed, random

VARIATIONS = 10  # of each factor, per subject
POSE = "pose"  # the factor that is no block
SHOWN = "expression"  # of whose numbers, one by one, the correlation is reported
HELD = "identity"  # what is to stay while the expression changes
YAWS = (-0.4, 0.4)  # radians from which the expression is looked at once more
TINY = 1e-8

Shot = tuple[str, float | None]  # a factor that varies, and the yaw of the camera in radians; None: a data item's
Read = Callable[[Tensor], Mapping[str, Tensor]]  # images [N, 3, R, R] in -1..1 -> whitened numbers of each block


class Moments:
    """Adds up what one block's readings need, over subjects and ranks; every number in float64."""

    def __init__(self, size: int, factors: int, held: int = 0):
        self.held = held  # the factor under whose variations the mean readings of subjects are taken: not its own
        self.count = torch.zeros(1, dtype=torch.float64)
        self.spread = torch.zeros(factors, dtype=torch.float64)  # of readings within a subject, by the factor varied
        self.subjects = torch.zeros(2, size, dtype=torch.float64)  # of a subject's mean reading: sum, sum of squares
        self.pairs = torch.zeros(5, size, dtype=torch.float64)  # of asked and found: sums, of squares, of the product

    def add(self, factor: int, read: Tensor) -> None:
        """Adds the readings [VARIATIONS, n] of one subject while a factor varied."""
        self.spread[factor] += read.std(0, correction=0).mean()
        if factor == self.held:
            self.count += 1
            mean = read.mean(0)
            self.subjects += torch.stack([mean, mean.square()])

    def compare(self, asked: Tensor, found: Tensor) -> None:
        """Adds what was asked and found [VARIATIONS, n]."""
        products = (asked, found, asked.square(), found.square(), asked * found)
        self.pairs += torch.stack([values.sum(0) for values in products])

    def gather(self) -> None:
        """Adds up over ranks."""
        for tensor in (self.count, self.spread, self.subjects, self.pairs):
            distributed.add_over_ranks_(tensor)

    def within(self) -> Tensor:
        """Returns the mean spread of readings within a subject, by factor."""
        return self.spread / self.count

    def between(self) -> float:
        """Returns the mean spread of the subjects' readings."""
        mean, square = self.subjects / self.count
        return float((square - mean.square()).clamp(min=0).sqrt().mean())

    def correlations(self) -> Tensor:
        """Returns the correlation of asked and found, [n]."""
        a, b, aa, bb, ab = self.pairs / (self.count * VARIATIONS)
        return (ab - a * b) / ((aa - a * a) * (bb - b * b)).clamp(min=TINY**2).sqrt()


def scores(spreads: Mapping[str, Tensor], data: Mapping[str, float]) -> dict[str, float]:
    """Returns the score of every block: spreads, by block, while each of the blocks varied; data: by block."""
    names = list(spreads)
    relative = torch.stack([spreads[name][: len(names)] / data[name] for name in names])  # [block read, block varied]
    result = {}
    for k, name in enumerate(names):
        others = [relative[k, k] / (relative[j, k] + TINY) for j in range(len(names)) if j != k]
        result[name] = float(torch.stack(others).prod())
    return result


def varied(sampling: Sampling, subject: int, factor: str) -> tuple[Tensor, Tensor]:
    """Returns latents [VARIATIONS, z_dim], and data items whose cameras show them, of a subject and a factor."""
    blocks, index = sampling.G.blocks, range(subject, subject + 1)
    z = latents(sampling, index).expand(VARIATIONS, -1)
    total = len(sampling.dataset)
    if factor == POSE:
        return z, random.integers(sampling.seed, "metric/control/pose", index, total, (VARIATIONS,))[0]
    part = blocks[factor]
    drawn = random.normal(sampling.seed, f"metric/control/{factor}", index, (VARIATIONS, part.stop - part.start))
    item = random.integers(sampling.seed, "metric/control/label", index, total)
    return blocks.put(z, factor, drawn[0].to(z)), item.expand(VARIATIONS)


def seen_from(sampling: Sampling, shots: list[Shot], items: Tensor) -> Cameras:
    """Returns the cameras of the data items [shots * VARIATIONS], turned where a shot says so."""
    cameras = data_cameras(sampling, items.cpu())
    labels = cameras.labels.unflatten(0, (len(shots), VARIATIONS)).clone()
    for i, (_, yaw) in enumerate(shots):
        if yaw is not None:
            labels[i] = sampling.dataset.geometry.orbit(yaw).to(sampling.device).labels
    return Cameras.from_labels(labels.flatten(0, 1))


def readings(sampling: Sampling, shots: list[Shot], count: int) -> Iterator[tuple[range, Tensor]]:
    """Yields this rank's subjects, each with the pictures [shots, VARIATIONS, 3, R, R] of all its variations."""
    mine = range(count)[distributed.rank() :: distributed.world_size()]
    for subject in mine:
        pairs = [varied(sampling, subject, factor) for factor, _ in shots]
        z, items = (torch.cat(column) for column in zip(*pairs, strict=True))
        cameras = seen_from(sampling, shots, items)
        parts = [slice(i, i + sampling.batch_size) for i in range(0, len(z), sampling.batch_size)]
        check = subject == mine[0]
        images = torch.cat([picture(sampling, z[p], cameras[p], cameras[p], items[p], check) for p in parts])
        yield range(subject, subject + 1), images.unflatten(0, (len(shots), VARIATIONS))
        sampling.report_progress("fakes", subject + 1, count)


def data_spreads(sampling: Sampling, read: Read, names: list[str], count: int) -> dict[str, float]:
    """Returns the mean standard deviation of the readings of real pictures, by block."""
    sums: dict[str, Tensor] = {}

    def consume(indices: range, images: Tensor) -> None:
        for name, values in read(images.float() / 127.5 - 1).items():
            wide = values.double().cpu()
            row = torch.stack([torch.full_like(wide[0], len(wide)), wide.sum(0), wide.square().sum(0)])
            sums[name] = row if name not in sums else sums[name] + row

    each(real_images(sampling, random_items(sampling, count)), consume)
    found = {}
    for name in names:
        total = sum(part for part in distributed.gather_objects(sums.get(name)) if part is not None)
        assert isinstance(total, Tensor)
        mean, square = total[1] / total[0], total[2] / total[0]
        found[name] = float((square - mean.square()).clamp(min=0).sqrt().mean())
    return found


def control(spec: MetricSpec, sampling: Sampling) -> Outcome:
    """Computes `control<N>` of N subjects. Raises MetricUnavailable for a generator whose latents have no blocks."""
    G = sampling.G
    try:
        read, model = G.reader()
    except ValueError as error:
        raise MetricUnavailable(str(error)) from None
    sizes = {name: part.stop - part.start for name, part in G.blocks.slices.items()}
    with torch.no_grad():
        probe = read(torch.zeros(1, 3, G.resolution, G.resolution, device=sampling.device))
    names = [name for name in sizes if name in probe]
    factors = [*names, POSE]
    moments = {name: Moments(sizes[name], len(factors), held=int(i == 0)) for i, name in enumerate(names)}
    yaws, shapes = (YAWS, Shapes()) if HELD in names and SHOWN in names else ((), None)
    turned = {yaw: {name: Moments(sizes[name], 1) for name in (HELD, SHOWN)} for yaw in yaws}
    shots: list[Shot] = [(factor, None) for factor in factors] + [(SHOWN, yaw) for yaw in turned]

    def consume(indices: range, images: Tensor) -> None:
        found = read(images.flatten(0, 1).float() / 127.5 - 1)
        found = {name: found[name].double().cpu().unflatten(0, (len(shots), VARIATIONS)) for name in names}
        z = {name: varied(sampling, indices.start, name)[0] for name in names}
        for name in names:
            for factor in range(len(factors)):
                moments[name].add(factor, found[name][factor])
            moments[name].compare(G.blocks.take(z[name], name).double().cpu(), found[name][names.index(name)])
        for i, part in enumerate(turned.values()):
            for name in (HELD, SHOWN):
                part[name].add(0, found[name][len(factors) + i])
            part[SHOWN].compare(G.blocks.take(z[SHOWN], SHOWN).double().cpu(), found[SHOWN][len(factors) + i])
        if shapes is not None:
            add_surfaces(shapes, sampling, {name: z[name] for name in (HELD, SHOWN)})

    with torch.no_grad():
        each(readings(sampling, shots, spec.count), consume)
        data = data_spreads(sampling, read, names, min(len(sampling.dataset), VARIATIONS * spec.count))
    for part in (moments, *turned.values()):
        for one in part.values():
            one.gather()
    values = _blocks(moments, factors, data) | _turned(turned) | ({} if shapes is None else shapes.values())
    return _outcome(spec, values, [f"score_{name}" for name in names], len(shots), model)


def _blocks(moments: Mapping[str, Moments], factors: list[str], data: Mapping[str, float]) -> dict[str, float]:
    within = {name: part.within() for name, part in moments.items()}
    values = {f"score_{name}": value for name, value in scores(within, data).items()}
    for name, part in moments.items():
        correlations = part.correlations()
        values[f"correlation_{name}"] = float(correlations.mean())
        if name == SHOWN:
            values |= {f"correlation_{name}_{i}": float(v) for i, v in enumerate(correlations)}
    for name in (name for name in (HELD, SHOWN) if name in moments):
        shares = within[name] / max(moments[name].between(), TINY)
        values |= {f"{name}_moved_by_{factor}": float(v) for factor, v in zip(factors, shares, strict=True)}
    return values


def _turned(turned: Mapping[float, Mapping[str, Moments]]) -> dict[str, float]:
    values = {}
    for yaw, part in turned.items():
        share = float(part[HELD].within()) / max(part[HELD].between(), TINY)
        values[f"correlation_{SHOWN}_at_yaw_{yaw:+.1f}"] = float(part[SHOWN].correlations().mean())
        values[f"{HELD}_moved_by_{SHOWN}_at_yaw_{yaw:+.1f}"] = share
    return values


def _outcome(spec: MetricSpec, values: dict[str, float], scored: list[str], shots: int, model: str) -> Outcome:
    if not np.isfinite(list(values.values())).all():
        raise MetricUnavailable("what is read of the pictures is not finite")
    value = math.exp(sum(math.log(max(values[name], TINY)) for name in scored) / len(scored))
    protocol = {
        "num_fake": spec.count * VARIATIONS * shots,
        "variations": VARIATIONS,
        "morphable": model,
        "cameras": "of a random data item for each subject",
    }
    return Outcome(value, {spec.name: value, **values}, protocol)
