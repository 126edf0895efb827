"""Collects statistics of a training run on the device, without a sync, and reduces them over ranks once per tick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_utils import distributed


class Collector:
    """Sums values by name. `report` never waits for the device; `reduce` does, once for all names together.

    Every rank must report the same names between two calls of `reduce`.
    """

    def __init__(self) -> None:
        self._moments: dict[str, Tensor] = {}  # name -> [count, sum] float64
        self._rows: dict[str, Tensor] = {}  # prefix -> [names, 2]
        self._row_names: dict[str, list[str]] = {}

    def report(self, name: str, values: Tensor | float) -> None:
        """Adds all elements of `values` to the mean of `name`; non-finite elements make it non-finite."""
        values = torch.as_tensor(values).detach()
        moments = torch.stack([values.new_full((), float(values.numel()), dtype=torch.float64), values.double().sum()])
        seen = self._moments.get(name)
        self._moments[name] = moments if seen is None else seen + moments

    def report_rows(self, prefix: str, names: list[str], values: Tensor) -> None:
        """Adds `values[i]` to the mean of `prefix/names[i]` at once; fast while the names of a prefix stay the same."""
        if self._row_names.setdefault(prefix, names) != names:  # a network that grows has more from now on
            for name, moments in zip(self._row_names[prefix], self._rows.pop(prefix, ()), strict=False):
                full = f"{prefix}/{name}"
                self._moments[full] = self._moments.get(full, torch.zeros_like(moments)) + moments
            self._row_names[prefix] = names
        moments = torch.stack([torch.ones_like(values), values.detach()], dim=1).double()
        seen = self._rows.get(prefix)
        self._rows[prefix] = moments if seen is None else seen + moments

    def reduce(self) -> dict[str, float]:
        """Returns the mean of every name over all that all ranks reported since the last call, and resets them."""
        if not self._moments and not self._rows:
            return {}
        names = sorted(self._moments)
        moments = [self._moments[n][None] for n in names]
        for prefix in sorted(self._rows):
            names += [f"{prefix}/{n}" for n in self._row_names[prefix]]
            moments.append(self._rows[prefix])
        total = distributed.all_reduce_sum(torch.cat(moments)).cpu()  # [names, 2], one sync
        self._moments, self._rows = {}, {}
        sums: dict[str, Tensor] = {}
        for name, moments in zip(names, total, strict=True):
            sums[name] = sums[name] + moments if name in sums else moments
        return {name: float(s / c) for name, (c, s) in sums.items()}

    def state(self) -> dict[str, Any]:
        """Returns what this rank reported since the last `reduce`, as tensors and plain values."""
        return {
            "moments": {name: moments.cpu() for name, moments in self._moments.items()},
            "rows": {
                prefix: {"names": self._row_names[prefix], "moments": rows.cpu()} for prefix, rows in self._rows.items()
            },
        }

    def load_state(self, states: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Restores the `state` of every rank, given in rank order.

        If the number of ranks has changed, rank 0 takes the sum of all states and the others zeros of the same names.
        """
        if not states:
            return
        same = len(states) == distributed.world_size()
        own = states[distributed.rank()] if same else _sum_of(states)
        take = torch.clone if same or distributed.rank() == 0 else torch.zeros_like
        self._moments = {name: take(moments).to(device) for name, moments in own["moments"].items()}
        self._rows = {prefix: take(rows["moments"]).to(device) for prefix, rows in own["rows"].items()}
        self._row_names = {prefix: list(rows["names"]) for prefix, rows in own["rows"].items()}


def _sum_of(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Adds up the states of all ranks, which report the same names."""
    first = states[0]
    return {
        "moments": {n: torch.stack([s["moments"][n] for s in states]).sum(0) for n in first["moments"]},
        "rows": {
            p: {"names": r["names"], "moments": torch.stack([s["rows"][p]["moments"] for s in states]).sum(0)}
            for p, r in first["rows"].items()
        },
    }
