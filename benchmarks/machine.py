"""Describes the machine that a benchmark ran on, and reads its clock."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch

from torch_utils.distributed import usable_cores


def processor() -> str:
    """Returns the processor's model name; where the system does not tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    unknown = platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), unknown)


def in_one_line() -> str:
    """Returns processor, cores and versions as one line of text."""
    return f"{processor()}, {usable_cores()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def facts() -> dict[str, str | int | None]:
    """Returns processor, threads, GPU and versions by name."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def now(device: torch.device | str) -> float:
    """Returns the wall time in seconds, once `device` has finished what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
