"""Measures speed, memory, exactness and learning; run from the repository's root: `python -m benchmarks.data`."""
