"""Measures speed, memory, exactness and learning; run from the repository's root: `python -m benchmarks.data`."""

import dnnlib  # before torch, whose threads wait as it says

__all__ = ["dnnlib"]
