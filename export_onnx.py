"""Writes a trained generator as ONNX files, which make heads without PyTorch."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

from pathlib import Path

import click
import torch

from dnnlib.command import CONTEXT, GroupedCommand, group, option, version
from training.checkpoint import CheckpointError, load_generator
from training.visualization import onnx_files

# fmt: off
FILES = group(
    "Files",
    option("--network", required=True, metavar="PKL", help="checkpoint: network-snapshot-NNNNNN.pkl"),
    option("--outdir", default="results", metavar="DIR", help="where the two files go"),
)
# fmt: on


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@version
@click.pass_context
@torch.no_grad()
def main(ctx: click.Context, network: str, outdir: str) -> None:
    """Write the mapping (z and psi to ws) and the synthesis (ws to splats) of a generator as ONNX files.

    \b
    python export_onnx.py --outdir=out --network=net.pkl
    """
    ctx.with_resource(dnnlib.stoppable())
    try:
        onnx_files.require_libraries()
        G = load_generator(network, "cpu")
        stem = dnnlib.make_folder(outdir) / Path(network).stem
        for path in onnx_files.save_onnx(stem, G):
            click.echo(path)
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error


if __name__ == "__main__":
    main()
