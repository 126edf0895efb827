"""Measures and limits the memory of a process, and makes the C library keep what was freed."""

import ctypes
import resource
import sys
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for reuse, in place of giving large blocks back to the system at once.

    A training step frees and takes the same blocks again and again; each return trip costs a page fault per 4 kB, a
    sixth of the time of a discriminator pass on a CPU. The process's memory stays at its peak instead. Returns
    False, with nothing changed, where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, limit) == 1 for option, limit in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1))
    )


def peaks(device: torch.device) -> dict[str, float]:
    """Returns peak memory in GiB: `cpu_peak_gib` of the process so far; on a GPU `gpu_peak_gib` since the last call."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB elsewhere
    figures = {"cpu_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device.type == "cuda":
        figures["gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return figures


def available_bytes() -> int:
    """Returns the memory that this process can take without swapping: the machine's, or its control group's."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no control groups of version 2 here
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def limit_growth(count: int) -> bool:
    """Makes allocations fail, instead of the process being killed, once it has taken `count` bytes more.

    Returns False, with nothing limited, where the system does not count private memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + count, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    return True


def lift_limit() -> None:
    """Ends what `limit_growth` began, so that a process that ran out of memory has some to report it with."""
    if sys.platform.startswith("linux"):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
