"""Prints checksums of what a run computed: two runs with equal lines took the same steps to the bit.

    python -m tests.run_checksum RUN

It reads run folders of every version: networks, the average, optimisers, and statistics without clocks.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch


def tensor_hash(records: dict) -> str:
    """Returns a hash of tensors by name, nested records included."""
    digest = hashlib.sha256()
    for name in sorted(records):
        value = records[name]
        digest.update(name.encode())
        if isinstance(value, dict):
            digest.update(tensor_hash(value).encode())
        else:
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def run_checksums(run_dir: Path) -> dict[str, str]:
    """Returns the hashes of the newest checkpoint's networks and optimisers, and of all lines of statistics."""
    paths = run_dir.glob("network-snapshot-*.pkl")
    states = [torch.load(path, weights_only=True) for path in paths]
    state = max(states, key=lambda state: state["progress"]["nimg"])
    found = {name: tensor_hash(state[name]) for name in ("G", "D", "G_ema", "opt")}
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    values = [{name: value for name, value in line.items() if name != "timing"} for line in lines]
    text = json.dumps(values, sort_keys=True)
    return {"images": str(state["progress"]["nimg"]), **found, "stats": hashlib.sha256(text.encode()).hexdigest()[:16]}


if __name__ == "__main__":
    for name, value in run_checksums(Path(sys.argv[1])).items():
        print(f"{name:8s}{value}")
