"""The only file that knows there is more than one rank. One process works without any set-up.

Ranks are started by torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK` in the environment); gloo on CPUs, nccl on GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=10)  # of a collective: a lost rank ends the others instead of hanging them
# Of the waits for work that takes as long as it takes. A rank that ends closes its connections, and the waits of the
# others fail at once whatever this is.
_PATIENCE = timedelta(days=30)
_patient_group: Any = None  # gloo over all ranks, whatever the backend of the training collectives


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
        _open_patient_group()
    return chosen


def _open_patient_group() -> None:
    global _patient_group
    _patient_group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def finalise() -> None:
    """Leaves the process group, if there is one."""
    global _patient_group
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        _patient_group = None


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


# The functions below wait as long as the slowest rank needs, past the timeout of a collective: for metrics, whose
# shares and last steps take minutes to hours. They take CPU tensors and plain objects. A rank that ends fails them at
# once.


def wait_for_all() -> None:
    """A barrier without a timeout."""
    if world_size() > 1:
        torch.distributed.barrier(group=_patient_group)


def gather_objects(value: T) -> list[T]:
    """The picklable values of all ranks in rank order, on all ranks."""
    if world_size() == 1:
        return [value]
    wait_for_all()
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value, group=_patient_group)
    return values


def on_main(act: Callable[[], T]) -> T:
    """Calls `act` on rank 0 while the others wait; all get its (picklable) result, or its exception."""
    if world_size() == 1:
        return act()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = act()
        except Exception as error:  # raised below, on all ranks
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome, src=0, group=_patient_group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def add_over_ranks_(values: Tensor) -> None:
    """Replaces `values`, on the CPU, by their sum over all ranks."""
    if world_size() > 1:
        wait_for_all()
        torch.distributed.all_reduce(values, group=_patient_group)


def gather_rows(rows: Tensor) -> list[Tensor] | None:
    """The `rows` [n_r, ...] of every rank r on rank 0, in rank order; None elsewhere. Ranks may hold none."""
    if world_size() == 1:
        return [rows]
    counts = gather_objects(len(rows))
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if rank() == 0 else None
    torch.distributed.gather(padded, parts, dst=0, group=_patient_group)
    return None if parts is None else [part[:n] for part, n in zip(parts, counts, strict=True)]


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS` as `ranks` local processes under torchrun and returns its exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *arguments]
    return subprocess.run(command, check=False).returncode


def run_workers(ranks: int, module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE ARGUMENTS`, a module of ours, as `ranks` local processes; what they print is captured."""
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", module, *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)


def is_launched() -> bool:
    """True in a process that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _active() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
