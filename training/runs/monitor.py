"""Shows a user a run besides its numbers: the status line, and the pictures in the run folder."""

from __future__ import annotations

from pathlib import Path

import torch

import dnnlib
from gaussian import Cameras
from torch_utils import random
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.families.base import Generator
from training.images import composite
from training.visualization.grids import save_camera_histogram, save_image_grid
from training.visualization.latents import told_classes

GRID_ROWS, GRID_COLUMNS = 6, 7  # identities, yaws of the training pictures


def save_reals(config: TrainingConfig, dataset: ImageDataset, run_dir: Path) -> None:
    """Writes random data items as reals.png, and where their cameras are as cameras.png."""
    order = random.permutation(config.seed, "grid/reals", 0, len(dataset))[: GRID_ROWS * GRID_COLUMNS]
    batch = dataset.load(order)
    background = torch.tensor(dnnlib.parse_color(config.shown_background)).expand(len(order), 3)
    save_image_grid(composite(batch.images, batch.masks, background), run_dir / "reals.png", GRID_COLUMNS)
    cameras = Cameras.from_labels(torch.from_numpy(dataset.labels))
    save_camera_histogram(cameras, dataset.geometry, run_dir / "cameras.png")


def save_fakes(path: Path, G: Generator, grid: dict[str, torch.Tensor], config: TrainingConfig) -> None:
    """Draws one identity a row, one yaw a column, of the `grid` from `make_grid`; mapped under the frontal camera."""
    if not all(bool(p.isfinite().all()) for p in G.parameters()):
        print(f"Warning: {path.name} not drawn: the averaged generator is no longer finite", flush=True)
        return
    device = G.device
    background = torch.tensor(dnnlib.parse_color(config.shown_background))
    with torch.no_grad():
        frontal = G.geometry.frontal().to(device).expand(GRID_ROWS)
        told = told_classes(grid.get("classes"), device)
        scene = G.synthesis(G.mapping(grid["z"].to(device), frontal, **told))
        cameras = Cameras.from_labels(grid["labels"].to(device))
        cameras = cameras.expand(GRID_ROWS, GRID_COLUMNS)
        images = G.render(scene, cameras, background=background).image.flatten(0, 1)
    save_image_grid(images, path, GRID_COLUMNS)


def make_grid(config: TrainingConfig, dataset: ImageDataset, z_dim: int) -> dict[str, torch.Tensor]:
    """Chooses the rows' latents and the columns' cameras: the data's yaws, 5th to 95th percentile, at level pitch.

    Where networks are told classes, rows have those of random data items.
    """
    cameras, rows = dataset.geometry.orbit(grid_yaws(dataset)), range(GRID_ROWS)
    grid = {"z": random.normal(config.seed, "grid/z", rows, (z_dim,)), "labels": cameras.labels}
    if getattr(config.generator, "num_classes", 0):
        items = random.integers(config.seed, "grid/class", rows, len(dataset))
        grid["classes"] = torch.from_numpy(dataset.classes)[items]
    return grid


def grid_yaws(dataset: ImageDataset) -> torch.Tensor:
    """Returns the yaws [7] of pictures, in radians: even steps from the 5th to the 95th percentile of the data's."""
    yaw, _ = Cameras.from_labels(torch.from_numpy(dataset.labels)).yaw_pitch(dataset.geometry)
    return torch.linspace(yaw.quantile(0.05).item(), yaw.quantile(0.95).item(), GRID_COLUMNS)


def print_status(tick: int, nimg: int, timing: dict[str, float], values: dict[str, float]) -> None:
    """Prints the line of a tick."""
    fields = [
        f"tick {tick:<5d}",
        f"kimg {nimg / 1000:<8.1f}",
        f"time {dnnlib.format_time(timing['total_sec']):<12s}",
        f"sec/tick {timing['sec_per_tick']:<7.1f}",
        f"sec/kimg {timing['sec_per_kimg']:<7.2f}",
        f"maintenance {timing['maintenance_sec']:<6.1f}",
        f"cpumem {timing['cpu_peak_gib']:<6.2f}",
    ]
    if "gpu_peak_gib" in timing:
        fields.append(f"gpumem {timing['gpu_peak_gib']:<6.2f}")
    if "Logits/real" in values and "Logits/fake" in values:
        fields.append(f"logits {values['Logits/real']:+.2f} {values['Logits/fake']:+.2f}")
    if "Augment/p" in values:
        fields.append(f"augment {values['Augment/p']:.3f}")
    print(" ".join(fields), flush=True)
