"""States how many pictures a second view.py makes while something moves, and photographs its page.

    python -m benchmarks.viewer --network=PKL --threads=2
    python -m benchmarks.viewer --network=PKL --screenshot=docs/images/viewer.jpg        # needs Chromium

Pictures are what a page sends: rendered, and encoded as JPEG by the package that serves it. While the camera moves the
head's scene stays; while the head changes every picture has a scene of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import machine
from benchmarks.browser import PROGRAM, open_page, save_smaller
from torch_utils import distributed, memory
from training.viewer.networks import find_networks
from training.viewer.pace import Quality
from training.viewer.page import ENLARGED, JPEG, Page
from training.viewer.studio import HeadChoice, Shown, Studio

WINDOW = (1100, 640)  # px of the photograph, width and height
TURN = 0.6  # radians that the photographed camera stands to the side
CLOSE_NOTICES = "document.querySelectorAll('[class*=Notification] button').forEach(button => button.click())"
PORT = 8390  # the first that is tried


def encoded(picture: np.ndarray) -> bytes:
    """Encodes a picture [H, W, 3] as a page does while something moves."""
    from viser._scene_api import _encode_image_binary

    return bytes(_encode_image_binary(picture, "jpeg", JPEG[Quality.MOVING])[1])


def rate(make: Callable[[int], np.ndarray], count: int) -> tuple[float, float, float]:
    """Returns pictures a second, and milliseconds of a picture and of its encoding, in the median of `count`."""
    for k in range(5):
        encoded(make(k))
    drawn, packed = [], []
    for k in range(count):
        times = [time.perf_counter()]
        picture = make(k)
        times.append(time.perf_counter())
        encoded(picture)
        times.append(time.perf_counter())
        drawn.append(times[1] - times[0])
        packed.append(times[2] - times[1])
    both = float(np.median(np.array(drawn) + np.array(packed)))
    return 1 / both, 1000 * float(np.median(drawn)), 1000 * float(np.median(packed))


def photograph(studio: Studio, head: HeadChoice, path: Path, seconds: float = 100.0) -> None:
    """Serves a page to a browser of its own, and writes what it shows when all is still. Raises ValueError."""
    if PROGRAM is None:
        raise ValueError("--screenshot: there is no Chromium here")
    page = Page(studio, head, "127.0.0.1", PORT, WINDOW[1], 256)
    try:
        address = f"http://127.0.0.1:{page.port}"
        with tempfile.TemporaryDirectory() as folder, open_page(address, Path(folder) / "profile", WINDOW) as tab:
            client = _wait(lambda: next(iter(page.server.get_clients().values()), None), seconds)
            geometry = studio.generator(head.network).geometry
            home, there = (geometry.orbit(yaw).positions.numpy() * ENLARGED for yaw in (0.0, TURN))
            _wait(lambda: np.allclose(client.camera.position, home, atol=0.1), seconds)  # it has said where it stands
            with client.atomic():
                client.camera.position = there
                client.camera.look_at = np.array(geometry.pivot) * ENLARGED  # which moves with the position
            _wait(lambda: np.allclose(client.camera.position, there, atol=0.1), seconds)
            sent = page.pictures
            _wait(lambda: page.pictures > sent and all(p.shown is Quality.STILL for p in page.paces.values()), seconds)
            tab.value(CLOSE_NOTICES)
            picture = Path(folder) / "page.png"
            _wait(lambda: _is_drawn(tab.screenshot(picture)), seconds)
            save_smaller(picture, path)
    finally:
        page.close()


def _is_drawn(shown: np.ndarray) -> bool:
    """Says whether a browser shows more than an empty page left of the controls, and no notice above it."""
    height, width = shown.shape[:2]
    scene, corner = shown[height // 4 :, : width // 2], shown[: height // 4, : width // 4]
    return bool((scene < 200).all(-1).mean() > 0.02 and corner.std() < 1)


def _wait(condition: Callable[[], Any], seconds: float) -> Any:
    """Returns what a condition gives as soon as that is true. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError("the browser does not answer")
        time.sleep(0.2)
    return found


@click.command()
@click.option("--network", required=True, help="checkpoint of a trained generator")
@click.option("--threads", default=2, show_default=True)
@click.option("--pixels", default=256, show_default=True, help="height and width of a picture")
@click.option("--count", default=100, show_default=True, help="of pictures")
@click.option("--screenshot", type=click.Path(path_type=Path, dir_okay=False), help="photograph the page instead")
def main(network: str, threads: int, pixels: int, count: int, screenshot: Path | None) -> None:
    """Prints how many pictures a second a viewer gets."""
    networks = find_networks([network])
    studio = Studio(networks, distributed.initialise("cpu"))
    torch.set_num_threads(threads)
    memory.keep_freed_memory()
    head = HeadChoice(next(iter(networks)))
    if screenshot:
        photograph(studio, head, screenshot)
        click.echo(screenshot)
        return
    geometry, size = studio.generator(head.network).geometry, (pixels, pixels)

    def turned(k: int) -> np.ndarray:
        return studio.picture(head, Shown(), geometry.orbit(0.02 * k), size)

    def changed(k: int) -> np.ndarray:
        other = HeadChoice(head.network, mix=0.001 * (k + 1))
        return studio.picture(other, Shown(), geometry.frontal(), size)

    for what, make in (("the camera moves", turned), ("the head changes", changed)):
        pictures, drawing, packing = rate(make, count)
        click.echo(f"{what}: {pictures:.0f} pictures a second; {drawing:.1f} ms to draw, {packing:.1f} ms to encode")
    click.echo(f"{network}, {pixels} px, {threads} threads; {machine.in_one_line()}")


if __name__ == "__main__":
    main()
