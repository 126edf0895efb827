"""Drives a headless Chromium over its DevTools socket, and photographs pages.

python -m benchmarks.browser --page=out/inversion.html --picture=docs/images/inversion.jpg
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ("--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
           "--remote-debugging-port=0", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
           "--disable-extensions", "--mute-audio")  # fmt: skip

PATIENCE = 900.0  # seconds for what takes a few; software rendering on a busy core is slow


class Tab:
    """One page. `errors` holds what the page's programs complained of."""

    def __init__(self, socket: Any) -> None:  # a websockets connection
        self.socket, self.numbers = socket, itertools.count(1)
        self.errors: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def value(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, f"waited in vain for {expression}; {self.errors}"
            time.sleep(0.2)

    def screenshot(self, path: Path) -> np.ndarray:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return np.asarray(Image.open(path).convert("RGB"))


@contextlib.contextmanager
def open_page(address: str, profile: Path, size: tuple[int, int] = (900, 600)) -> Iterator[Tab]:
    """Opens an address in a browser of its own, which ends with the block. size: width, height."""
    from websockets.sync.client import connect

    assert PROGRAM is not None, "Chromium is not installed"
    command = [PROGRAM, *OPTIONS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        place = profile / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not (place.exists() and place.read_text().strip()):
            assert time.monotonic() < end and process.poll() is None, "the browser does not start"
            time.sleep(0.1)
        port = place.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE) as answer:
            [target] = [t for t in json.load(answer) if t["type"] == "page"]
        with connect(target["webSocketDebuggerUrl"], max_size=None, open_timeout=PATIENCE) as socket:
            tab = Tab(socket)
            tab.call("Runtime.enable")
            tab.call("Page.enable")
            tab.call("Page.navigate", url=address)
            yield tab
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def picture_of(address: str) -> np.ndarray:
    """Decodes a data: address of a PNG as uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def save_smaller(picture: Path, path: Path) -> None:
    """Writes a picture in the format that a name asks for, .jpg or .png, with as few bytes as look well."""
    Image.open(picture).convert("RGB").save(path, quality=85, optimize=True)


@click.command()
@click.option("--page", required=True, type=click.Path(exists=True, path_type=Path), help="an HTML file")
@click.option("--picture", required=True, type=click.Path(dir_okay=False, path_type=Path), help=".jpg or .png")
@click.option("--width", default=900, show_default=True, help="px")
@click.option("--height", default=1200, show_default=True, help="px, from the top of the page")
def main(page: Path, picture: Path, width: int, height: int) -> None:
    """Photograph a page that needs no server."""
    if PROGRAM is None:
        raise click.ClickException("there is no Chromium here")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "page.png"
        with open_page(page.resolve().as_uri(), Path(folder) / "profile", (width, height)) as tab:
            tab.wait("document.readyState === 'complete' && [...document.images].every(image => image.complete)")
            tab.screenshot(whole)
        save_smaller(whole, picture)
    click.echo(picture)


if __name__ == "__main__":
    main()
