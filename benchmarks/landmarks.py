"""Trains the finder of landmarks behind `head_check<N>` on ray-cast heads, sound and faulty ones, and on expressions.

    python -m benchmarks.landmarks                     # writes metrics/landmarks.npz
    python -m benchmarks.head_check                    # then validates the metric

One thread of a CPU takes some minutes; the pictures of an earlier call are taken from --cache.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.landmarks import CELL, KINDS, SIZE, WEIGHTS, LandmarkNet, save_weights
from training.data.synthetic.expression_features import render_expression_truths
from training.data.synthetic.features import FAULTS, Truths, joined, render_truths
from training.data.synthetic.synthesize import sample_cameras
from training.data.synthetic.traits import CameraSpread

SEED = 4242  # of the heads; data sets are made with small seeds
SHARES = (0.50, 0.08, 0.12, 0.06, 0.06, 0.06, 0.06, 0.06)  # of FAULTS
SPREAD = CameraSpread(yaw_std=0.6, pitch_std=0.2, roll_std=0.03)  # a little more than that of the data
BATCH = 64
RATE = 2e-3
AREAS = (1.5, 4.0)  # seen pixels below which a feature is not there, and from which it is; between, nothing is asked
BLURS = (0.9, 2.0)  # px, the same the other way round
NOISES = (0.08, 0.35)  # standard deviation in 0..1, likewise
GRID = SIZE // CELL
WEIGHT_OF_KIND = (1.0, 2.0, 1.0)  # mouths are thinner than eyes, and some lie in beards


def truths(count: int, cache: Path | None) -> Truths:
    """Returns `count` heads with known truth, from the cache if it holds them."""
    path = cache / f"landmarks-{SEED}-{count}.npz" if cache else None
    if path and path.is_file():
        with np.load(path) as file:
            return Truths(**dict(file))
    draws = np.random.default_rng(SEED)
    faults = [FAULTS[i] for i in draws.choice(len(FAULTS), count, p=SHARES)]
    labels = sample_cameras(SEED, range(count), SPREAD).labels.double().numpy()
    found = render_truths(SEED, range(count), faults, labels, SIZE)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **vars(found))
    return found


def expressions(indices: range) -> Truths:
    """Returns heads with expressions with known truth, as pictures `indices` of all; none has a fault."""
    return render_expression_truths(SEED, indices, sample_cameras(SEED, indices, SPREAD).labels.numpy(), SIZE)


def directions(count: int) -> Tensor:
    """Returns unit vectors [N, 3] from the head to the cameras of `truths`."""
    return F.normalize(sample_cameras(SEED, range(count), SPREAD).positions, dim=-1)


# ---------------------------------------------------------------- a batch


@dataclasses.dataclass
class Batch:
    """Holds B pictures and what is in them; K features each."""

    images: Tensor  # [B, 3, 64, 64] in 0..1
    kinds: Tensor  # [B, K], -1 for none
    places: Tensor  # [B, K, 2] in units of the picture
    sure: Tensor  # [B, K] 1: it is there, 0: it is not, 0.5: nothing is asked
    directions: Tensor  # [B, 3]
    shown: Tensor  # [B] whether the picture shows a head at all


def make_batch(data: Truths, ways: Tensor, items: np.ndarray, rng: torch.Generator) -> Batch:
    """Composites heads over one colour each, mirrors half of them and spoils some."""
    count = len(items)
    mask = torch.from_numpy(data.masks[items]) / 255
    colour = torch.rand(count, 3, 1, 1, generator=rng)
    colour[torch.rand(count, generator=rng) < 0.5] = 1.0
    images = mask * (torch.from_numpy(data.images[items]) / 255) + (1 - mask) * colour
    areas = torch.from_numpy(data.areas[items])
    sure = torch.full_like(areas, 0.5).masked_fill_(areas < AREAS[0], 0.0).masked_fill_(areas >= AREAS[1], 1.0)
    places, way = torch.from_numpy(data.places[items]).clone(), ways[items].clone()
    flip = torch.rand(count, generator=rng) < 0.5
    images[flip] = images[flip].flip(-1)
    places[flip, :, 0] = 1 - places[flip, :, 0]
    way[flip, 0] *= -1
    batch = Batch(images, torch.from_numpy(data.kinds[items]).long(), places, sure, way, torch.ones(count))
    _smear(batch, rng)
    _speckle(batch, rng)
    _spoil(batch, rng)
    return batch


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Blurs pictures [B, C, H, W] by a Gaussian of `sigma` px."""
    if sigma < 0.05:
        return images
    reach = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(images.shape[1], 1, 1, -1)
    for kernel, padding in ((taps, (reach, reach, 0, 0)), (taps.mT, (0, 0, reach, reach))):
        images = F.conv2d(F.pad(images, padding, mode="replicate"), kernel, groups=images.shape[1])
    return images


