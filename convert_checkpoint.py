"""Converts checkpoints: published ones to ours, ours to a small file for inference or to the published tensors."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib.command import in_a_folder, version
from dnnlib.numbers import FINITE
from training.checkpoint import (
    RECORDS,
    CheckpointError,
    config_of,
    load_checkpoint,
    require_average,
    save_checkpoint,
)
from training.dataset import ImageDataset
from training.families import FAMILIES, family
from training.families.base import Option
from training.published import gallery
from training.published.pickle_file import file_of
from training.published.records import is_published, read_published

NETWORKS = ("G", "D", "G_ema")


def _published_options() -> dict[str, tuple[Option, Any]]:
    """Returns the options that the families' published files need: parameter -> (option, type)."""
    found = {}
    for member in FAMILIES.values():
        types = {f"generator.{name}": kind for name, kind in member.generator_config.field_types().items()}
        for option in member.published.options if member.published is not None else ():
            found[option.target.replace(".", "_")] = (option, types[option.target])
    return found


PUBLISHED_OPTIONS = _published_options()


def _add_published_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, (option, kind) in PUBLISHED_OPTIONS.items():
        command = click.option(*option.flags, name, type=kind, default=None, help=option.help)(command)
    return command


def _list(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(gallery.table())
        ctx.exit()


@click.command(context_settings={"show_default": True, "max_content_width": 120})
@click.argument("source", metavar="IN", type=click.Path(exists=True))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False), callback=in_a_folder)
@click.option("--to", "layout", type=click.Choice(["splatgan", "published", "official"]), default="splatgan",
              metavar="[splatgan|published]",
              help="our checkpoint, or the tensors of the published layout (for torch.load)")  # fmt: skip
@click.option("--ema-only", is_flag=True, help="keep the averaged generator alone: enough for pictures and metrics")
@click.option("--ema", "ema_kimg", type=FINITE, metavar="KIMG",
              help="make the average of this half-life, which train.py --ema kept, the one that is shown")  # fmt: skip
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list,
              help="print the published networks that are known, and where they are, and exit")  # fmt: skip
@_add_published_options
@click.option("--data", metavar="DIR", help="take the geometry from this image folder; by default as IN has it")
@version
def main(
    source: str, target: str, layout: str, ema_only: bool, ema_kimg: float | None, data: str | None, **stated: Any
) -> None:
    """Write the checkpoint IN, published or ours, to the new file OUT. No code in IN is run.

    \b
    python convert_checkpoint.py ffhq512.pkl ffhq512-ema.pkl --ema-only
    """
    try:
        if Path(target).exists():
            raise ValueError(f"{target} exists already; choose another name or remove it")
        state = _read(source, ema_only, {name: value for name, value in stated.items() if value is not None})
        if ema_kimg is not None:
            state["G_ema"] = state[require_average(source, state, ema_kimg)]
        state = _without_averages(state) if ema_only else state
        if data is not None:
            state["geometry"] = ImageDataset(data).geometry.to_dict()
        dropped = _write(target, state) if layout == "splatgan" else _write_published(source, target, state)
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    _report(state, data, says_origin=layout == "splatgan")
    if is_published(source):
        click.echo(_listed(source))
    click.echo(f"Dropped {', '.join(dict.fromkeys(dropped)) or 'nothing'}")
    before, after = (dnnlib.format_bytes(os.path.getsize(path)) for path in (file_of(source), target))
    click.echo(f"{target}: {after}, from {before}")


def _read(source: str, ema_only: bool, stated: dict[str, Any]) -> dict[str, Any]:
    """Reads the records of `source`, with nothing but G_ema where that is enough."""
    if is_published(source):
        return read_published(source, {PUBLISHED_OPTIONS[name][0].target: v for name, v in stated.items()}, ema_only)
    if stated:
        flag = PUBLISHED_OPTIONS[next(iter(stated))][0].flags[0]
        raise ValueError(f"{flag}: {source} is ours and has it on record; leave the flag out")
    state = load_checkpoint(source)
    if ema_only:
        state |= {"G": {}, "D": {}, "opt": {name: {} for name in state["opt"]}}
    return state


def _without_averages(state: dict[str, Any]) -> dict[str, Any]:
    return {name: record for name, record in state.items() if name in RECORDS}


def _write(target: str, state: dict[str, Any]) -> list[str]:
    """Writes a checkpoint of ours; returns the names of what is not in it, though it was or might have been in IN."""
    save_checkpoint(target, {k: v for k, v in state.items() if k not in ("format", "revision", "checksum")})
    dropped = list(state["progress"].get("imported", {}).get("dropped", ()))
    return dropped + [name for name in (*NETWORKS, "opt") if _is_empty(state[name])]


def _is_empty(record: dict[str, Any]) -> bool:
    return not any(record.values()) if all(isinstance(v, dict) for v in record.values()) else not record


def _write_published(source: str, target: str, state: dict[str, Any]) -> list[str]:
    """Writes the published state dicts, whole or not at all; returns the names of what they have no room for."""
    config = config_of(source, state)
    published = family(config.family).published
    if published is None:
        raise ValueError(f"--to=published: the family {config.family!r} has no published layout")
    networks = {name: state[name] for name in NETWORKS if state[name]}
    try:
        content = published.to_published(config.generator, config.discriminator, networks)
    except ValueError as error:
        raise ValueError(f"--to=published: {error}") from None
    temporary = Path(f"{target}.part")
    try:
        torch.save(content, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return sorted(set(state) - set(content) - {"format", "checksum"})


def _listed(source: str) -> str:
    """Says which published network a file is, going by its content."""
    sha256 = dnnlib.file_sha256(file_of(source))
    network = gallery.find(sha256)
    known = f"{network.system}, {network.name}" if network else "not among those whose sha256 --list knows"
    return f"sha256  {sha256}: {known}"


def _report(state: dict[str, Any], data: str | None, says_origin: bool) -> None:
    """Prints the size of every network and, for a published file, what was taken for what it does not say."""
    for name in NETWORKS:
        if state[name]:
            count = sum(tensor.numel() for tensor in state[name].values())
            click.echo(f"{name:8s}{len(state[name])} tensors, {count / 1e6:.2f} M numbers")
    imported = state["progress"].get("imported")
    if imported and says_origin:
        geometry = f"measured in {data}" if data else imported["geometry"]
        click.echo(
            f"Taken   {state['progress']['nimg'] / 1000:g} kimg ({imported['images_seen']}); geometry: {geometry}"
        )


if __name__ == "__main__":
    main()
