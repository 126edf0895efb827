"""Watches the steps: names what was not finite, and stops a run that cannot recover with a diagnosis to replay."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_utils import distributed
from training import checkpoint

DIAGNOSIS_NAME, DIAGNOSIS_STATE = "diagnosis.json", "state-diagnosis.pkl"
NAMED = 5  # parameters that a line names
LINES = 20  # about bad steps in one process; stats.jsonl goes on counting
TICKS = 5  # whose statistics a diagnosis holds


class Diverged(RuntimeError):
    """Stops a run after too many steps in a row with a non-finite loss or gradient, at last in `names` of `phase`."""

    def __init__(self, phase: str, names: list[str], count: int):
        self.phase, self.names = phase, names
        super().__init__(
            f"phase {phase}: {count} steps in a row had a non-finite loss or gradient, the last in {name_some(names)}"
        )

    def with_advice(self, advice: str) -> Diverged:
        """Adds what to do to the message."""
        self.args = (f"{self}; {advice}",)
        return self


class Watchdog:
    """Counts the non-finite steps of every phase in a row, and keeps the state from before a suspicious one.

    Once a step was bad, the state before every further step is copied until one is good, so that the step at which the
    run stops can be replayed. A limit of 1 or 2 is reached before a bad step was seen, and copies before every step.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.in_a_row: dict[str, int] = {}
        self.before: dict[str, Any] | None = None  # records of a checkpoint
        self.ticks: deque[dict[str, Any]] = deque(maxlen=TICKS)
        self._lines = 0

    @property
    def suspicious(self) -> bool:
        """Whether the state before the next step must be kept, and its report read at once."""
        return self.limit <= 2 or any(self.in_a_row.values())

    def keep(self, state: dict[str, Any] | None) -> None:
        """Keeps the state before the step that comes; its tensors are copied. None where nothing is suspicious."""
        self.before = None if state is None else checkpoint.map_tensors(state, torch.clone)

    def see(self, step: int, bad: dict[str, list[str]]) -> None:
        """Takes in what was not finite in `step`; `bad` maps phases to names, none if all is well. Raises Diverged."""
        for phase, names in bad.items():
            self.in_a_row[phase] = count = self.in_a_row.get(phase, 0) + 1 if names else 0
            if names and distributed.rank() == 0 and self._lines < LINES:
                self._lines += 1
                print(
                    f"Warning: step {step}, phase {phase}: not finite: {name_some(names)}; skipped ({count} in a row)",
                    flush=True,
                )
        if self.before is None or self.before["progress"]["step"] != step:
            return  # the next bad step can be replayed; this one is past
        for phase, names in bad.items():
            if self.in_a_row[phase] >= self.limit:
                raise Diverged(phase, names, self.in_a_row[phase])

    def diagnose(self, error: Diverged, run_dir: Path, device: str, items_of: Callable[[int], np.ndarray]) -> str:
        """Writes diagnosis.json and the state before the bad step; returns the command that replays it.

        items_of: from the images seen to the data items of the step, `SampleStream.all_items`. Raises OSError.
        """
        assert self.before is not None
        config, progress = self.before["config"], self.before["progress"]
        items = items_of(progress["nimg"]).tolist()
        checkpoint.save_checkpoint(run_dir / DIAGNOSIS_STATE, self.before)
        record = {
            "reason": str(error),
            "step": progress["step"],
            "nimg": progress["nimg"],
            "phase": error.phase,
            "tensors": error.names,
            # Global sample indices; all draws follow from them and the seed.
            "samples": [progress["nimg"], progress["nimg"] + len(items)],
            "items": items,  # numbers in the data set
            "seed": config["seed"],
            "data": config["data"],
            "state": DIAGNOSIS_STATE,  # from before the step
            "device": device,
            "threads": progress["threads"],
            "ranks": progress["ranks"],
            "ticks": list(self.ticks),
            "command": f"python train.py --replay={run_dir / DIAGNOSIS_NAME}",
        }
        (run_dir / DIAGNOSIS_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return record["command"]


def name_some(names: list[str]) -> str:
    """Lists the first few of `names`, and says how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
