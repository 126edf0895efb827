"""Makes one page about a run: its curves, pictures and configuration, read from the run folder alone."""

from __future__ import annotations

import base64
import fnmatch
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from training.families import DEFAULT_FAMILY, FAMILIES
from training.runs.charts import Point, line_chart

MAX_FAKES = 6  # pictures over time: the first, the last, and even steps between
COMMON_CURVES: Sequence[tuple[str, Sequence[str]]] = (  # title, names in stats.jsonl, where * stands for any phase
    ("Loss", ("Loss/G/adversarial", "Loss/D/real", "Loss/D/fake", "Loss/D/pairs")),
    ("Logits", ("Logits/real", "Logits/fake")),
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
)

STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#777;--paper:#fff;--grid:#e4e4e4}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#999;--paper:#16181c;--grid:#333}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);
  max-width:1440px;margin:2em auto;padding:0 1em}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:1.2em 1.6em}
figure{margin:0}figcaption{font-weight:600}svg{width:100%}svg text{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--grid)}
.line{fill:none;stroke:var(--c);stroke-width:1.6}.band{fill:var(--c);opacity:.18}.dot{fill:var(--c)}
.key{font-size:13px;display:flex;flex-wrap:wrap;gap:.2em 1em}

.key i{display:inline-block;
  width:.8em;height:.8em;margin-right:.4em;background:var(--c)}
.s0{--c:#0072b2}.s1{--c:#d55e00}
.s2{--c:#009e73}.s3{--c:#cc79a7}
.s4{--c:#e69f00}.s5{--c:#56b4e9}.s6{--c:#8c6bb1}.s7{--c:#888}
img{max-width:100%}
.fakes{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));gap:1em}.fakes img{width:100%}
table{border-collapse:collapse;font-size:13px}
td{padding:.1em 1em .1em 0;vertical-align:top;border-bottom:1px solid var(--grid)}
"""


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
    title = html.escape(run_dir.resolve().name)
    sections = [
        f"<h1>{title}</h1><p>{_summary(config, stats)}</p>",
        _section("Curves", _grid(line_chart(name, _series(stats, names), "kimg") for name, names in curves(config))),
        _section("Gaussians by level", _grid(_level_charts(stats))),
        _section("Metrics", _grid(_metric_charts(run_dir))),
        _section("Pictures", _fakes(run_dir)),
        _section("Data", _picture(run_dir / "reals.png") + _picture(run_dir / "cameras.png")),
        _section("Configuration", _table(config)),
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>"
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(sections)}</body></html>"
    )


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
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{data}"></figure>'


def _table(config: dict[str, Any]) -> str:
    rows = (f"<tr><td>{html.escape(name)}<td>{html.escape(json.dumps(value))}" for name, value in _flat(config))
    return f"<table>{''.join(rows)}</table>"


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Yields names and values of nested records: "objective.gamma", "stages[1].batch"; lists of plain values stay."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{i}]")
    else:
        yield name, value


def _grid(charts: Iterable[str]) -> str:
    content = "".join(charts)
    return f"<div class=charts>{content}</div>" if content else ""


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""
