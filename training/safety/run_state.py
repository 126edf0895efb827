"""Holds everything of a run that has state: into the records of a checkpoint and back, and equal on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_utils import distributed
from torch_utils.fingerprint import fingerprint
from torch_utils.training_stats import Collector
from training import checkpoint
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.runs import resume


class RanksDiffer(RuntimeError):
    """Says which numbers differ between ranks where they must be equal."""


@dataclass
class RunState:
    """Holds what changes while a run trains."""

    networks: Mapping[str, nn.Module]  # G, D and the moving averages of G by name
    optimized: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]  # optimisers with what they step, by name
    objective: Mapping[str, Tensor]  # what else the objective changes, by name
    stats: Collector  # reported since the last tick
    grid: dict[str, Tensor]  # latents and camera labels of the pictures
    best: dict[str, Any] = field(default_factory=dict)  # best value of each metric, and the images seen then
    step: int = 0  # steps done
    nimg: int = 0  # images seen
    tick: int = 0  # number of the tick under way
    tick_nimg: int = 0  # images seen when it began

    def capture(self, config: TrainingConfig, dataset: ImageDataset, run_dir: Path) -> dict[str, Any]:
        """Returns all records of a checkpoint (training/checkpoint.py) between two steps. Every rank calls this."""
        return {
            "config": config.to_dict(),
            "geometry": dataset.geometry.to_dict(),
            "progress": {
                "nimg": self.nimg,
                "step": self.step,
                "tick": self.tick - 1,
                "tick_nimg": self.tick_nimg,
                "threads": torch.get_num_threads(),  # float sums depend on both
                "ranks": distributed.world_size(),
                "data": resume.data_mark(dataset),
                "files": resume.file_sizes(run_dir),
            },
            **{name: network.state_dict() for name, network in self.networks.items()},
            "opt": {
                name: checkpoint.optimizer_state(module, optimizer)
                for name, (module, optimizer) in self.optimized.items()
            },
            "objective": dict(self.objective),
            "grid": self.grid,
            "best": self.best,
            "statistics": distributed.gather_objects(self.stats.state()),
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Inverts `capture`.

        Raises CheckpointError if the optimisers' records name unknown parameters, or the objective's other tensors.
        """
        for name, network in self.networks.items():
            network.load_state_dict(state[name] if name in state else state["G_ema"])  # published files: one average
        for name, (module, optimizer) in self.optimized.items():
            checkpoint.load_optimizer_state(module, optimizer, state["opt"].get(name, {}))
        checkpoint.load_objective_state(self.objective, state.get("objective", {}))
        progress = state["progress"]
        self.nimg, self.step, self.tick = progress["nimg"], progress["step"], progress["tick"] + 1
        self.tick_nimg = progress.get("tick_nimg", self.nimg)
        self.stats.load_state(state.get("statistics", []), device)
        self.grid, self.best = state["grid"], state["best"]

    def check_ranks(self, device: torch.device) -> None:
        """Raises RanksDiffer naming the first tensor of the networks and optimisers that differs between ranks."""
        if distributed.world_size() == 1:
            return
        named = dict(self._named_tensors(device))
        everywhere = distributed.gather_objects(fingerprint(named.values()).tolist())
        for rank, values in enumerate(everywhere):
            for name, own, first in zip(named, values, everywhere[0], strict=True):
                if own != first:
                    raise RanksDiffer(
                        f"rank {rank} and rank 0 hold different {name} after {self.step} steps; nothing was written. "
                        "The last checkpoint is from before: resume from it, and suspect the hardware of either"
                    )

    def _named_tensors(self, device: torch.device) -> list[tuple[str, Tensor]]:
        named: list[tuple[str, Tensor]] = []
        for title, network in self.networks.items():
            named += [(f"{title}.{name}", value) for name, value in network.state_dict().items()]
        for title, (module, optimizer) in self.optimized.items():
            for name, values in checkpoint.optimizer_state(module, optimizer).items():
                for key, value in values.items():
                    named.append((f"optimiser of {title}, {name}, {key}", value.to(device)))
        named += [(f"{name} of the objective", value) for name, value in self.objective.items()]
        return named
