"""Says how OpenMP's idle threads wait, before torch loads the runtime that reads it.

GNU's runtime spins for 300,000 rounds by default before a thread sleeps: some 14 ms with the long pauses of newer
Intel processors, more than a scheduler's time slice. Beside another busy process a thread that waits at the end of a
loop so uses up its share of the core, and is not there when the next loop comes. Two threads, each on a core with other
processes, took 88 ms for a pair of small loops and 1.9 ms with 2,000 rounds; 14.4 and 1.0 ms of processor time
(`python -m benchmarks.busy --steps=0`; Intel Xeon with AMX).
"""

from __future__ import annotations

import os

ENVIRONMENT = {"GOMP_SPINCOUNT": "2000"}  # rounds: tens of microseconds, as threads of our own wait (pool.h)
ASKED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # of which the user may have set one


def wait_briefly() -> None:
    """Lets idle threads sleep soon, unless the environment says how they wait. No effect once torch is imported."""
    if not any(name in os.environ for name in ASKED):
        os.environ.update(ENVIRONMENT)
