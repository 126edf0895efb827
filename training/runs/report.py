"""Makes one page about a run: its curves, pictures and configuration, read from the run folder alone."""

from __future__ import annotations

import fnmatch
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.families import DEFAULT_FAMILY, FAMILIES
from training.runs.charts import Point, line_chart
from training.runs.page import grid, page, picture, section, value_table

MAX_FAKES = 6  # pictures over time: the first, the last, and even steps between
COMMON_CURVES: Sequence[tuple[str, Sequence[str]]] = (  # title, names in stats.jsonl, where * stands for any phase
    ("Loss", ("Loss/G/adversarial", "Loss/D/real", "Loss/D/fake", "Loss/D/pairs")),
    ("Logits", ("Logits/real", "Logits/fake")),
    ("Augmentation: probability, and sign of real logits", ("Augment/p", "Augment/sign")),
    ("Gradient norms before clipping", ("Gradient/G/norm", "Gradient/D/norm", "Gradient/*/norm")),
    (
        "Steps skipped for a gradient that is not finite",
        ("Gradient/G/skipped", "Gradient/D/skipped", "Gradient/*/skipped"),
    ),
)
LEVEL_CURVES = (  # title, last part of the names of statistics by level
    ("Opacity by level", "opacity"),
    ("ln of the scale by level", "log_scale"),
    ("Distance from the origin by level", "distance"),
    ("Share of black splats by level", "black"),
    ("Share of nearly transparent splats by level", "near_transparent"),
    ("Share of splats under half a pixel by level", "subpixel"),
)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads the JSON objects of a file of lines; none if there is no file.

    A last line that a running or killed run left unfinished is skipped. Raises ValueError naming any other line that is
    not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise ValueError(f"{path.name}: line {number} is not a JSON object")
    return records


def build_report(run_dir: Path) -> str:
    """Returns the page as HTML that needs no other file. Raises ValueError if `run_dir` is not the folder of a run."""
    config = _read_options(run_dir)
    stats = read_records(run_dir / "stats.jsonl")
    sections = [
        f"<h1>{html.escape(run_dir.resolve().name)}</h1><p>{_summary(config, stats)}</p>",
        section("Curves", grid(line_chart(name, _series(stats, names), "kimg") for name, names in curves(config))),
        section("Gaussians by level", grid(_level_charts(stats))),
        section("Metrics", grid(_metric_charts(run_dir))),
        section("Pictures", _fakes(run_dir)),
        section("Data", _picture(run_dir / "reals.png") + _picture(run_dir / "cameras.png")),
        section("Configuration", value_table(config)),
    ]
    return page(run_dir.resolve().name, sections)


def curves(config: dict[str, Any]) -> Sequence[tuple[str, Sequence[str]]]:
    """Returns the charts of a run, as title and names of statistics: those of all runs, then those of its family.

    A run of a family that is not known here has the common ones alone.
    """
    family = FAMILIES.get(_family_name(config))
    return (*COMMON_CURVES, *(family.curves if family else ()))


def _family_name(config: dict[str, Any]) -> str:
    return str(config.get("family", DEFAULT_FAMILY))


def _read_options(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "training_options.json"
    if not path.is_file():
        raise ValueError(f"{run_dir}: no run folder, it has no training_options.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a JSON object")
    return config


def _summary(config: dict[str, Any], stats: list[dict[str, Any]]) -> str:
    """Says in a line which run this is, how far it is, and what the page leaves out."""
    family = _family_name(config)
    unknown = f" The family {html.escape(family)} is not known here, so its own curves are left out."
    return _progress(config, stats) + ("" if family in FAMILIES else unknown)


def _progress(config: dict[str, Any], stats: list[dict[str, Any]]) -> str:
    if not stats:
        return "No tick has ended yet."
    last, hours = stats[-1], stats[-1].get("timing", {}).get("total_sec", 0) / 3600
    done, planned = last["nimg"] / 1000, config.get("total_kimg", 0)
    preset = html.escape(str(config.get("preset")))
    return f"Preset {preset}, {done:.1f} of {planned:g} kimg in {hours:.2f} h, {len(stats)} ticks."


def _series(stats: list[dict[str, Any]], names: Iterable[str]) -> dict[str, list[Point]]:
    """Returns (kimg, value) of the finite values of each name; one with a * stands for all that it matches."""
    expanded: dict[str, None] = {}  # in order, without repetition
    for name in names:
        expanded.update(dict.fromkeys(_matching(stats, name) if "*" in name else (name,)))
    return {
        name: [
            (r["nimg"] / 1000, r[name])
            for r in stats
            if isinstance(r.get(name), int | float) and math.isfinite(r[name])
        ]
        for name in expanded
    }


def _matching(stats: list[dict[str, Any]], pattern: str) -> list[str]:
    return sorted({name for record in stats for name in record if fnmatch.fnmatchcase(name, pattern)})


def _level_charts(stats: list[dict[str, Any]]) -> Iterable[str]:
    levels = sorted({name.split("/")[1] for name in (stats[-1] if stats else ()) if name.startswith("Gaussians/level")})
    for title, kind in LEVEL_CURVES:
        series = _series(stats, [f"Gaussians/{level}/{kind}" for level in levels])
        yield line_chart(title, {name.split("/")[1]: points for name, points in series.items()}, "kimg")


def _metric_charts(run_dir: Path) -> Iterable[str]:
    for path in sorted(run_dir.glob("metric-*.jsonl")):
        points = []
        for record in read_records(path):
            name, results = record.get("metric"), record.get("results", {})
            kimg = _snapshot_kimg(record.get("snapshot_pkl"))
            if kimg is not None and isinstance(results.get(name), int | float):
                points.append((kimg, results[name]))
        yield line_chart(path.stem.removeprefix("metric-"), {"value": sorted(points)}, "kimg")


def _snapshot_kimg(name: str | None) -> float | None:
    """Reads the kimg off a snapshot's name: network-snapshot-<kimg>.pkl, or network-snapshot-<kimg>_<images>.pkl."""
    numbers = (name or "").removeprefix("network-snapshot-").removesuffix(".pkl").split("_")
    if not all(number.isdigit() for number in numbers):
        return None
    return int(numbers[1]) / 1000 if len(numbers) > 1 else float(numbers[0])


def _fakes(run_dir: Path) -> str:
    paths = sorted(run_dir.glob("fakes*.png"))
    if len(paths) > MAX_FAKES:
        paths = [paths[round(i * (len(paths) - 1) / (MAX_FAKES - 1))] for i in range(MAX_FAKES)]
    pictures = "".join(_picture(path) for path in paths)
    return f"<div class=fakes>{pictures}</div>" if pictures else ""


def _picture(path: Path) -> str:
    return picture(path.read_bytes(), path.stem) if path.exists() else ""
