"""How the C library keeps freed memory."""

import ctypes
import sys

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
