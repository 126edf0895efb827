"""Opens published CGS-GAN checkpoints as if we had written them. Nothing in the file is run; see docs/checkpoints.md.

`read_official` gives the records of our own checkpoints (training/checkpoint.py), so that what opens ours opens them.
What a published file does not say is taken as follows, and is said in `progress["imported"]`:

    images seen     whole kimg from a file name network-snapshot-NNNNNN.pkl, else optimiser steps x the published batch
    geometry        the published cameras (`PUBLISHED_GEOMETRY`); a data set at hand measures its own
    training flags  the published ones, with the learning rates of the optimisers
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaussian import Geometry
from torch_utils import random
from training import presets
from training.config import TrainingConfig
from training.families.cgs.generator import GeneratorConfig
from training.families.cgs.published import PUBLISHED_CLAMP, coarse_scale_in, from_official, to_official
from training.networks.discriminator import DiscriminatorConfig, channel_counts
from training.published import pickle_file as official_file
from training.published.pickle_file import StoredNetwork, StoredTensor, is_official
from training.published.restricted_pickle import Instance, RefusedPickle

__all__ = ["PUBLISHED_GEOMETRY", "from_official", "is_official", "read_official", "to_official"]

# Cameras of the published networks: EG3D's FFHQ labels (Chan et al. 2022), as the published sample script uses them.
PUBLISHED_GEOMETRY = Geometry(
    pivot=(0.0, 0.0, 0.0),
    centre=(0.0, 0.0, 0.0),
    radius=2.7,
    intrinsics=((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0)),
)
PUBLISHED_YAW = 0.3 * math.pi  # radians to either side, as far as the published samples turn
PUBLISHED_BATCH = 32
GRID_ROWS, GRID_COLUMNS = 6, 7  # of the training pictures

NETWORKS = ("G", "D", "G_ema")
PHASES = {"G": ("Gboth", "Gmain", "Greg"), "D": ("Dmain", "Dreg", "Dboth")}  # the first with a record counts
# Records that are known and hold nothing that a run of ours needs.
UNUSED = {"training_set_kwargs", "augment_pipe", "pl_mean"} | {
    f"{phase}_{what}" for phases in PHASES.values() for phase in phases for what in ("interval", "module", "opt")
}
_OPTIMIZER_KEYS = {"step", "exp_avg", "exp_avg_sq"}
_SNAPSHOT = re.compile(r"network-snapshot-(\d{6,9})\.pkl")
MAX_PATH = 4096
MAX_STEPS = 2**31
LONGEST_REASON = 1000  # characters; a file can make names of any length
COPIES = 4  # times the file: how much its tensors may take together. One tensor may serve G and G_ema.


def read_official(
    path: str | os.PathLike, coarse_log_scale: float | None = None, ema_only: bool = False
) -> dict[str, Any]:
    """The records of a published checkpoint in the layout of ours, without format, revision and checksum.

    coarse_log_scale: where a coarse anchor's log scale starts, for files whose source text does not say it once.
    ema_only: G_ema alone; G, D and the optimisers' records are empty.
    Networks and optimiser states that the file lacks are empty too. Raises ValueError, with the path, for anything that
    is not on the list of what a published file holds, and OSError.
    """
    try:
        return _Import(path, coarse_log_scale, ema_only).records()
    except RefusedPickle as error:
        raise ValueError(f"{path}: refused as a published checkpoint: {str(error)[:LONGEST_REASON]}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:LONGEST_REASON]}") from None


@dataclass
class _Network:
    """One network of the file, in our layout."""

    config: GeneratorConfig | DiscriminatorConfig
    tensors: dict[str, Tensor]
    parameters: list[str]


class _Import:
    """One reading of one file."""

    def __init__(self, path: str | os.PathLike, coarse_log_scale: float | None, ema_only: bool):
        self.path, self.coarse_log_scale, self.ema_only = Path(path), coarse_log_scale, ema_only
        self.stored = official_file.open_records(path)
        self.budget = COPIES * self.path.stat().st_size  # bytes of tensors
        self.used: set[str] = set()  # records besides the networks

    def records(self) -> dict[str, Any]:
        known = {*NETWORKS, *UNUSED}
        if unknown := sorted(set(self.stored) - known):
            raise RefusedPickle(f"it holds {', '.join(map(ascii, unknown[:5]))}; known are {', '.join(sorted(known))}")
        if not isinstance(self.stored.get("G_ema"), Instance):
            raise RefusedPickle("it holds no generator (G_ema)")
        wanted = ("G_ema",) if self.ema_only else NETWORKS
        networks = {name: self.network(name) for name in wanted if self.stored.get(name) is not None}
        config = self.config(networks)
        opt = {name: self.optimizer(name, networks[name]) for name in ("G", "D") if name in networks}
        return {
            "config": config.to_dict(),
            "geometry": PUBLISHED_GEOMETRY.to_dict(),
            "progress": self.progress(opt.get("G", {})),
            **{name: networks[name].tensors if name in networks else {} for name in NETWORKS},
            "opt": {"G": opt.get("G", {}), "D": opt.get("D", {})},
            "grid": _grid(networks["G_ema"].config.z_dim),
            "best": {},
        }

    def read(self, tensor: StoredTensor) -> Tensor:
        self.budget -= tensor.nbytes
        if self.budget < 0:
            raise RefusedPickle(f"its tensors together are more than {COPIES} times as large as the file")
        return tensor.read()

    # ------------------------------------------------------------------ networks

    def network(self, name: str) -> _Network:
        stored = official_file.network(self.stored[name])
        tensors = {key: self.read(tensor) for key, tensor in stored.tensors.items()}
        try:
            if name == "D":
                config, tensors = from_official("D", tensors)
                config = _with_attributes(config, stored)
            else:
                config, tensors = from_official("G", tensors, coarse_log_scale=self.coarse_scale(stored))
                _check_num_ws(config, stored)
        except ValueError as error:
            raise ValueError(f"{name}: {str(error).removeprefix(f'{name[0]}: ')}") from None
        return _Network(config, tensors, stored.parameters)

    def coarse_scale(self, stored: StoredNetwork) -> float:
        """From the flag, else from the source text of the point generator."""
        if self.coarse_log_scale is not None:
            return self.coarse_log_scale
        texts = [m.source for m in stored.modules.values() if m.class_name == "PointGenerator"]
        return coarse_scale_in("\n".join(texts))

    # ------------------------------------------------------------------ what a run of ours needs besides

    def config(self, networks: dict[str, _Network]) -> TrainingConfig:
        generator = networks["G_ema"].config
        if "G" in networks and networks["G"].config != generator:
            raise ValueError("its G and its G_ema differ in size or coarse start scale")
        if "D" in networks:
            discriminator = networks["D"].config
        else:
            size = generator.resolution
            discriminator = DiscriminatorConfig(size, channel_counts(size), conv_clamp=PUBLISHED_CLAMP)
        if discriminator.resolution != generator.resolution:
            raise ValueError(f"its G makes {generator.resolution} px, its D reads {discriminator.resolution} px")
        preset = {size: name for name, size in presets.PUBLISHED.items()}.get(generator.resolution, "published")
        return TrainingConfig(generator, discriminator, preset=preset, data=_data_path(self.stored))

    def optimizer(self, name: str, network: _Network) -> dict[str, dict[str, Tensor]]:
        """Adam's moments by parameter name, {} where the file has none."""
        record = next((key for phase in PHASES[name] if (key := f"{phase}_opt") in self.stored), None)
        if record is None or self.stored[record] is None:
            return {}
        self.used.add(record)
        try:
            state, groups = self.stored[record]["state"], self.stored[record]["param_groups"]
            sizes = [len(group["params"]) for group in groups]
            indices = [index for group in groups for index in group["params"]]
            place = {index: i for i, index in enumerate(indices) if type(index) is int}
            entries = {place[index]: dict(entry.items()) for index, entry in state.items()}
        except (TypeError, KeyError, ValueError, AttributeError):
            raise RefusedPickle(f"{record} is not the state of an optimiser") from None
        names = _optimizer_order(network.parameters, sizes)
        if names is None:
            raise ValueError(f"{record} has groups of {sizes} parameters, its {name} has {len(network.parameters)}")
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
        return self.read(value)

    def progress(self, moments: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """How far it was trained, as far as the file tells; a run of ours continues from there."""
        steps = int(max((entry["step"].item() for entry in moments.values()), default=0))
        named = _SNAPSHOT.fullmatch(self.path.name)
        nimg = int(named[1]) * 1000 if named else steps * PUBLISHED_BATCH
        dropped = sorted(set(self.stored) - {*NETWORKS, *([] if self.ema_only else self.used)})
        return {
            "nimg": nimg,
            "step": steps or nimg // PUBLISHED_BATCH,
            "tick": nimg // 1000,
            "imported": {
                "images_seen": _seen(bool(named), steps),
                "geometry": "published cameras",
                "dropped": dropped,
            },
        }


def _seen(named: bool, steps: int) -> str:
    if named:
        return "from the file name"
    return f"{steps} optimiser steps x {PUBLISHED_BATCH}" if steps else "the file does not say; see --resume-kimg"


def _optimizer_order(parameters: list[str], sizes: list[int]) -> list[str] | None:
    """Names by index: all in one group, or the published generator's two with `_xyz` alone and last; else None."""
    if sizes == [len(parameters)]:
        return parameters
    if "_xyz" in parameters and sizes == [len(parameters) - 1, 1]:
        return [name for name in parameters if name != "_xyz"] + ["_xyz"]
    return None


def _with_attributes(config: DiscriminatorConfig, stored: StoredNetwork) -> DiscriminatorConfig:
    """What no shape tells, where the modules say it: the clamp and the minibatch-std group."""
    clamp = stored.attribute(f"b{config.resolution}.conv0", "conv_clamp", config.conv_clamp)
    group = stored.attribute("b4.mbstd", "group_size", config.minibatch_std_group)
    if not isinstance(clamp, int | float | None) or not isinstance(group, int):
        raise ValueError("D: conv_clamp or group_size is not a number")
    clamp = None if clamp is None else float(clamp)
    return dataclasses.replace(config, conv_clamp=clamp, minibatch_std_group=group)


def _check_num_ws(config: GeneratorConfig, stored: StoredNetwork) -> None:
    """One w, or the same w once per block; anything else would be another network."""
    blocks = config.first_blocks + config.num_levels - 1
    for path in ("", "mapping_network"):
        found = stored.attribute(path, "num_ws", 1)
        if found not in (1, blocks):
            raise ValueError(f"G: num_ws of another network; legal are 1 and {blocks}, one per block")


def _data_path(stored: dict[str, Any]) -> str:
    kwargs = stored.get("training_set_kwargs")
    path = kwargs.get("path") if isinstance(kwargs, dict) else None
    return path if isinstance(path, str) and path.isprintable() and len(path) < MAX_PATH else "unknown"


def _grid(z_dim: int) -> dict[str, Tensor]:
    """Latents and cameras of the training pictures, over the yaws of the published samples."""
    yaws = torch.linspace(-PUBLISHED_YAW, PUBLISHED_YAW, GRID_COLUMNS)
    latents = random.normal(0, "grid/z", range(GRID_ROWS), (z_dim,))
    return {"z": latents, "labels": PUBLISHED_GEOMETRY.orbit(yaws).labels}


def _comma(names: Iterable[str]) -> str:
    return ", ".join(names)
