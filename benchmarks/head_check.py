"""Validates head_check<N>: a generator without fault passes, and each planted fault is seen.

    python -m benchmarks.head_check                               # the table; exit status 1 if a fault is not seen
    python -m benchmarks.head_check --network=PKL --data=DIR --sheet=heads.png     # the best and the worst heads

The generator ray-casts heads that the finder has not been trained on. Its faults are of the head (one eye, a third one,
two mouths ...), of its geometry (a picture that always faces the camera, one painted on a plane, another head at
every yaw, the camera's mirror image) and of its pictures (blur, noise).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from benchmarks.landmarks import blurred
from gaussian import Cameras, Geometry, Rendering, SceneRecord
from metrics.head_check import judge
from metrics.landmarks import load_finder
from metrics.registry import compute_metric
from metrics.samples import Sampling, data_cameras, fake_images, fake_items
from training.checkpoint import load_generator
from training.data.synthetic.features import FAULTS, render_truths
from training.data.synthetic.synthesize import synthesize_heads
from training.dataset import ImageDataset
from training.visualization.grids import save_image_grid

SEED = 77  # of the generator's heads: neither the data's nor those of training
HEADS = 1_000_000  # that it knows
PLANE = 0.12  # world z of the painted plane
OTHERS = ("billboard", "plane", "swapped", "mirrored", "blur 1.5 px", "blur 3 px", "noise 0.1", "noise 0.3")
BARS = {"share": 0.98, "pose_deg": 6.0, "drift": 0.012}  # at least, at most and at most, without a fault
SEEN_BY = {  # fault -> the figures that must be worse, and the factor or bound
    **dict.fromkeys(FAULTS[1:], "share"),
    "billboard": "drift",
    "plane": "pose_deg",
    "swapped": "drift",
    "mirrored": "pose_deg",
    "blur 3 px": "share",
    "noise 0.3": "share",
}


@dataclass(frozen=True)
class Heads(SceneRecord):
    """Holds B heads by their numbers."""

    numbers: Tensor  # int64 [B]


class RayCaster:
    """Is a generator whose scenes are procedural heads, one for each latent, with one fault."""

    z_dim, resolution, num_classes, info, blocks = 4, 64, 0, None, None
    device = torch.device("cpu")

    def __init__(self, geometry: Geometry, fault: str = "none") -> None:
        if fault not in (*FAULTS, *OTHERS):
            raise ValueError(f"fault {fault!r} does not exist; legal are {', '.join((*FAULTS, *OTHERS))}")
        self.geometry, self.fault = geometry, fault

    def mapping(self, z: Tensor, cameras: Cameras | None = None) -> Tensor:
        """Returns latents [B, z_dim] as they are."""
        return z

    def reader(self) -> tuple[Callable[[Tensor], Mapping[str, Tensor]], str]:
        """Raises ValueError: a latent has no blocks to read."""
        raise ValueError("heads of one number have no blocks")

    def asked_depth(self, z: Tensor, cameras: Cameras, resolution: int) -> Tensor:
        """Raises ValueError: a latent has no blocks that ask for a surface."""
        raise ValueError("heads of one number have no blocks")

    def synthesis(self, ws: Tensor) -> Heads:
        """Returns the heads that latents [B, z_dim] stand for."""
        return Heads((ws[:, 0].abs() * HEADS).long() % HEADS)

    def render(self, scene: Heads, cameras: Cameras, *, background: Tensor | None = None) -> Rendering:
        """Renders heads from cameras [B, V]."""
        views = cameras.shape[1]
        numbers, flat = scene.numbers.repeat_interleave(views), cameras.reshape(-1)
        rgba = self._pictures(numbers, flat)
        behind = torch.ones(len(flat), 3) if background is None else background.expand(*cameras.shape, 3).flatten(0, 1)
        alpha = rgba[:, 3:]
        rgb = alpha * rgba[:, :3] + (1 - alpha) * behind[..., None, None]
        if self.fault.startswith("noise"):
            grain = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(int(numbers[0])))
            rgb, alpha = rgb + float(self.fault.split()[1]) * grain, torch.ones_like(alpha)
        return Rendering(*(part.unflatten(0, cameras.shape) for part in (rgb.clamp(0, 1), alpha, alpha)))

    def _pictures(self, numbers: Tensor, cameras: Cameras) -> Tensor:
        """Returns RGBA [N, 4, 64, 64] in 0..1 of heads from a camera each."""
        frontal = self.geometry.frontal().reshape(1).expand(len(cameras))
        yaw, pitch = cameras.yaw_pitch(self.geometry)
        if self.fault == "billboard":
            cameras = frontal
        if self.fault == "mirrored":
            cameras = self.geometry.orbit(-yaw, pitch)
        if self.fault == "swapped":
            numbers = (numbers + (1000 * yaw).round().long()) % HEADS
        if self.fault == "plane":
            return _painted(self._cast(numbers, frontal), frontal, cameras)
        rgba = self._cast(numbers, cameras)
        return blurred(rgba, float(self.fault.split()[1])) if self.fault.startswith("blur") else rgba

    def _cast(self, numbers: Tensor, cameras: Cameras) -> Tensor:
        fault = self.fault if self.fault in FAULTS else "none"
        labels = cameras.labels.double().numpy()
        found = render_truths(SEED, numbers.tolist(), [fault] * len(labels), labels, self.resolution)
        return torch.from_numpy(np.concatenate([found.images, found.masks], axis=1)) / 255


def _painted(rgba: Tensor, frontal: Cameras, cameras: Cameras) -> Tensor:
    """Returns pictures [N, 4, R, R], painted on the plane z = PLANE as the frontal cameras see it, from others [N]."""
    size = rgba.shape[-1]
    at = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(at, at, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)  # [P, 3]
    rays = pixels @ torch.linalg.inv(cameras.intrinsics).mT @ cameras.cam2world[:, :3, :3].mT  # [N, P, 3]
    origin = cameras.positions[:, None]
    points = origin + rays * ((PLANE - origin[..., 2:]) / rays[..., 2:])
    places, _ = frontal.project(points)
    return F.grid_sample(rgba, 2 * places.unflatten(1, (size, size)) - 1, align_corners=False)


def measure(fault: str, dataset: ImageDataset, count: int) -> dict[str, float]:
    """Returns the figures of head_check of the ray-caster with a fault."""
    return compute_metric(f"head_check{count}", RayCaster(dataset.geometry, fault), dataset, cache=False).values


def seen(fault: str, figures: dict[str, float], sound: dict[str, float]) -> bool:
    """Says whether the figure that a fault must change is beyond what a sound generator may have."""
    name = SEEN_BY[fault]
    if name == "share":
        return figures["share"] < 0.8 * sound["share"]
    value = figures.get(name, np.inf)  # no drift: nothing could be followed
    return value > max(1.5 * sound[name], BARS[name])


def sheet(network: Path, data: str, count: int, path: Path, seed: int = 0) -> None:
    """Draws pictures of a checkpoint in two blocks: those that pass, then those that do not, 32 of each at most."""
    G, dataset = load_generator(network), ImageDataset(data)
    sampling = Sampling(G, dataset, seed, G.device, 32, "white", None, None)
    items = fake_items(sampling, range(count), np.arange(len(dataset)))
    images, passed, finder = [], [], load_finder(G.device)
    for indices, batch in fake_images(sampling, count):
        cameras = data_cameras(sampling, items[indices.start : indices.stop])
        verdict = judge(finder(batch), cameras, dataset.geometry.centre)
        images.append(batch)
        passed.append(verdict.eyes & verdict.mouth)
    pictures, good = torch.cat(images), torch.cat(passed)
    blocks = [pictures[which][:32] for which in (good, ~good)]
    rows = [F.pad(block.float(), [0] * 7 + [-len(block) % 16], value=255.0) for block in blocks if len(block)]
    save_image_grid(torch.cat(rows) / 127.5 - 1, path, 16, factor=2)
    click.echo(f"{path}: {int(good.sum())} of {count} pass, drawn first")


@click.command(context_settings={"show_default": True})
@click.option("--count", default=200, help="generated pictures for each fault")
@click.option("--only", help="faults, comma-separated")
@click.option("--json", "out", type=click.Path(path_type=Path), help="file for the figures")
@click.option("--workdir", default="datasets/head_check", type=click.Path(path_type=Path), help="for the reals")
@click.option("--network", type=click.Path(exists=True, path_type=Path), help="draw heads of this checkpoint instead")
@click.option("--data", help="with --network: the data set whose cameras are used")
@click.option("--sheet", "picture", type=click.Path(path_type=Path), help="with --network: the picture to write")
def main(
    count: int,
    only: str | None,
    out: Path | None,
    workdir: Path,
    network: Path | None,
    data: str | None,
    picture: Path | None,
) -> None:
    """Validate head_check, or show what it says of a checkpoint."""
    torch.set_num_threads(1)
    if network is not None:
        if data is None or picture is None:
            raise click.UsageError("--network needs --data and --sheet")
        sheet(network, data, count, picture)
        return
    dataset = ImageDataset(synthesize_heads(workdir, max(count, 100), 64, seed=1).images)
    faults: Sequence[str] = [*FAULTS, *OTHERS] if only is None else ["none", *only.split(",")]
    table: dict[str, dict[str, Any]] = {}
    names = ("share", "eyes", "mouth", "pose_deg", "drift", "followed")
    click.echo("| fault | " + " | ".join(names) + " |\n" + "|---" * (1 + len(names)) + "|")
    for fault in faults:
        table[fault] = measure(fault, dataset, count)
        click.echo(f"| {fault} | " + " | ".join(f"{table[fault].get(name, np.nan):.3f}" for name in names) + " |")
    sound = table["none"]
    click.echo(f"reals: share {sound['real_share']:.3f}, pose {sound['real_pose_deg']:.2f} degrees")
    missed = [fault for fault in table if fault in SEEN_BY and not seen(fault, table[fault], sound)]
    missed += [f"none ({name})" for name, bar in BARS.items() if (sound[name] < bar) == (name == "share")]
    missed += ["reals"] if sound["real_share"] < BARS["share"] else []
    if out:
        record = {"machine": machine.facts(), "count": count, "bars": BARS, "faults": table}
        out.write_text(json.dumps(record, indent=1) + "\n")
    if missed:
        click.echo(f"missed: {', '.join(missed)}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
