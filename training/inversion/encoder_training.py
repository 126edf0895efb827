"""Trains an encoder on heads of the network itself, and measures it on others of them.

Pictures of real heads are not quite like those of a network. What an encoder must not rely on is changed at random in
training: colours, brightness, noise, and where in the picture the head stands. Labelled pictures, such as the network
was trained on, teach it the cameras of real heads beside those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, Geometry
from torch_utils import random
from training.dataset import ImageDataset
from training.families.base import Generator
from training.images import composite, quantize
from training.inversion.encoder import ANGLES, PITCH_SCALE, Encoder, EncoderConfig
from training.inversion.latents import LatentSpace
from training.networks.reading import resized
from training.visualization.directions import network_key
from training.visualization.latents import frontal_ws
from training.visualization.video import checkpoint_info

MOST_PIXELS = 64
HELD_OUT, CHECKED = 2**20, 200  # the first head that is held out, and how many of them there are
MOST_PICTURES = 12_000  # labelled ones that are learnt from
LEAST_PICTURES = 2 * CHECKED  # of a labelled set, CHECKED of which are held out
AT_ONCE, READ_AT_ONCE = 8, 256  # heads; pictures
YAW_REACH = 1.2  # of the yaws that the network learnt from
RATE, WARM_UP = 1e-3, 50  # of Adam; steps in which it grows
LATENT = 0.5  # weight of the latent's error beside that of the angles
# Largest or standard deviations of what is changed in training.
ROLL, ZOOM, SHIFT = 0.05, 0.03, 0.03  # radians, logarithm, half pictures
TINTED, LIT, NOISY = 0.1, 0.03, 0.03  # logarithms of the channels' factors; of the whole picture, of each pixel

Background = tuple[float, float, float]  # RGB in 0..1
Progress = Callable[[str, int], object]  # is told what was done, and how much of it


@dataclass(frozen=True)
class Samples:
    """Holds N pictures of a network's heads, and what is known of them."""

    images: Tensor  # uint8 [N, 3, R, R]
    angles: Tensor  # [N, 2] yaw and pitch in radians
    coordinates: Tensor  # [N, D]; D is 0 for labelled pictures, whose latents nobody knows

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        return Samples(self.images[rows], self.angles[rows], self.coordinates[rows])


def encoder_config(G: Generator, space: LatentSpace, background: Background, steps: int) -> EncoderConfig:
    """Returns the recipe of an encoder of a generator."""
    key, limits, pixels = network_key(G), checkpoint_info(G).yaw_limits, min(MOST_PIXELS, G.resolution)
    return EncoderConfig(key, len(space.axes), limits, background, pixels, steps=steps)


@torch.no_grad()
def draw_samples(
    G: Generator, space: LatentSpace, config: EncoderConfig, indices: range, progress: Progress
) -> Samples:
    """Renders heads of the seed, each from `config.views` cameras; head k is a function of k alone."""
    low, high = config.yaw_limits
    behind, parts = torch.tensor(config.background, device=G.device), []
    for start in range(indices.start, indices.stop, AT_ONCE):
        some = range(start, min(start + AT_ONCE, indices.stop))
        ws = frontal_ws(G, random.normal(config.seed, "encoder/z", some, (G.z_dim,)), psi=1.0)
        u = 2 * random.uniform(config.seed, "encoder/angles", some, (config.views, ANGLES)) - 1
        yaw, pitch = (low + high) / 2 + YAW_REACH * (high - low) / 2 * u[..., 0], PITCH_SCALE * u[..., 1]
        cameras = G.geometry.orbit(yaw.flatten(), pitch.flatten()).to(device=G.device, dtype=torch.float32)
        shown = G.render(G.synthesis(ws), cameras.reshape(len(some), config.views), config.resolution, behind)
        parts.append((
            (255 * shown.rgb.clamp(0, 1)).round().byte().flatten(0, 1).cpu(),
            torch.stack([yaw, pitch], -1).flatten(0, 1),
            space.coordinates(ws[:, 0].float()).repeat_interleave(config.views, 0).cpu(),
        ))  # fmt: skip
        progress("heads", len(some))
    return Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))


