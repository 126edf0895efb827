"""Decides which checkpoints of a run stay: --keep=last:3,best:fid50k_full:1,every:1000."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training import checkpoint
from training.checkpoint import CheckpointError

LEGAL = "last:N, best:METRIC:N and every:KIMG, separated by commas, or all"


@dataclass(frozen=True)
class Retention:
    """Keeps a snapshot if any rule wants it. The newest always stays."""

    last: int = 1  # the newest so many
    best: tuple[tuple[str, int, bool], ...] = ()  # metric, how many of the best, and whether larger is better
    every: int | None = None  # the first at or after every multiple of so many kimg

    def unwanted(self, run_dir: Path) -> list[Path]:
        """Returns the snapshots in `run_dir` that no rule wants; damaged ones are left for a person to see."""
        order = []
        for path in sorted(run_dir.glob(checkpoint.SNAPSHOT_PATTERN)):
            try:
                order.append((checkpoint.read_progress(path)["nimg"], path))
            except CheckpointError:
                continue  # --resume=latest says which; a person decides
        order.sort()
        wanted = {path for _, path in order[-self.last :]}
        for name, count, larger in self.best:
            sign = -1.0 if larger else 1.0
            scored = sorted((sign * score, path) for path, score in self._scores(run_dir, name, order))
            wanted |= {path for _, path in scored[:count]}
        if self.every is not None:
            firsts: dict[int, Path] = {}
            for nimg, path in order:
                firsts.setdefault(nimg // (self.every * 1000), path)
            wanted |= set(firsts.values())
        return [path for _, path in order if path not in wanted]

    @staticmethod
    def _scores(run_dir: Path, name: str, order: list[tuple[int, Path]]) -> list[tuple[Path, float]]:
        """Returns the latest value of metric `name` for each snapshot that has one."""
        values: dict[str, float] = {}
        path = run_dir / f"metric-{name}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            record = json.loads(line)
            values[record["snapshot_pkl"]] = record["results"][name]
        return [(path, values[path.name]) for _, path in order if path.name in values]


def parse_keep(text: str, larger_is_better: Callable[[str], bool]) -> Retention | None:
    """Reads --keep; None for "all". Raises ValueError naming the rule that is not legal.

    larger_is_better: tells it of a metric by name, and raises ValueError for a name that is none.
    """
    if text == "all":
        return None
    last, every = 1, None
    best: list[tuple[str, int, bool]] = []
    for rule in text.split(","):
        if found := re.fullmatch(r"last:([1-9]\d*)", rule):
            last = int(found[1])
        elif found := re.fullmatch(r"best:([^:]+):([1-9]\d*)", rule):
            try:
                best.append((found[1], int(found[2]), larger_is_better(found[1])))
            except ValueError as error:
                raise ValueError(f"--keep={text}: {error}") from None
        elif found := re.fullmatch(r"every:([1-9]\d*)", rule):
            every = int(found[1])
        else:
            raise ValueError(f"--keep={text}: {rule!r} is no rule; legal are {LEGAL}")
    return Retention(last, tuple(best), every)
