"""Starts networks from other weights: takes what fits by name and shape, and accounts for everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint import OPTIONAL_RECORDS, RECORDS, config_of, load_checkpoint
from training.config import NESTED, TrainingConfig
from training.families import family

LEAST_SHARE = 0.5  # of a network's values that must come from the file, if nothing else is asked for
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class Transfer:
    """Counts what one network took from a state dict."""

    network: str
    loaded: list[str]
    skipped: list[str]  # in the network, not in the file
    mismatched: list[str]  # in both, with other shapes; name and both shapes
    unused: list[str]  # in the file, not in the network
    share: float  # of the network's values that were loaded, 0..1

    def lines(self) -> list[str]:
        """Returns lines for the console."""
        found = [f"  {self.network}: loaded {len(self.loaded)} tensors, {self.share:.1%} of the values"]
        kinds = (("skipped (not in the file)", self.skipped), ("mismatched", self.mismatched), ("unused", self.unused))
        for kind, names in kinds:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            shown = f": {', '.join(names[:_NAMES_SHOWN])}{more}" if names else ""
            found.append(f"      {kind} {len(names)}{shown}")
        return found


def take_weights(name: str, module: nn.Module, state: dict[str, Tensor]) -> Transfer:
    """Copies into `module` what has the same name and shape in `state`; the rest keeps its values."""
    own = module.state_dict()
    fitting = {key: state[key] for key, value in own.items() if key in state and state[key].shape == value.shape}
    mismatched = [
        f"{key} {list(state[key].shape)} -> {list(value.shape)}"
        for key, value in own.items()
        if key in state and key not in fitting
    ]
    with torch.no_grad():
        for key, value in fitting.items():
            own[key].copy_(value)  # a state dict shares its tensors with the module
    total = sum(value.numel() for value in own.values())
    return Transfer(
        network=name,
        loaded=list(fitting),
        skipped=[key for key in own if key not in state],
        mismatched=mismatched,
        unused=[key for key in state if key not in own],
        share=sum(value.numel() for value in fitting.values()) / total,
    )


@dataclass(frozen=True)
class Weights:
    """Holds the weights of a checkpoint of any preset, without optimisers and progress."""

    path: str  # the file
    state: dict[str, Any]  # state dicts by network
    otherwise: list[str]  # values that networks were built with there and are not here: "name: theirs -> ours"
    warm: list[str]  # values of the schedules that a start from noise has: "name=value"

    def lines(self, transfers: list[Transfer]) -> list[str]:
        """Returns lines for the console: what was taken, what may act otherwise though it fits, and the schedules."""
        found = [f"Weights from {self.path}", *(line for transfer in transfers for line in transfer.lines())]
        if self.otherwise:
            found.append(f"  Built otherwise there, so that what fits may act otherwise: {', '.join(self.otherwise)}")
        if self.warm:
            found.append(f"  Warm start: {', '.join(self.warm)}")
        return found


def read_weights(path: str, config: TrainingConfig, least_share: float) -> Weights:
    """Reads the weights of a file, and finds out whether enough of them fits the networks of `config`.

    Raises CheckpointError for an unusable file, and ValueError with the shortfall if one of the networks would take
    less than `least_share` of its values from it.
    """
    state = load_checkpoint(path)
    networks = {"G", "D", "G_ema"} | set(state) - RECORDS - OPTIONAL_RECORDS  # further averages of G
    built = _built_otherwise(config_of(path, state), config)
    weights = Weights(path, {name: state[name] for name in networks}, built, _warm_values(config))
    with torch.device("meta"):  # shapes alone
        of = family(config.family)
        G, D = of.generator(config.generator), of.discriminator(config.discriminator)
    init_from(weights, {"G": G, "D": D, "G_ema": G}, least_share)
    return weights


def _built_otherwise(theirs: TrainingConfig, ours: TrainingConfig) -> list[str]:
    """Returns what `Weights.otherwise` holds. Between families, whose values have nothing in common, these alone."""
    if theirs.family != ours.family:
        return [f"family: {theirs.family} -> {ours.family}"]
    before, after = theirs.to_dict(), ours.to_dict()
    return [
        f"{part}.{name}: {before[part][name]} -> {value}"
        for part in ("generator", "discriminator")
        for name, value in after[part].items()
        if before[part][name] != value
    ]


def _warm_values(config: TrainingConfig) -> list[str]:
    """Returns what `Weights.warm` holds: values as they are, whether a warm start or the command line set them."""
    records = {name: getattr(config, name) for name in NESTED}
    return [
        f"{part}.{name}={getattr(record, name)!r}" for part, record in records.items() for name in record.warm_start()
    ]


def init_from(weights: Weights, networks: dict[str, nn.Module], least_share: float) -> list[Transfer]:
    """Starts the networks G, D and the averages of G from `weights`. Raises ValueError as `read_weights` does."""
    path, state = weights.path, weights.state
    transfers = [take_weights(name, module, state.get(name, state["G_ema"])) for name, module in networks.items()]
    for transfer in transfers:
        if transfer.share < least_share:
            example = (transfer.mismatched or transfer.skipped or ["none"])[0]
            raise ValueError(
                f"--init-from={path}: only {transfer.share:.1%} of {transfer.network}'s values are in the file, less "
                f"than --init-share={least_share:g} ({len(transfer.mismatched)} tensors have another shape, "
                f"{len(transfer.skipped)} are missing, such as {example})"
            )
    return transfers
