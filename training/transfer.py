"""Starting from other weights: what fits by name and shape is taken, and everything is accounted for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint import load_checkpoint

LEAST_SHARE = 0.5  # of a network's values that must come from the file, if nothing else is asked for
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class Transfer:
    """What one network took from a state dict."""

    network: str
    loaded: list[str]
    skipped: list[str]  # in the network, not in the file
    mismatched: list[str]  # in both, with other shapes; name and both shapes
    unused: list[str]  # in the file, not in the network
    share: float  # of the network's values that were loaded, 0..1

    def lines(self) -> list[str]:
        """For the console."""
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


def init_from(path: str | os.PathLike, networks: dict[str, nn.Module], least_share: float) -> list[Transfer]:
    """Starts the networks "G", "D" and "G_ema" from a checkpoint of any preset: weights, no optimiser, no progress.

    Raises CheckpointError for an unusable file, and ValueError with the shortfall if one of them would take less than
    `least_share` of its values from the file.
    """
    state: dict[str, Any] = load_checkpoint(path)
    transfers = [take_weights(name, module, state[name]) for name, module in networks.items()]
    for transfer in transfers:
        if transfer.share < least_share:
            example = (transfer.mismatched or transfer.skipped or ["none"])[0]
            raise ValueError(
                f"--init-from={path}: only {transfer.share:.1%} of {transfer.network}'s values are in the file, less "
                f"than --init-share={least_share:g} ({len(transfer.mismatched)} tensors have another shape, "
                f"{len(transfer.skipped)} are missing, such as {example})"
            )
    return transfers
