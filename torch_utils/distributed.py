"""Wraps torch.distributed: only this file knows how ranks communicate. One process works without any set-up.

Ranks are started by torchrun, or by `torch_utils.launcher`, which sets the same environment (`RANK`, `WORLD_SIZE`,
`LOCAL_RANK`); gloo on CPUs, nccl on GPUs. No collective waits for ever: after the loss of a rank it raises `RankLost`,
at once where connections close, else after the timeout. From then on this rank's state must not be saved, and
`require_ranks` raises.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import dnnlib
from torch_utils import precision

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=10)  # limit of a training collective; a rank that hangs ends the others after it
_START_TIMEOUT = timedelta(minutes=2)  # limit of the self-test; ranks start within seconds of each other
# Limit of the waits for work of unknown length. A rank that ends closes its connections, and the waits of the others
# fail at once whatever this is.
_PATIENCE = timedelta(days=30)
_patient_group: Any = None  # gloo over all ranks, whatever the backend of the training collectives

LAUNCH_DIR = "SPLATGAN_LAUNCH_DIR"  # where ranks leave notes for the launcher
SNAPSHOT_NOTE = "snapshot_seconds"

_lost: str | None = None  # why the ranks are no longer together


class RankLost(RuntimeError):
    """Reports that a collective failed, since another rank has ended or hangs; its one line names this rank."""


def initialise(device: str) -> torch.device:
    """Joins the process group if torchrun started us, sets this process's thread count, and returns its device.

    `device` is "auto", "cpu" or "cuda". A single process takes the number of threads of OMP_NUM_THREADS, if it is set,
    else all cores that it may use; each of several local ranks takes an equal share of the cores, and with --gpus no
    more than OMP_NUM_THREADS. Under torchrun that number may be torchrun's own, which nobody chose.
    Raises RankLost if the others do not come.
    """
    global _patient_group
    world, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    _let_segments_grow()
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_cuda and not torch.cuda.is_available():
        raise ValueError("--device=cuda: this PyTorch sees no CUDA device; use --device=cpu")
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    torch.set_num_threads(_threads(local_world_size())[0])
    precision.allow_tf32(False)
    if use_cuda:
        torch.cuda.set_device(chosen)
    else:
        torch.set_flush_denormal(True)  # second moments decay into denormals, which are many times slower
    if world > 1 and not torch.distributed.is_initialized():
        with _collective("joining the process group"):
            if use_cuda:  # told its device, NCCL connects at once and no collective has to guess it
                torch.distributed.init_process_group("nccl", timeout=_TIMEOUT, device_id=chosen)
            else:
                torch.distributed.init_process_group("gloo", timeout=_TIMEOUT)
            _patient_group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    if LAUNCH_DIR in os.environ:
        threading.Thread(target=_stop_without_launcher, args=(os.getppid(),), daemon=True).start()
    return chosen


def finalise() -> None:
    """Leaves the process group, if there is one. A broken one is left open: closing it may wait for a lost rank."""
    global _patient_group
    if _active() and _lost is None:
        torch.distributed.destroy_process_group()
        _patient_group = None


def usable_cores() -> int:
    """Returns the number of cores that this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def threads_from() -> str:
    """Says where the number of threads of this process comes from, for the lines at the start of a run."""
    return _threads(local_world_size())[1]


def _threads(local_world: int) -> tuple[int, str]:
    """Returns the number of threads for one of `local_world` processes, and where it comes from."""
    cores = usable_cores()
    share = max(1, cores // local_world)
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP takes a number for each level
    asked = int(text) if text.isascii() and text.isdigit() and len(text) < 6 and int(text) > 0 else None
    if asked is not None and not is_launched():
        return asked, "OMP_NUM_THREADS"
    if asked is not None and LAUNCH_DIR in os.environ and asked < share:
        return asked, "OMP_NUM_THREADS"
    if local_world > 1:
        return share, f"an equal share of {cores} cores"
    return share, "the cores of this process" if not is_launched() else "the cores, as torchrun sets OMP_NUM_THREADS"


def rank() -> int:
    return torch.distributed.get_rank() if _active() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if _active() else 1


def local_world_size() -> int:
    """Returns the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _let_segments_grow() -> None:
    """Lets PyTorch's GPU memory grow in place: gsplat takes another amount in every step, which fragments fixed blocks.

    Read when the first memory of a GPU is taken. What the user has set is left alone.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def is_launched() -> bool:
    """Tells whether torchrun or our launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarts() -> int:
    """Returns how often the launcher has already restarted this run; 0 without a launcher."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


# ---- collectives


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum of `values` over all ranks; `values` itself for one process."""
    if world_size() == 1:
        return values
    total = values.clone()
    with _collective("the sum of a tensor"):
        torch.distributed.all_reduce(total)
    return total


def all_reduce_gradients(parameters: Sequence[torch.nn.Parameter], extra: Tensor) -> Tensor:
    """Sums the gradients of `parameters` over all ranks in one call (the losses are already divided by the batch).

    `extra` [E] travels along; its sum over all ranks is returned.
    """
    if world_size() == 1:
        return extra
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in grads), extra.to(grads[0])])
    with _collective("the sum of the gradients"):
        torch.distributed.all_reduce(flat)
    *parts, summed = flat.split([*(g.numel() for g in grads), len(extra)])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return summed


def any_rank(flag: bool, device: torch.device) -> bool:
    """Returns true on all ranks if `flag` is true on any of them."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    with _collective("the vote on whether to stop"):
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())


