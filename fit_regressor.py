"""Trains the network that reads the coefficients of a morphable model off pictures."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import click
import torch
from tqdm import tqdm

from dnnlib.command import CONTEXT, GroupedCommand, option, version
from dnnlib.numbers import SEED
from training.control.fitting import explained, fit
from training.control.regressor import RegressorConfig, default_path, save_regressor
from training.morphable.head import EXPRESSION, IDENTITY, TEXTURE
from training.morphable.model import PROCEDURAL
from training.morphable.models import morphable_model

AT_LEAST_1 = click.IntRange(min=1)
NAMES = {"identity": IDENTITY, "expression": EXPRESSION, "texture": TEXTURE}


def table(errors: Mapping[str, Mapping[str, Sequence[float]]], names: Mapping[str, Sequence[str]]) -> str:
    """Returns lines with the shares of variance that `explained` found, for every block and what has a name in it."""
    sharp, coarse = errors["sharp"], errors["coarse"]
    lines = [f"{'variance explained':20} {'sharp':>6} {'coarse':>6}"]
    for block in sharp:
        lines.append(f"{block:20} {fmean(sharp[block]):6.3f} {fmean(coarse[block]):6.3f}")
        for name, *shares in zip(names.get(block, ()), sharp[block], coarse[block], strict=False):
            lines.append(f"    {name:16} {shares[0]:6.3f} {shares[1]:6.3f}")
    return "\n".join(lines)


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@option(
    "--morphable", default=PROCEDURAL, metavar="FILE.npz", help="model whose coefficients are read; docs/control.md"
)
@option("--dest", metavar="FILE", show_default="the cache, by the model's content", help="where the network is kept")
@option("--pictures", type=AT_LEAST_1, default=RegressorConfig.pictures, help="renders that it learns from")
@option("--steps", type=AT_LEAST_1, default=RegressorConfig.steps, help="steps of training")
@option("--seed", type=SEED, default=0, help="the same seed gives the same network")
@version
@click.pass_context
def main(ctx: click.Context, morphable: str, dest: str | None, pictures: int, steps: int, seed: int) -> None:
    """Train a regressor of coefficients on renders of a morphable model, and say what it explains of held-out ones.

    \b
    python fit_regressor.py
    """
    ctx.with_resource(dnnlib.stoppable())
    try:
        model = morphable_model(morphable)
        landmarks = len(model.landmarks)
        config = RegressorConfig(
            model.key, dict(model.sizes), landmarks=landmarks, pictures=pictures, steps=steps, seed=seed
        )
        if pictures < config.batch:
            raise ValueError(f"--pictures={pictures}: at least {config.batch} are legal, a batch")
        target = Path(dest) if dest else default_path(model.key)
        dnnlib.make_folder(target.parent)
        started = time.perf_counter()
        with tqdm(total=pictures + steps, unit="it", leave=False, disable=None) as bar:
            offsets = {"pictures": 0, "steps": pictures}

            def progress(what: str, done: int, _: int) -> None:
                bar.update(offsets[what] + done - bar.n)

            regressor = fit(config, model, progress)
        errors = explained(regressor, model)
        save_regressor(target, regressor, errors)
    except (ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    click.echo(table(errors, NAMES if morphable == PROCEDURAL else {}))
    click.echo(f"{time.perf_counter() - started:.0f} s with {torch.get_num_threads()} threads: {target}")


if __name__ == "__main__":
    main()
