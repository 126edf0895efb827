"""Opens published checkpoints as if we had written them. Nothing in a file is run; see docs/checkpoints.md.

`read_published` gives the records of our own checkpoints (training/checkpoint.py), so that what opens ours opens them.
The families say which files are theirs and what is in them (`training.families.base.PublishedFormat`). What a file does
not say is taken as follows, and is said in `progress["imported"]`:

    images seen     whole kimg from a file name network-snapshot-NNNNNN.pkl or checkpoint-N.pkl, else optimiser steps
                    x the published batch
    geometry        the published cameras; a data set at hand measures its own
    training flags  the published defaults, learning rates included
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gaussian import Geometry
from torch_utils import random
from training.config import TrainingConfig
from training.families import FAMILIES
from training.families.base import Family, PublishedFormat, PublishedRun
from training.published import pickle_file
from training.published.module_files import is_module_file, open_modules
from training.published.pickle_file import StoredFile, StoredNetwork, StoredTensor, file_of, open_file
from training.published.restricted_pickle import RefusedPickle

__all__ = ["is_published", "read_published"]

NETWORKS = ("G", "D", "G_ema")
GRID_ROWS, GRID_COLUMNS = 6, 7  # of the training pictures
MAX_PATH = 4096
MAX_STEPS = 2**31
LONGEST_REASON = 1000  # characters; a file can make names of any length
_OPTIMIZER_KEYS = {"step", "exp_avg", "exp_avg_sq"}
_SNAPSHOT = re.compile(r"(?:network-snapshot-(?=\d{6})|checkpoint-)(\d{1,9})\.pkl")


def is_published(path: str | os.PathLike) -> bool:
    """Says whether a file is a bare pickle, or holds a module, as published checkpoints do and ours do not."""
    return pickle_file.is_published(path) or is_module_file(path)


def read_published(
    path: str | os.PathLike,
    stated: Mapping[str, Any] | None = None,  # what the file may leave open: target of the family's option -> value
    ema_only: bool = False,  # G_ema alone: G, D and the optimisers' records are empty
) -> dict[str, Any]:
    """Reads a published checkpoint into the records of ours, without format, revision and checksum.

    Networks and optimiser states that the file lacks are empty. Raises ValueError, with the path, for anything that is
    not on the list of what a published file holds, and OSError.
    """
    try:
        path, classes = file_of(path), {name for _, layout in _layouts() for name in layout.classes}
        if is_module_file(path):
            file = open_modules(path, [layout.files for _, layout in _layouts() if layout.files], classes)
        else:
            file = open_file(path, classes)
        family, layout = _family_of(file)
        _check_stated(family, layout, stated or {})
        return _Import(file, family, layout, stated or {}, ema_only).records()
    except RefusedPickle as error:
        raise ValueError(f"{path}: refused as a published checkpoint: {str(error)[:LONGEST_REASON]}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:LONGEST_REASON]}") from None


def _layouts() -> list[tuple[Family, PublishedFormat]]:
    return [(family, family.published) for family in FAMILIES.values() if family.published is not None]


def _family_of(file: StoredFile) -> tuple[Family, PublishedFormat]:
    for family, layout in _layouts():
        if layout.recognises(file):
            return family, layout
    sought = "; ".join(f"{family.name}: {layout.looks_for}" for family, layout in _layouts())
    raise RefusedPickle(f"it holds no generator of a known family ({sought})")


def _check_stated(family: Family, layout: PublishedFormat, stated: Mapping[str, Any]) -> None:
    flags = {option.target: option.flags[0] for _, other in _layouts() for option in other.options}
    if useless := sorted(set(stated) - {option.target for option in layout.options}):
        raise ValueError(f"{flags.get(useless[0], useless[0])} is not for files of the family {family.name!r}")


@dataclass
class _Network:
    """Holds one network of the file, in our layout."""

    config: Any  # of the family's own type
    tensors: dict[str, Tensor]
    parameters: list[str]  # published names, in the order in which the optimiser saw them


@dataclass
class _Import:
    """Turns one open file into our records."""

    file: StoredFile
    family: Family
    layout: PublishedFormat
    stated: Mapping[str, Any]
    ema_only: bool
    unread: list[str] = field(default_factory=list)  # tensors that the published code does not read either

    def records(self) -> dict[str, Any]:
        if unknown := sorted(set(self.file.records) - self.layout.records):
            known = ", ".join(sorted(self.layout.records))
            raise RefusedPickle(f"it holds {', '.join(map(ascii, unknown[:5]))}; known are {known}")
        wanted = ("G_ema",) if self.ema_only else NETWORKS
        stored = {name: network for name in wanted if (network := self.file.network(name)) is not None}
        networks = {name: self.network(name, network) for name, network in stored.items()}
        generator = networks["G_ema"].config
        if "G" in networks and networks["G"].config != generator:
            raise ValueError("its G and its G_ema are networks of different configurations")
        run = self.layout.run(self.file, generator, networks["D"].config if "D" in networks else None)
        config = self.config(generator, run)
        used = {name: self.layout.optimizer_record(self.file, name) for name in ("G", "D") if name in networks}
        opt = {name: self.optimizer(record, networks[name]) for name, record in used.items() if record is not None}
        kept = {*NETWORKS, *(record for record in used.values() if record is not None)}
        return {
            "config": config.to_dict(),
            "geometry": run.geometry.to_dict(),
            "progress": self.progress(
                opt.get("G", {}), config.batch, sorted(set(self.file.records) - kept) + self.unread
            ),
            **{name: networks[name].tensors if name in networks else {} for name in NETWORKS},
            "opt": {"G": opt.get("G", {}), "D": opt.get("D", {})},
            "grid": _grid(generator.z_dim, run.geometry, run.yaw_limit),
            "best": {},
        }

    # ------------------------------------------------------------------ networks and settings

    def network(self, name: str, stored: StoredNetwork) -> _Network:
        tensors = {key: self.file.read(tensor) for key, tensor in stored.tensors.items()}
        config: Any
        try:
            if name == "D":
                config, tensors = self.layout.discriminator(stored, tensors)
            else:
                config, found = self.layout.generator(stored, tensors, self.stated)
                config = self.layout.completed(self.file, config, self.stated)
                read = {id(tensor) for tensor in found.values()}  # some have other names with us
                self.unread += [f"{name}.{k}" for k, t in tensors.items() if k not in found and id(t) not in read]
                tensors = found
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return _Network(config, tensors, stored.parameters)

    def config(self, generator: Any, run: PublishedRun) -> TrainingConfig:
        warm = self.layout.goes_on_warm
        return TrainingConfig(
            family=self.family.name,
            generator=generator.changed(**generator.warm_start()) if warm else generator,
            discriminator=run.discriminator,
            objective=run.objective.changed(**run.objective.warm_start()) if warm else run.objective,
            preset=run.preset,
            data=_data_path(self.file.records),
            **run.fields,
        )

    # ------------------------------------------------------------------ optimisers

    def optimizer(self, record: str, network: _Network) -> dict[str, dict[str, Tensor]]:
        """Returns Adam's moments by parameter name."""
        content = self.file.records[record]
        try:
            state, groups = content["state"], content["param_groups"]
            sizes = [len(group["params"]) for group in groups]
            indices = [index for group in groups for index in group["params"]]
            place = {index: i for i, index in enumerate(indices) if type(index) is int}
            entries = {place[index]: dict(entry.items()) for index, entry in state.items()}
        except (TypeError, KeyError, ValueError, AttributeError):
            raise RefusedPickle(f"{record} is not the state of an optimiser") from None
        names = self.layout.optimizer_order(network.parameters, sizes)
        if names is None:
            raise ValueError(f"{record} has groups of {sizes} parameters, its network has {len(network.parameters)}")
        named = {names[i]: entry for i, entry in entries.items()}
        return {n: self.moments(f"{record} of {n}", entry, network.tensors[n]) for n, entry in named.items()}

    def moments(self, what: str, entry: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        if set(entry) != _OPTIMIZER_KEYS:
            raise ValueError(f"{what}: {_comma(map(str, entry))} in place of {_comma(sorted(_OPTIMIZER_KEYS))}")
        step = entry["step"]  # a number in files of older PyTorch
        step = torch.tensor(float(step)) if isinstance(step, int | float) else self.tensor(what, step).float()
        if step.numel() != 1 or not 0 <= step.item() < MAX_STEPS:
            raise ValueError(f"{what}: step is no count")
        values = {"step": step.reshape(())}
        for key in ("exp_avg", "exp_avg_sq"):
            values[key] = self.tensor(what, entry[key])
            if values[key].shape != parameter.shape or values[key].dtype != parameter.dtype:
                raise ValueError(f"{what}: {key} {list(values[key].shape)} for {list(parameter.shape)}")
        return values

    def tensor(self, what: str, value: Any) -> Tensor:
        if not isinstance(value, StoredTensor):
            raise ValueError(f"{what} is not a tensor")
        return self.file.read(value)

    # ------------------------------------------------------------------ progress

    def progress(self, moments: dict[str, dict[str, Tensor]], batch: int, dropped: list[str]) -> dict[str, Any]:
        """Says how far the network was trained, as far as the file tells; a run of ours continues from there."""
        steps = int(max((entry["step"].item() for entry in moments.values()), default=0))
        named = _SNAPSHOT.fullmatch(self.file.path.name)
        nimg = int(named[1]) * 1000 if named else steps * batch
        if named:
            seen = "from the file name"
        else:
            seen = f"{steps} optimiser steps x {batch}" if steps else "the file does not say; see --resume-kimg"
        return {
            "nimg": nimg,
            "step": steps or nimg // batch,
            "tick": nimg // 1000,
            "imported": {"images_seen": seen, "geometry": "published cameras", "dropped": dropped},
        }


def _data_path(records: Mapping[str, Any]) -> str:
    kwargs = records.get("training_set_kwargs")
    path = kwargs.get("path") if isinstance(kwargs, dict) else None
    return path if isinstance(path, str) and path.isprintable() and len(path) < MAX_PATH else "unknown"


def _grid(z_dim: int, geometry: Geometry, yaw_limit: float) -> dict[str, Tensor]:
    """Returns latents and cameras of the training pictures, over the yaws of the published samples."""
    yaws = torch.linspace(-yaw_limit, yaw_limit, GRID_COLUMNS)
    latents = random.normal(0, "grid/z", range(GRID_ROWS), (z_dim,))
    return {"z": latents, "labels": geometry.orbit(yaws).labels}


def _comma(names: Iterable[str]) -> str:
    return ", ".join(names)
