"""Shows trained generators in a browser, or writes a page that does so by itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

import dnnlib
from dnnlib.command import CONTEXT, GroupedCommand, group, in_a_folder, option, version
from dnnlib.numbers import FINITE, SEED
from torch_utils import distributed
from training.checkpoint import CheckpointError
from training.viewer.networks import find_networks
from training.viewer.static import write_page
from training.viewer.studio import HeadChoice, Studio
from training.visualization.directions import read_directions

if TYPE_CHECKING:
    from training.viewer.page import Page

WATCHED_EVERY = 5.0  # seconds between looks for new snapshots
DEFAULT_HEADS = 16  # of a page by itself
PIXELS = click.IntRange(16, 4096)


# fmt: off
WHAT = group(
    "What is shown",
    option("--network", required=True, metavar="PKL|DIR,...",
           help="checkpoints, and run folders, whose snapshots are offered as they are written"),
    option("--seed", type=SEED, default=0, help="the first head"),
    option("--w-file", metavar="NPZ",
           help="heads from a file of invert.py or gen_samples.py --w-out, in place of seeds: seed 0 is its first"),
    option("--trunc", "--truncation-psi", "trunc", type=FINITE, default=0.7, help="psi: 0 the mean head, 1 as drawn"),
    option("--directions", metavar="NPZ,...",
           help="files of find_directions.py, in place of the principal directions of the networks they were found on"),
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
)

SERVING = group(
    "Serving",
    option("--host", default="127.0.0.1", metavar="ADDRESS",
           help="who may look: 127.0.0.1 this machine alone, 0.0.0.0 everyone who reaches it"),
    option("--port", type=click.IntRange(1, 65535), default=8080, help="of the page"),
    option("--resolution", type=PIXELS, default=512, help="pixels from top to bottom of a picture when all is still"),
    option("--moving", type=PIXELS, default=256,
           help="at most so many while something moves; fewer where that is slow"),
)

STATIC = group(
    "A page by itself",
    option("--static", metavar="HTML", callback=in_a_folder,
           help="write this file, which shows heads without a server and without a network, and end"),
    option("--heads", metavar="LIST", show_default="0-15, or all of --w-file", help="seeds of its heads"),
)
# fmt: on


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@WHAT
@SERVING
@STATIC
@version
@click.pass_context
def main(
    ctx: click.Context,
    network: str, seed: int, w_file: str | None, trunc: float, directions: str | None, device: str,
    host: str, port: int, resolution: int, moving: int,
    static: str | None, heads: str | None,
) -> None:  # fmt: skip
    """Look at heads from all sides in a browser.

    \b
    python view.py --network=training-runs/00000-tiny
    python view.py --network=net.pkl --static=heads.html
    """
    ctx.with_resource(dnnlib.stoppable())
    places = network.split(",")
    try:
        networks = find_networks(places)
        found = [read_directions(file) for file in directions.split(",")] if directions else []
        studio = Studio(networks, distributed.initialise(device), found, w_file)
        name = list(networks)[-1]
        studio.generator(name)  # refuses a file that is no network before anything else is looked at
        if w_file is not None:
            studio.ws(HeadChoice(name))  # refuses a file that does not fit before anything is served
        if static is not None:
            click.echo(write_page(static, studio, name, _heads(heads, studio, name), trunc))
            return
        _require_free(host, port)
        page = _page()(studio, HeadChoice(name, seed, seed + 1, psi=trunc), host, port, resolution, moving)
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    click.echo(f"Open http://{'localhost' if host == '127.0.0.1' else host}:{page.port} (Ctrl-C ends)")
    try:
        keep_serving(page, lambda: find_networks(places))
    except KeyboardInterrupt:
        click.echo()
    finally:
        page.close()


def _heads(asked: str | None, studio: Studio, network: str) -> list[int]:
    """Returns the numbers of the heads of a page. Raises ValueError for those that a file of latents does not have."""
    known = studio.kept(network)
    if asked is None:
        return list(range(DEFAULT_HEADS if known is None else known))
    heads = dnnlib.parse_flag("--heads", asked, dnnlib.parse_ints)
    if known is not None and max(heads) >= known:
        raise ValueError(f"--heads={asked}: --w-file={studio.w_file} holds {known} head(s), of which 0 is the first")
    return heads


def _page() -> type[Page]:
    """Returns the class of pages. Raises ValueError where the package that serves them is missing."""
    try:
        from training.viewer.page import Page
    except ModuleNotFoundError as error:
        raise ValueError(f"pages need the package {error.name}: pip install '.[view]', or viser") from None
    return Page


def _require_free(host: str, port: int) -> None:
    """Raises ValueError if nobody can listen at the port."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        what = (error.strerror or "nobody can listen there").partition(" (")[0]
        raise ValueError(f"--host={host} --port={port}: {what}; give another --port") from None


def keep_serving(page: Page, watch: Callable[[], Mapping[str, Path]]) -> None:
    """Offers what `watch` finds, again and again, until it is interrupted. New networks are those at the end."""
    known = dict(page.studio.networks)
    while True:
        time.sleep(WATCHED_EVERY)
        try:
            found = dict(watch())
        except ValueError:  # a folder that is gone, or empty for now
            continue
        if found != known:
            fresh = [name for name in found if name not in known]
            page.offer(found, fresh[-1] if fresh else None)
            known = found


if __name__ == "__main__":
    main()
