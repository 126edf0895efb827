"""Everything of a run that has state, into the records of a checkpoint and back, and equal on all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_utils import distributed
from torch_utils.fingerprint import fingerprint
from training import checkpoint
from training.runs import resume

if TYPE_CHECKING:
    from training.training_loop import Trainer


class RanksDiffer(RuntimeError):
    """The ranks hold different numbers where they must hold equal ones."""


def capture(trainer: Trainer) -> dict[str, Any]:
    """All records of a checkpoint (training/checkpoint.py) of `trainer` between two steps. Every rank calls this."""
    gan = trainer.gan
    return {
        "config": trainer.config.to_dict(),
        "geometry": trainer.dataset.geometry.to_dict(),
        "progress": {
            "nimg": trainer.nimg,
            "step": trainer.step,
            "tick": trainer.tick - 1,
            "tick_nimg": trainer.tick_nimg,
            "threads": torch.get_num_threads(),  # float sums depend on both
            "ranks": distributed.world_size(),
            "data": resume.data_mark(trainer.dataset),
            "files": resume.file_sizes(trainer.options.run_dir),
        },
        "G": trainer.G.state_dict(),
        "D": trainer.D.state_dict(),
        "G_ema": trainer.G_ema.state_dict(),
        "opt": {
            "G": checkpoint.optimizer_state(trainer.G, gan.opt_G),
            "D": checkpoint.optimizer_state(trainer.D, gan.opt_D),
        },
        "grid": trainer.grid,
        "best": trainer.best,
        "statistics": distributed.gather_objects(trainer.stats.state()),
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Inverse of `capture`. Raises CheckpointError if the optimisers' records name unknown parameters."""
    trainer.G.load_state_dict(state["G"])
    trainer.D.load_state_dict(state["D"])
    trainer.G_ema.load_state_dict(state["G_ema"])
    checkpoint.load_optimizer_state(trainer.G, trainer.gan.opt_G, state["opt"]["G"])
    checkpoint.load_optimizer_state(trainer.D, trainer.gan.opt_D, state["opt"]["D"])
    progress = state["progress"]
    trainer.nimg, trainer.step, trainer.tick = progress["nimg"], progress["step"], progress["tick"] + 1
    trainer.tick_nimg = progress.get("tick_nimg", trainer.nimg)
    trainer.stats.load_state(state.get("statistics", []), trainer.device)
    trainer.grid, trainer.best = state["grid"], state["best"]


def check_ranks(trainer: Trainer) -> None:
    """Raises RanksDiffer naming the first tensor of the networks and optimisers that differs between ranks."""
    if distributed.world_size() == 1:
        return
    named = dict(_named_tensors(trainer))
    everywhere = distributed.gather_objects(fingerprint(named.values()).tolist())
    for rank, values in enumerate(everywhere):
        for name, own, first in zip(named, values, everywhere[0], strict=True):
            if own != first:
                raise RanksDiffer(
                    f"rank {rank} and rank 0 hold different {name} after {trainer.step} steps; nothing was written. "
                    "The last checkpoint is from before: resume from it, and suspect the hardware of either"
                )


def _named_tensors(trainer: Trainer) -> list[tuple[str, Tensor]]:
    named: list[tuple[str, Tensor]] = []
    for title in ("G", "D", "G_ema"):
        named += [(f"{title}.{name}", value) for name, value in getattr(trainer, title).state_dict().items()]
    for title, module, optimizer in (("G", trainer.G, trainer.gan.opt_G), ("D", trainer.D, trainer.gan.opt_D)):
        for name, values in checkpoint.optimizer_state(module, optimizer).items():
            for key, value in values.items():
                named.append((f"optimiser of {title}, {name}, {key}", value.to(trainer.device)))
    return named
