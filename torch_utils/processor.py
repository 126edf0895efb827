"""Says whose processor this is. It imports nothing, so that it can come before everything else."""

import platform

CPUINFO = "/proc/cpuinfo"  # Linux; elsewhere the platform knows


def is_intel() -> bool:
    """Says whether this is known to be a processor of Intel."""
    try:
        with open(CPUINFO, encoding="utf-8", errors="replace") as file:
            vendors = (line for line in file if line.startswith("vendor_id"))
            return "GenuineIntel" in next(vendors, "")
    except OSError:
        return "GenuineIntel" in platform.processor()
