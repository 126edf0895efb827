"""How much memory a process takes, how much there is, and how the C library keeps what was freed."""

import ctypes
import resource
import sys
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for reuse, in place of giving large blocks back to the system at once.

    A training step frees and takes the same blocks again and again; each return trip costs a page fault per 4 kB, a
    sixth of the time of a discriminator pass on a CPU. The process's memory stays at its peak instead. False, with
    nothing changed, where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, limit) == 1 for option, limit in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1))
    )


def peaks(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: `cpu_peak_gib` of the process so far; on a GPU `gpu_peak_gib` since the last call."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB elsewhere
    figures = {"cpu_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device.type == "cuda":
        figures["gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return figures


def available_bytes() -> int:
    """Memory that this process can still take without swapping: the machine's, or what its control group leaves."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no control groups of version 2 here
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def limit_growth(count: int) -> bool:
    """From here on an allocation fails, instead of the process being killed, once it has taken `count` bytes more.

    False, with nothing limited, where the system does not count private memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + count, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    return True
