"""Writes files in the format of published pi-GAN networks, without the published code.

Modules of ours lend their parts; stand-ins under the published names do the pickling, by torch's own torch.save.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.families.pigan.discriminator import Block, CoordConv, Discriminator, Entry
from training.families.pigan.generator import Generator
from training.families.pigan.siren import FilmLayer, MappingNetwork, Siren

ROOTS = {"ccs": "CCSEncoderDiscriminator", "strided": "StridedDiscriminator"}
NAMES = {
    Generator: "generators.generators.ImplicitGenerator3d",
    FilmLayer: "siren.siren.FiLMLayer",
    MappingNetwork: "siren.siren.CustomMappingNetwork",
    CoordConv: "discriminators.sgdiscriminators.CoordConv",
    Entry: "discriminators.sgdiscriminators.AdapterBlock",
    Block: "discriminators.sgdiscriminators.ResidualCCBlock",
}
SIRENS = {"spatial": "siren.siren.SPATIALSIRENBASELINE", "tall": "siren.siren.TALLSIREN"}


def _name_of(module: nn.Module, variant: str) -> str | None:
    if isinstance(module, Siren):
        return SIRENS[variant]
    if isinstance(module, Discriminator):
        smooth = f"discriminators.discriminators.{'ProgressiveEncoderDiscriminator'}"
        kind = module.config.kind
        return smooth if kind == "progressive" else f"discriminators.sgdiscriminators.{ROOTS[kind]}"
    return NAMES.get(type(module))


@contextlib.contextmanager
def published_names() -> Iterator[Any]:
    """Within it, `make(name, base)` returns a class of a published name that Python's pickler finds."""
    added: list[str] = []

    def make(name: str, base: type = object) -> type:
        module, _, short = name.rpartition(".")
        for part in (module.rpartition(".")[0], module):
            if part and part not in sys.modules:
                sys.modules[part] = types.ModuleType(part)
                added.append(part)
        found = getattr(sys.modules[module], short, None)
        if found is None:
            found = type(short, (base,), {"__module__": module})
            setattr(sys.modules[module], short, found)
        return found

    try:
        yield make
    finally:
        for name in added:
            del sys.modules[name]


def disguised(module: nn.Module, variant: str, make: Any) -> nn.Module:
    """The same module with parts of the published classes, and attributes that published files have besides."""
    name = _name_of(module, variant)
    copy = make(name, nn.Module).__new__(make(name, nn.Module)) if name else module.__new__(type(module))
    state = {key: value for key, value in module.__dict__.items() if key not in ("config", "_mean", "info")}
    state["_modules"] = {
        key: None if part is None else disguised(part, variant, make) for key, part in module._modules.items()
    }
    if isinstance(module, Generator):
        state |= {"device": torch.device("cpu"), "step": 7, "epoch": 1, "avg_frequencies": torch.zeros(1, 8)}
    copy.__dict__.update(state)
    return copy


def write(folder: Path, G: Generator, average: Generator, D: Discriminator | None = None, prefix: str = "") -> Path:
    """Writes generator.pth, ema.pth and discriminator.pth; returns the first."""
    path = folder / f"{prefix}generator.pth"
    with published_names() as make:
        torch.save(disguised(G, G.config.variant, make), path)
        ema = make("torch_ema.ema.ExponentialMovingAverage")()
        ema.__dict__.update(
            decay=0.999, num_updates=7, collected_params=[],
            shadow_params=[p.detach().clone() for p in average.parameters()],
        )  # fmt: skip
        torch.save(ema, folder / f"{prefix}ema.pth")
        if D is not None:
            torch.save(disguised(D, "", make), folder / f"{prefix}discriminator.pth")
    return path