def read_pictures(data: ImageDataset, config: EncoderConfig, geometry: Geometry) -> Samples:
    """Reads labelled pictures as a network of `geometry` saw them, up to 12,000 spread over the set.

    The last 200 are there to be held out. Raises ValueError for a set of fewer than 400.
    """
    if len(data) < LEAST_PICTURES:
        raise ValueError(f"--data: {data.name} has {len(data)} pictures; an encoder needs at least {LEAST_PICTURES}")
    rows = np.linspace(0, len(data) - 1, min(len(data), MOST_PICTURES + CHECKED)).round().astype(np.int64)
    behind, images = torch.tensor(config.background), []
    for some in np.array_split(rows, -(-len(rows) // READ_AT_ONCE)):
        batch = data.load(some)
        shown = composite(batch.images, batch.masks, behind.expand(len(some), 3))
        images.append(quantize(resized(shown, config.resolution)))
    labels = torch.from_numpy(data.labels[rows])
    angles = torch.stack(Cameras.from_labels(labels.double()).yaw_pitch(geometry), -1).float()
    return Samples(torch.cat(images), angles, torch.empty(len(rows), 0))


def changed(images: Tensor, config: EncoderConfig, step: int) -> Tensor:
    """Returns images [N, 3, R, R] in 0..1 with what does not matter changed at random, a function of the step."""
    some, device = range(step * len(images), (step + 1) * len(images)), images.device
    n = random.normal(config.seed, "encoder/changes", some, (8,)).to(device)
    strength = random.uniform(config.seed, "encoder/noise", some, (1, 1, 1)).to(device)
    keys = random.integers(config.seed, "encoder/keys", some, 2**31).to(device)
    behind = images.new_tensor(config.background)[:, None, None]
    shown = behind + moved(images - behind, ROLL * n[:, 0], (ZOOM * n[:, 1]).exp(), SHIFT * n[:, 2:4])
    tint, light = (TINTED * n[:, 4:7, None, None]).exp(), LIT * n[:, 7:, None, None]
    return (tint * shown + light + NOISY * strength * random.hashed_normal(keys, images.shape[1:])).clamp(0, 1)


def moved(images: Tensor, roll: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Returns images turned by roll [N] radians, scaled by 1 / zoom [N] and shifted [N, 2]; what is new is 0."""
    cos, sin = zoom * roll.cos(), zoom * roll.sin()
    rows = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
    grid = F.affine_grid(torch.cat([rows, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train_encoder(
    G: Generator, space: LatentSpace, config: EncoderConfig, progress: Progress, pictures: Samples | None = None
) -> Encoder:
    """Trains an encoder by Adam on squared errors: of angles in units of their range, of w over its variance.

    pictures: labelled ones, of which as many are shown beside the network's heads, for their angles.
    """
    samples = draw_samples(G, space, config, range(config.heads), progress)
    sources = [samples] if pictures is None else [samples, pictures[:-CHECKED]]
    orders = [random.EpochOrder(config.seed, f"encoder/order{i or ''}", len(s.angles)) for i, s in enumerate(sources)]
    torch.manual_seed(config.seed)
    encoder = Encoder(config).to(G.device)
    weights = space.axes.square().sum(1) / space.axes.square().sum()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=RATE, betas=(0.9, 0.99))
    for step in range(config.steps):
        some = range(step * config.batch, (step + 1) * config.batch)
        batches = [s[torch.from_numpy(order(some))] for s, order in zip(sources, orders, strict=True)]
        warm = min(1.0, (step + 1) / WARM_UP)
        optimizer.param_groups[0]["lr"] = RATE * warm * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        images = torch.cat([batch.images for batch in batches]).to(G.device) / 255
        angles, coordinates = encoder(changed(images, config, step))
        truth = torch.cat([batch.angles for batch in batches]).to(angles)
        off = (coordinates[: len(some)] - batches[0].coordinates.to(coordinates)).square()
        loss = _angle_error(angles, truth, config).mean() + LATENT * (off * weights).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress("steps", 1)
    encoder.eval().requires_grad_(False)
    held = None if pictures is None else pictures[-CHECKED:]
    encoder.errors = measured_errors(encoder, G, space, held)
    return encoder


def _angle_error(angles: Tensor, truth: Tensor, config: EncoderConfig) -> Tensor:
    low, high = config.yaw_limits
    return ((angles - truth) / angles.new_tensor([(high - low) / 2, PITCH_SCALE])).square().mean(1)


@torch.no_grad()
def measured_errors(
    encoder: Encoder, G: Generator, space: LatentSpace, pictures: Samples | None = None
) -> dict[str, float]:
    """Returns what an encoder is off on held-out heads, changed as in training; see `Encoder.errors`.

    Angles are those of held-out labelled pictures, as they are, where there are any.
    """
    config = encoder.config
    samples = draw_samples(G, space, config, range(HELD_OUT, HELD_OUT + CHECKED), lambda *_: None)
    angles, coordinates = encoder(changed(samples.images.to(G.device) / 255, config, HELD_OUT))
    off = angles.cpu() - samples.angles
    if pictures is not None:
        off = encoder.read(pictures.images.to(G.device) / 255)[0].cpu() - pictures.angles
    yaw, pitch = off.square().mean(0).sqrt().tolist()
    weights = space.axes.square().sum(1)
    truth = samples.coordinates.to(coordinates)
    share = 1 - ((coordinates - truth).square() * weights).sum() / ((truth - truth.mean(0)).square() * weights).sum()
    return {"yaw": yaw, "pitch": pitch, "latent": float(share)}
