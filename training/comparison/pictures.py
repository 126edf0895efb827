"""Shows and times every system of a comparison alike: the same seeds from the same cameras, one image at a time."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dnnlib
from gaussian import Cameras
from training.dataset import ImageDataset
from training.families.base import Generator
from training.images import composite, quantize
from training.measure import seconds_now
from training.runs.monitor import grid_yaws
from training.visualization.grids import image_grid
from training.visualization.latents import seed_classes, seed_latents, told_classes

CELL = 160  # px of a picture on the page, at most
TIMED_SECONDS, TIMED_CALLS, WARM_UP = 2.0, 50, 2  # a call is timed for as long, or as often, after so many untimed


def yaws_deg(dataset: ImageDataset) -> list[float]:
    """Returns the yaws of the columns in degrees, + towards world +x."""
    return [round(float(yaw), 1) for yaw in grid_yaws(dataset).rad2deg()]


@torch.no_grad()
def draw_system(G: Generator, dataset: ImageDataset, seeds: Sequence[int], background: str) -> bytes:
    """Draws a PNG with a row for each seed and a column for each of the data's seven yaws.

    The mapping is told the frontal camera, psi is 1.
    """
    frontal = dataset.geometry.frontal().to(G.device).expand(len(seeds))
    colour = torch.tensor(dnnlib.parse_color(background), device=G.device)
    yaws = grid_yaws(dataset)
    cameras = dataset.geometry.orbit(yaws).to(G.device).to(dtype=torch.float32)
    z = seed_latents(list(seeds), G.z_dim).to(G.device)
    classes = seed_classes(list(seeds), G.num_classes) if G.num_classes else None
    ws, rows = G.mapping(z, frontal, 1.0, **told_classes(classes, G.device)), []
    for i in range(len(seeds)):  # a row at a time: the memory of one batch of views
        scene = G.synthesis(ws[i : i + 1])
        rows.append(quantize(G.render(scene, cameras.expand(1, len(yaws)), background=colour).image[0]).cpu())
    return _png(torch.cat(rows), len(yaws))


def draw_reals(dataset: ImageDataset, rows: int, background: str) -> bytes:
    """Draws a PNG like `draw_system` of the data items whose cameras are nearest to the seven yaws."""
    yaws = grid_yaws(dataset)
    own, pitch = Cameras.from_labels(torch.from_numpy(dataset.labels)).yaw_pitch(dataset.geometry)
    level = (pitch - pitch.median()).square()
    nearest = torch.stack([((own - yaw).square() + level).argsort(stable=True)[:rows] for yaw in yaws])  # [7, rows]
    batch = dataset.load(nearest.T.flatten().numpy())
    colour = torch.tensor(dnnlib.parse_color(background)).expand(len(batch.images), 3)
    return _png(quantize(composite(batch.images, batch.masks, colour)), len(yaws))


def _png(images: Tensor, columns: int) -> bytes:
    """Tiles uint8 images [N, 3, R, R]; cells over `CELL` px are made smaller."""
    picture = Image.fromarray(np.ascontiguousarray(image_grid(images, columns).permute(1, 2, 0).numpy()))
    share = min(1.0, CELL / images.shape[-1])
    if share < 1:
        size = (round(picture.width * share), round(picture.height * share))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def encode(png: bytes) -> str:
    """Returns bytes as text for a JSON record."""
    return base64.b64encode(png).decode()


def decode(text: str) -> bytes:
    """Inverts `encode`."""
    return base64.b64decode(text)


@torch.no_grad()
def measure_speed(G: Generator, dataset: ImageDataset) -> dict[str, float]:
    """Times one image from its latent, and one more view of a finished scene, in seconds.

    Each is the fastest of many calls: what else the machine does makes calls slower, and none faster.
    """
    camera = dataset.geometry.frontal().to(G.device).expand(1)
    z = seed_latents([0], G.z_dim).to(G.device)
    scene = G.synthesis(G.mapping(z, camera, 1.0))

    def image() -> object:
        return G.render(G.synthesis(G.mapping(z, camera, 1.0)), camera[:, None])

    def view() -> object:
        return G.render(scene, camera[:, None])

    return {"sec_per_image": _fastest(image, G.device), "sec_per_view": _fastest(view, G.device)}


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    times: list[float] = []
    while len(times) < WARM_UP + 3 or (len(times) < WARM_UP + TIMED_CALLS and sum(times) < TIMED_SECONDS):
        start = seconds_now(device)
        call()
        times.append(seconds_now(device) - start)
    return min(times[WARM_UP:])
