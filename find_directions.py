"""Finds directions in w along which the heads of a trained generator change."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

from pathlib import Path

import click
import torch

from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, in_a_folder, option, version
from torch_utils import distributed
from training.checkpoint import CheckpointError, load_generator
from training.families.base import Generator
from training.visualization import directions
from training.visualization.directions import METHODS, SAMPLES, Directions

SHARE = {"pca": "of the variance of w", "layers": "of what the layers heed"}

# fmt: off
FILES = group(
    "Files",
    option("--network", required=True, metavar="PKL", help="checkpoint: network-snapshot-NNNNNN.pkl"),
    option("--dest", metavar="NPZ", callback=in_a_folder, show_default="NETWORK-directions.npz, beside the network",
           help="where the directions go"),
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
)

SEARCH = group(
    "Directions",
    option("--method", "methods", metavar="LIST", type=ChoiceList(METHODS), show_default="pca; none with --scores",
           help="pca: along which w spreads most; layers: which the layers that read w heed most"),
    option("--scores", metavar="FILE",
           help="a direction for each score of a table, .csv or .npz, with the columns seed,score,...: along it the "
           "score grows; the seeds are those of gen_samples.py"),
    option("--free", is_flag=True,
           help="with --scores: let other scores of the table go along where they do so in its heads"),
    option("--count", type=click.IntRange(min=1), default=10, help="of directions of each --method"),
    option("--samples", type=click.IntRange(min=2), default=SAMPLES, help="heads that the spread of w is measured on"),
)
# fmt: on


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@SEARCH
@version
@click.pass_context
@torch.no_grad()
def main(
    ctx: click.Context,
    network: str, dest: str | None, device: str,
    methods: tuple[str, ...] | None, scores: str | None, free: bool, count: int, samples: int,
) -> None:  # fmt: skip
    """Find directions in w, in standard deviations, for gen_videos.py, gen_samples.py and view.py.

    \b
    python find_directions.py --network=net.pkl
    python gen_videos.py --direction=net-directions.npz:pca1:3 --seeds=0-3 --outdir=out --network=net.pkl
    """
    ctx.with_resource(dnnlib.stoppable())
    try:
        if free and scores is None:
            raise ValueError("--free says what other scores do, and there is no --scores; leave it out")
        table = None if scores is None else directions.read_scores(scores)
        G = load_generator(network, distributed.initialise(device))
        found = _unsupervised(G, methods or (() if table else ("pca",)), count, samples)
        said = [SHARE[name.rstrip("0123456789")] for part in found for name in part.names]
        if table is not None:
            found.append(directions.by_scores(G, table, hold=not free))
            said += ["of its variance is told by w, on heads left out"] * len(table.names)
        whole = found[0]
        for part in found[1:]:
            whole = whole.joined(part)
        target = dest or str(Path(network).with_name(f"{Path(network).stem}-directions.npz"))
        directions.save_directions(target, whole)
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    for name, deviation, share, of in zip(whole.names, whole.deviations, whole.shares, said, strict=True):
        click.echo(f"{name:16} deviation {deviation:8.4f}   {share:7.1%} {of}")
    click.echo(target)


def _unsupervised(G: Generator, methods: tuple[str, ...], count: int, samples: int) -> list[Directions]:
    """Returns the directions of each method. Raises ValueError for more than there are, and as the methods do."""
    most = min(samples, G.w_dim)
    if methods and count > most:
        raise ValueError(f"--count={count}: {samples} heads and w of {G.w_dim} numbers have at most {most} directions")
    if not methods:
        return []
    w = directions.sampled_w(G, samples)
    find = {"pca": directions.principal, "layers": directions.closed_form}
    return [find[method](G, w, count) for method in methods]


if __name__ == "__main__":
    main()
