"""Converts checkpoints: published ones to ours, ours to a small file for inference or to the published tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import torch

import dnnlib
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.published import records as official

NETWORKS = ("G", "D", "G_ema")


@click.command(context_settings={"show_default": True, "max_content_width": 120})
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False))
@click.option("--to", "layout", type=click.Choice(["splatgan", "official"]), default="splatgan",
              help="our checkpoint, or the tensors of the published layout (for torch.load)")  # fmt: skip
@click.option("--ema-only", is_flag=True, help="keep the averaged generator alone: enough for pictures and metrics")
@click.option("--coarse-scale", type=float, metavar="LN",
              help="start of the coarse splats' log scale; by default as the published source says")  # fmt: skip
@click.option("--data", metavar="DIR", help="take the geometry from this image folder; by default as IN has it")
def main(source, target, layout, ema_only, coarse_scale, data):
    """Write the checkpoint IN, published or ours, to the new file OUT. No code in IN is run.

    \b
    python convert_checkpoint.py ffhq512.pkl ffhq512-ema.pkl --ema-only
    """
    try:
        if Path(target).exists():
            raise ValueError(f"{target} exists already; choose another name or remove it")
        state = _read(source, ema_only, coarse_scale)
        imported = state["progress"].get("imported")
        if data is not None:
            state["geometry"] = ImageDataset(data).geometry.to_dict()
        if layout == "official":
            dropped = _save_published(target, state)
        else:
            save_checkpoint(target, {k: v for k, v in state.items() if k not in ("format", "revision", "checksum")})
            dropped = list(imported["dropped"]) if imported else []
            dropped += [name for name in (*NETWORKS, "opt") if _is_empty(state[name])]
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for name in NETWORKS:
        if state[name]:
            count = sum(tensor.numel() for tensor in state[name].values())
            click.echo(f"{name:8s}{len(state[name])} tensors, {count / 1e6:.2f} M numbers")
    if imported and layout == "splatgan":
        geometry = f"measured in {data}" if data else imported["geometry"]
        click.echo(
            f"Taken   {state['progress']['nimg'] / 1000:g} kimg ({imported['images_seen']}); geometry: {geometry}"
        )
    click.echo(f"Dropped {', '.join(dict.fromkeys(dropped)) or 'nothing'}")
    before, after = (dnnlib.format_bytes(os.path.getsize(path)) for path in (source, target))
    click.echo(f"{target}: {after}, from {before}")


def _read(source: str, ema_only: bool, coarse_scale: float | None) -> dict[str, Any]:
    """The records of `source`, with nothing but G_ema where that is enough."""
    if official.is_official(source):
        return official.read_official(source, coarse_scale, ema_only)
    if coarse_scale is not None:
        raise ValueError(f"--coarse-scale: {source} is ours and has it on record; leave the flag out")
    state = load_checkpoint(source)
    if ema_only:
        state |= {"G": {}, "D": {}, "opt": {"G": {}, "D": {}}}
    return state


def _is_empty(record: dict[str, Any]) -> bool:
    return not any(record.values()) if all(isinstance(v, dict) for v in record.values()) else not record


def _save_published(target: str, state: dict[str, Any]) -> list[str]:
    """Writes the published state dicts, whole or not at all; returns the names of what they have no room for."""
    config = TrainingConfig.from_dict(state["config"])
    content: dict[str, Any] = {
        "resolution": config.generator.resolution,
        "coarse_log_scale": config.generator.coarse_log_scale,
    }
    for name in NETWORKS:
        if state[name]:
            network = config.discriminator if name == "D" else config.generator
            content[name] = official.to_official("D" if name == "D" else "G", network, state[name])
    temporary = Path(f"{target}.part")
    try:
        torch.save(content, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return sorted(set(state) - set(content) - {"format", "checksum"})


if __name__ == "__main__":
    main()