def _discs(places: Tensor, radius: Tensor) -> Tensor:
    """Returns soft discs [B, K, 64, 64] of a radius [B, K] in px about places [B, K, 2]."""
    at = (torch.arange(SIZE) + 0.5) / SIZE
    x, y = (at - places[..., :1])[:, :, None], (at - places[..., 1:])[..., None]  # [B, K, 1, 64], [B, K, 64, 1]
    return ((radius[..., None, None] - SIZE * (x.square() + y.square()).sqrt()) + 0.5).clamp(0, 1)


def _smear(batch: Batch, rng: torch.Generator) -> None:
    """Smears some eyes and mouths of the third quarter of a batch until nothing of them is left."""
    rows = slice(BATCH // 2, 3 * BATCH // 4)
    kinds, places, sure = batch.kinds[rows], batch.places[rows], batch.sure[rows]
    small = (kinds >= 0) & (kinds < KINDS.index("chin"))
    chosen = (torch.rand(sure.shape, generator=rng) < 0.4) & small
    radius = 4.5 + 2.0 * (kinds == KINDS.index("mouth"))
    discs = _discs(places, radius) * chosen[..., None, None]
    cover = discs.amax(1, keepdim=True)
    batch.images[rows] = cover * blurred(batch.images[rows], 3.5) + (1 - cover) * batch.images[rows]
    cells = (places * SIZE).long().clamp(0, SIZE - 1)
    covered = cover.flatten(1).gather(1, cells[..., 1] * SIZE + cells[..., 0]) > 0.5
    batch.sure[rows] = torch.where(chosen, 0.0, torch.where(covered & small, 0.5, sure))


def _speckle(batch: Batch, rng: torch.Generator) -> None:
    """Draws spots of one or two pixels in any colour, as splats leave them, on the first quarter of a batch."""
    count, spots = BATCH // 4, 24
    places = 0.2 + 0.6 * torch.rand(count, spots, 2, generator=rng)
    radius = 0.2 + 1.2 * torch.rand(count, spots, generator=rng)
    strength = torch.rand(count, spots, generator=rng)
    strength *= torch.rand(count, spots, generator=rng) < torch.rand(count, 1, generator=rng)
    cover = _discs(places, radius) * strength[..., None, None]  # [B / 4, S, 64, 64]
    colours = torch.rand(count, spots, 3, generator=rng)
    top, which = cover.max(1)
    colour = colours.gather(1, which.flatten(1)[..., None].expand(-1, -1, 3)).mT.unflatten(2, (SIZE, SIZE))
    batch.images[:count] = top[:, None] * colour + (1 - top[:, None]) * batch.images[:count]


def _spoil(batch: Batch, rng: torch.Generator) -> None:
    """Blurs, adds noise, changes contrast; what goes too far leaves nothing to be found."""
    count, groups = len(batch.images), 8
    sigmas = torch.rand(groups, generator=rng) * torch.tensor([BLURS[0]] * 6 + [1.8, 4.0])[:groups]
    parts = [blurred(part, float(s)) for part, s in zip(batch.images.chunk(groups), sigmas, strict=True)]
    batch.images = torch.cat(parts)
    blur = sigmas.repeat_interleave(-(-count // groups))[:count]
    noise = torch.rand(count, generator=rng) * 0.05
    loud = torch.rand(count, generator=rng) < 0.08
    noise[loud] = 0.8 * torch.rand(count, generator=rng)[loud]
    grain = torch.randn(batch.images.shape, generator=rng)
    batch.images = batch.images + noise[:, None, None, None] * grain
    nothing = torch.rand(count, generator=rng) < 0.03
    coarse = F.interpolate(torch.rand(count, 3, 20, 20, generator=rng), (SIZE, SIZE), mode="bilinear")
    batch.images = torch.where(nothing[:, None, None, None], coarse, batch.images)
    gain = 1 + 0.2 * (torch.rand(count, 3, 1, 1, generator=rng) - 0.5)
    batch.images = (batch.images * gain).clamp(0, 1)
    gone = (blur >= BLURS[1]) | (noise >= NOISES[1]) | nothing
    doubtful = ((blur > BLURS[0]) | (noise > NOISES[0])) & ~gone
    batch.sure = torch.where(gone[:, None], 0.0, batch.sure)
    batch.sure = torch.where(doubtful[:, None] & (batch.sure == 1), 0.5, batch.sure)
    batch.shown = (~(nothing | (noise >= NOISES[1]))).float()


# ---------------------------------------------------------------- losses


def heat_maps(batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns wanted maps [B, 3, 32, 32] in 0..1 and weights of the same shape, 0 where nothing is asked."""
    at, cells = torch.arange(GRID), (batch.places * GRID).floor()  # 1 in the cell that holds it, wherever it lies there
    dx, dy = (at - cells[..., :1])[:, :, None], (at - cells[..., 1:])[..., None]
    squares = dx.square() + dy.square()  # [B, K, 32, 32] in cells
    bumps = torch.exp(-squares / (2 * 0.8**2))
    kinds = F.one_hot(batch.kinds.clamp_min(0), len(KINDS)) * (batch.kinds >= 0)[..., None]  # [B, K, 3]
    there, doubtful = (batch.sure == 1)[..., None] * kinds, (batch.sure == 0.5)[..., None] * kinds
    wanted = (bumps[:, :, None] * there[..., None, None]).amax(1)
    ignored = ((squares < 2.5**2)[:, :, None] * doubtful[..., None, None]).amax(1)
    return wanted, (1.0 - ignored * (wanted < 0.5)) * torch.tensor(WEIGHT_OF_KIND)[:, None, None]


def losses(network: LandmarkNet, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the losses of maps, offsets and directions."""
    images = (2 * batch.images - 1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):  # half the time of float32 where the processor multiplies it
        logits, offsets, found = (value.float() for value in network(images))
    wanted, weights = heat_maps(batch)
    # Cross-entropy with soft targets, weighted down where the answer is right already (focal loss, Lin et al. 2017).
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    heat = (weights * (wanted - logits.sigmoid()).abs().square().clamp_min(1e-3) * entropy).sum() / len(images)
    cells = (batch.places * GRID).floor().clamp(0, GRID - 1)
    asked = (batch.sure == 1) & (batch.kinds >= 0)
    flat = (cells[..., 1] * GRID + cells[..., 0]).long()  # [B, K]
    rows = torch.arange(len(images))[:, None].expand_as(flat)[asked]
    got = offsets.flatten(3)[rows, batch.kinds[asked], :, flat[asked]]  # [A, 2]
    aim = (batch.places * GRID - cells - 0.5)[asked]
    shift = (got - aim).abs().sum(1).mean()
    cosine = (found * batch.directions).sum(1)
    turn = (batch.shown * (2 - 2 * cosine)).sum() / batch.shown.sum()
    return heat, shift, turn


def train(data: Truths, steps: int) -> LandmarkNet:
    """Trains on all heads of `data` for so many steps; prints the losses now and then."""
    torch.manual_seed(0)
    network, rng = LandmarkNet().to(memory_format=torch.channels_last), torch.Generator().manual_seed(1)  # type: ignore
    nn.init.constant_(network.maps[2].bias[: len(KINDS)], -4.0)  # most cells hold nothing
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    ways, count, order = directions(len(data.kinds)), len(data.kinds), np.random.default_rng(2)
    started, sums = time.perf_counter(), torch.zeros(3)
    for step in range(1, steps + 1):
        batch = make_batch(data, ways, order.integers(0, count, BATCH), rng)
        heat, shift, turn = losses(network, batch)
        optimizer.zero_grad()
        (heat + 0.3 * shift + 5.0 * turn).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        sums += torch.stack([heat, shift, turn]).detach()
        if step % 100 == 0:
            heat, shift, turn = sums / 100
            print(f"{step}: {heat:.3f} {shift:.3f} {turn:.4f} {time.perf_counter() - started:.0f} s", flush=True)
            sums.zero_()
    return network.eval()


@click.command()
@click.option("--out", default=str(WEIGHTS), show_default=True, type=click.Path(path_type=Path))
@click.option("--heads", default=8000, show_default=True, help="Ray-cast for training.")
@click.option("--others", default=4000, show_default=True, help="Heads with expressions for training.")
@click.option("--steps", default=1500, show_default=True, help=f"Of {BATCH} pictures.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps the ray-cast pictures.")
def main(out: Path, heads: int, others: int, steps: int, cache: Path | None) -> None:
    """Train the finder and write its weights."""
    started = time.perf_counter()
    data = joined(truths(heads, cache), expressions(range(heads, heads + others)))
    print(f"{heads} + {others} heads after {time.perf_counter() - started:.0f} s", flush=True)
    save_weights(train(data, steps), out)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
