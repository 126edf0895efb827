"""The only file that knows there is more than one rank. One process works without any set-up.

Ranks are started by torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK` in the environment); gloo on CPUs, nccl on GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor

_TIMEOUT = timedelta(minutes=10)  # of a collective: a lost rank ends the others instead of hanging them


def initialise(device: str) -> torch.device:
    """Joins the process group if torchrun started us, sets this process's thread count, and returns its device.

    `device` is "auto", "cpu" or "cuda". Each local rank gets an equal share of the cores that this process may use.
    """
    world, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_cuda and not torch.cuda.is_available():
        raise ValueError("--device=cuda: this PyTorch sees no CUDA device; use --device=cpu")
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    torch.set_num_threads(max(1, usable_cores() // local_world))
    if use_cuda:
        torch.cuda.set_device(chosen)
    else:
        torch.set_flush_denormal(True)  # second moments decay into denormals, which are many times slower
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=_TIMEOUT)
    return chosen


def finalise() -> None:
    """Leaves the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def usable_cores() -> int:
    """Cores that this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def rank() -> int:
    return torch.distributed.get_rank() if _active() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if _active() else 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks; `values` itself for one process."""
    if world_size() == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


def all_reduce_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sums the gradients of `parameters` over all ranks in one call (the losses are already divided by the batch)."""
    if world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on all ranks if `flag` is true on any of them."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def barrier() -> None:
    if world_size() > 1:
        torch.distributed.barrier()


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS` as `ranks` local processes under torchrun and returns its exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *arguments]
    return subprocess.run(command, check=False).returncode


def is_launched() -> bool:
    """True in a process that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _active() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
