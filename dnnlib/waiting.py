"""Says how OpenMP's idle threads wait, before torch loads the runtime that reads it.

GNU's runtime spins for 300,000 rounds by default before a thread sleeps, which is more than a scheduler's time slice.
Beside another busy process a thread that waits at the end of a loop so uses up its share of the core, and is not there
when the next loop comes. A twentieth of it is as fast on a quiet machine, and leaves the core to others in time:
`python -m benchmarks.busy` measures both (docs/troubleshooting.md).
"""

from __future__ import annotations

import os

ENVIRONMENT = {"GOMP_SPINCOUNT": "20000"}  # rounds: under a millisecond
ASKED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # of which the user may have set one


def wait_briefly() -> None:
    """Lets idle threads sleep soon, unless the environment says how they wait. No effect once torch is imported."""
    if not any(name in os.environ for name in ASKED):
        os.environ.update(ENVIRONMENT)
