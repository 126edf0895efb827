"""Watches the steps: names what was not finite, and stops a run that cannot recover."""

from __future__ import annotations

from torch_utils import distributed

NAMED = 5  # parameters that a line names
LINES = 20  # about bad steps in one process; stats.jsonl goes on counting


class Diverged(RuntimeError):
    """Too many steps in a row with a non-finite gradient; the message names the parameters."""


class Watchdog:
    """Counts the non-finite steps of every phase, in a row."""

    def __init__(self, limit: int):
        self.limit = limit
        self.in_a_row: dict[str, int] = {}
        self._lines = 0

    def see(self, step: int, bad: dict[str, list[str]]) -> None:
        """`bad`: phase -> names of what was not finite in `step`, empty if all was well. Raises Diverged."""
        for phase, names in bad.items():
            self.in_a_row[phase] = self.in_a_row.get(phase, 0) + 1 if names else 0
            count = self.in_a_row[phase]
            if names and distributed.rank() == 0 and self._lines < LINES:
                self._lines += 1
                print(
                    f"Warning: step {step}, phase {phase}: not finite: {name_some(names)}; skipped ({count} in a row)",
                    flush=True,
                )
            if count >= self.limit:
                raise Diverged(
                    f"phase {phase}: {count} steps in a row had a non-finite loss or gradient, in {name_some(names)}; "
                    "the last checkpoint is kept; try a smaller --glr and --dlr, or --precision=fp32"
                )


def name_some(names: list[str]) -> str:
    """The first few of `names`, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
