"""Times the loader against one that decodes PNGs with Pillow and blends in float64: `python -m benchmarks.data`.

The other loader is a plain one, in worker processes: per item it decodes image and mask, blends them over a random
colour in float64 and goes back to 8 bits. Ours runs as many worker threads, hands out image and mask as stored, and
keeps decoded pixels in memory as far as a quarter of the free memory goes; --fits=0.25 lets a quarter of the set fit.
Blending is the training step's work here, done on the device, and is not timed.

Beside the rates stand the processor's milliseconds per image, of this process and of the workers together: they depend
less than the rates on what else the machine does.

The pictures are ray-cast heads with sensor noise, so that their PNGs are as large as photographs' (0.4 MB at 512 px).
The files are in the page cache: disks are not measured.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.machine import facts
from training import dataset as dataset_module
from training.data.synthetic.synthesize import render_heads, sample_cameras
from training.dataset import ImageDataset, iterate

NOISE = 4.0  # standard deviation of a pixel, of 255
HEADS = 6  # different pictures; the noise makes the files different


def make_set(folder: Path, num: int, resolution: int) -> Path:
    """Writes an FFHQC set with photograph-like files; returns the folder of its images."""
    cameras = sample_cameras(0, range(num))
    pictures = render_heads(0, range(HEADS), sample_cameras(0, range(HEADS)), resolution)
    rng = np.random.default_rng(0)
    (folder / str(resolution)).mkdir()
    (folder / "mask").mkdir()
    for i in range(num):
        image = pictures.images[i % HEADS].permute(1, 2, 0).numpy()
        noisy = (image + rng.normal(0, NOISE, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / str(resolution) / f"{i:05d}.png")
        Image.fromarray(pictures.masks[i % HEADS, 0].numpy()).save(folder / "mask" / f"{i:05d}.png")
    labels = [[f"{i:05d}.png", label.tolist()] for i, label in enumerate(cameras.labels.double())]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder / str(resolution)


class PlainSet(torch.utils.data.Dataset[np.ndarray]):
    """Decodes and blends in the plain way. An item is a picture over a random colour, uint8 [3, H, W]."""

    def __init__(self, images: Path, num: int):
        self.images, self.num = images, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self.images / f"{index:05d}.png") as file:
            image = np.array(file).transpose(2, 0, 1)
        with Image.open(self.images.parent / "mask" / f"{index:05d}.png") as file:
            mask = np.array(file).astype(np.float64)[None] / 255
        colour = np.random.randint(0, 255, 3).reshape(3, 1, 1)
        return (mask * image + (1 - mask) * colour).astype(np.uint8)


def processor_seconds() -> float:
    """Returns the processor time of this process and of the worker processes that are still there."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(found.user + found.system for found in times)


def time_rounds(batches: Callable[[], Iterable[object]], num: int, rounds: int) -> dict[str, list[float]]:
    """Returns images a second, and processor milliseconds per image, of each round through the set."""
    rates, costs = [], []
    for _ in range(rounds):
        started, spent = time.perf_counter(), processor_seconds()
        for _ in batches():
            pass
        rates.append(num / (time.perf_counter() - started))
        costs.append(1000 * (processor_seconds() - spent) / num)
    return {"rates": rates, "costs": costs}


@click.command(context_settings={"show_default": True})
@click.option("--num", default=256, help="Images of the set.")
@click.option("--resolution", default=512, help="Their width and height in pixels.")
@click.option("--batch", default=16, help="Images a batch.")
@click.option("--workers", default=2, help="Worker processes of the plain loader, worker threads of ours.")
@click.option("--rounds", default=4, type=click.IntRange(min=2), help="Times through the set.")
@click.option("--fits", default=1.0, help="Share of the set that may stay decoded in memory.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="File for the figures.")
def main(num: int, resolution: int, batch: int, workers: int, rounds: int, fits: float, out: str | None) -> None:
    """Print images a second of both loaders, round by round."""
    torch.set_num_threads(workers)
    with tempfile.TemporaryDirectory() as folder:
        images = make_set(Path(folder), num, resolution)
        dataset_module.memory_limit = lambda: int(fits * num) * 4 * resolution**2
        plain = torch.utils.data.DataLoader(
            PlainSet(images, num), batch, shuffle=True, num_workers=workers, prefetch_factor=2, persistent_workers=True
        )
        next(iter(plain))  # starting processes is not counted

        def order() -> list[list[int]]:
            shuffled = np.random.permutation(num)
            return [shuffled[i : i + batch].tolist() for i in range(0, num, batch)]

        ours = ImageDataset(images)
        cases: dict[str, Callable[[], Iterable[object]]] = {
            "plain": lambda: plain,
            "ours": lambda: iterate(ours, order(), workers),
        }
        found = {name: time_rounds(batches, num, rounds) for name, batches in cases.items()}
    click.echo(f"{num} images of {resolution} px, {fits:.0%} of them fit in memory, {workers} workers")
    for part, pick in (("first round", slice(1)), ("later rounds", slice(1, None))):
        rate, cost = ({name: np.mean(f[kind][pick]) for name, f in found.items()} for kind in ("rates", "costs"))
        for name in found:
            click.echo(f"{part:12s} {name:5s} {rate[name]:7.1f} images/s, {cost[name]:5.2f} ms of processor an image")
        click.echo(
            f"{part:12s} ours / plain: {rate['ours'] / rate['plain']:.2f} times the images a second, "
            f"{cost['plain'] / cost['ours']:.2f} times less processor time"
        )
    if out:
        Path(out).write_text(
            json.dumps(
                {"machine": facts(), "num": num, "resolution": resolution, "workers": workers, "fits": fits, **found},
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
