"""Measures speed, memory, exactness and learning; run from the repository's root: `python -m benchmarks.data`."""

from dnnlib import wait_briefly

wait_briefly()  # before anything here imports torch
