"""Times the loader against one that decodes PNGs with Pillow and blends masks in float64: `python benchmarks/data.py`.

The other loader is a plain one, in worker processes: per item it decodes image and mask, blends them over a random
colour in float64 and goes back to 8 bits. Ours runs as many worker threads, hands out image and mask as stored, and
keeps decoded pixels in memory as far as a quarter of the free memory goes; --fits=0.25 lets a quarter of the set fit.
Blending is the training step's work here, done on the device: `with blending` adds it, on the CPU, in the thread that
takes the batches, and for the other loader the conversion to float that it still needs.

The pictures are ray-cast heads with sensor noise, so that their PNGs are as large as photographs' (0.4 MB at 512 px).
The files are in the page cache: disks are not measured.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import dataset as dataset_module
from training.dataset import ImageDataset, composite, iterate
from training.synthetic import render_heads, sample_cameras

NOISE = 4.0  # standard deviation of a pixel, of 255
HEADS = 6  # different pictures; the noise makes the files different


def make_set(folder: Path, num: int, resolution: int) -> Path:
    """An FFHQC set with photograph-like files."""
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


class PlainSet(torch.utils.data.Dataset):
    """One item: a picture over a random colour, uint8 [3, H, W]."""

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


def epochs_per_second(batches: Callable[[], Iterable], num: int, rounds: int) -> list[float]:
    """Images a second of each round through the set."""
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in batches():
            pass
        rates.append(num / (time.perf_counter() - started))
    return rates


@click.command(context_settings={"show_default": True})
@click.option("--num", default=256, help="Images of the set.")
@click.option("--resolution", default=512, help="Their width and height in pixels.")
@click.option("--batch", default=16, help="Images a batch.")
@click.option("--workers", default=2, help="Worker processes of the plain loader, worker threads of ours.")
@click.option("--rounds", default=4, help="Times through the set.")
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
        white = torch.ones(batch, 3)

        def order() -> list[list[int]]:
            shuffled = np.random.permutation(num)
            return [shuffled[i : i + batch].tolist() for i in range(0, num, batch)]

        ours, blending = ImageDataset(images), ImageDataset(images)
        cases = {
            "plain": lambda: plain,
            "ours": lambda: iterate(ours, order(), workers),
            "plain, with conversion": lambda: (b.float() / 127.5 - 1 for b in plain),
            "ours, with blending": lambda: (
                composite(b.images, b.masks, white[: len(b.images)]) for b in iterate(blending, order(), workers)
            ),
        }
        rates = {name: epochs_per_second(batches, num, rounds) for name, batches in cases.items()}
    size = sum(rates["plain"]) / rounds
    click.echo(f"{num} images of {resolution} px, {fits:.0%} of them fit in memory, {workers} workers")
    for name, found in rates.items():
        later = sum(found[1:]) / (rounds - 1)
        click.echo(f"{name:24s} first round {found[0]:7.1f} images/s, later rounds {later:7.1f}")
    click.echo(
        f"ours / plain: first round {rates['ours'][0] / size:.2f}, later rounds "
        f"{sum(rates['ours'][1:]) / (rounds - 1) / size:.2f}"
    )
    if out:
        Path(out).write_text(
            json.dumps({"num": num, "resolution": resolution, "workers": workers, "fits": fits, **rates})
        )


if __name__ == "__main__":
    main()