def barrier() -> None:
    if world_size() > 1:
        with _collective("a barrier"):
            torch.distributed.barrier()


# ---- collectives without a timeout
#
# They wait as long as the slowest rank needs: for metrics, whose computation takes minutes to hours. They take CPU
# tensors and plain objects. They fail at once if a rank ends.


def wait_for_all() -> None:
    """Waits until all ranks have called it, without a timeout."""
    if world_size() > 1:
        with _collective("waiting for all ranks"):
            torch.distributed.barrier(group=_patient_group)


def gather_objects(value: T) -> list[T]:
    """Returns the picklable values of all ranks in rank order, on all ranks."""
    if world_size() == 1:
        return [value]
    wait_for_all()
    values: list[Any] = [None] * world_size()
    with _collective("gathering values"):
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
    with _collective("waiting for rank 0"):
        torch.distributed.broadcast_object_list(outcome, src=0, group=_patient_group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def add_over_ranks_(values: Tensor) -> None:
    """Replaces `values`, on the CPU, by their sum over all ranks."""
    if world_size() > 1:
        wait_for_all()
        with _collective("adding up over the ranks"):
            torch.distributed.all_reduce(values, group=_patient_group)


def gather_rows(rows: Tensor) -> list[Tensor] | None:
    """Returns the `rows` [n_r, ...] of every rank r on rank 0, in rank order; None elsewhere. n_r may be 0."""
    if world_size() == 1:
        return [rows]
    counts = gather_objects(len(rows))
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if rank() == 0 else None
    with _collective("gathering rows on rank 0"):
        torch.distributed.gather(padded, parts, dst=0, group=_patient_group)
    return None if parts is None else [part[:n] for part, n in zip(parts, counts, strict=True)]


# ---- worker processes of other modules


def run_workers(ranks: int, module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE ARGUMENTS`, a module of ours, as `ranks` local processes; what they print is captured."""
    paths = os.pathsep.join(p for p in (str(dnnlib.ROOT), os.environ.get("PYTHONPATH")) if p)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", module, *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)


# ---- what must be equal on all ranks


def self_test(fields: Mapping[str, str], device: torch.device) -> None:
    """Checks that the ranks reach each other in time and that all `fields` are equal on all of them.

    fields: what to compare by its name, e.g. the code's revision. Raises RankLost within two minutes if a rank does
    not answer, and on all ranks a ValueError that names each rank and field that differs from rank 0's.
    """
    if world_size() == 1:
        return
    with _collective("the start-up self-test"):
        torch.distributed.monitored_barrier(_patient_group, timeout=_START_TIMEOUT, wait_all_ranks=True)
        total = torch.ones((), device=device)
        work = torch.distributed.all_reduce(total, async_op=True)
        assert work is not None  # this rank is in the group
        work.wait(_START_TIMEOUT)
    if total.item() != world_size():
        raise ValueError(f"start-up self-test: {world_size()} ranks add up to {total.item():g}; check the network")
    everyone = gather_objects((socket.gethostname(), dict(fields)))
    first_host, first = everyone[0]
    wrong = [
        f"rank {number} on {host} has {name} {_short(other.get(name))}, "
        f"rank 0 on {first_host} has {_short(first.get(name))}"
        for number, (host, other) in enumerate(everyone)
        for name in sorted(first | other)
        if first.get(name) != other.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more differences)" if len(wrong) > 1 else ""
        raise ValueError(f"the ranks differ: {wrong[0]}{more}; start all of them with the same code, data and flags")


def require_ranks() -> None:
    """Raises RankLost if a collective has failed in this process: its state may be incomplete and must not be saved."""
    if _lost is not None:
        raise RankLost(_lost)


# ---- notes to the launcher


def note_snapshot(seconds: float) -> None:
    """Tells the launcher how long writing a snapshot took, so that it waits long enough when it stops the ranks."""
    if LAUNCH_DIR in os.environ:
        Path(os.environ[LAUNCH_DIR], f"{SNAPSHOT_NOTE}.{rank()}").write_text(repr(seconds))


def _stop_without_launcher(parent: int) -> None:
    """Sends this rank SIGTERM when its launcher has been killed, so that it does not train on unnoticed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _collective(what: str) -> Iterator[None]:
    """Turns a failure of gloo or nccl into RankLost, for this collective and all that follow."""
    require_ranks()
    try:
        yield
    except RuntimeError as error:  # gloo's and nccl's errors are of this kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _give_up(
            f"{_here()}: {what} failed, another rank has ended or hangs; this one stops without writing a checkpoint "
            f"({reason[:200]})",
            error,
        )


def _give_up(line: str, cause: BaseException | None = None) -> None:
    global _lost
    _lost = line
    raise RankLost(line) from cause


def _here() -> str:
    return f"rank {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')} on {socket.gethostname()}"


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 60 else f"{value[:60]}..."


def _active() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
