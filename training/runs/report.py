"""One page about a run: its curves, pictures and configuration, read from the run folder alone."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.runs.charts import Point, line_chart

MAX_FAKES = 6  # pictures over time: the first, the last, and even steps between
CURVES = (  # title, prefixes of the names in stats.jsonl
    ("Loss", ("Loss/G/adversarial", "Loss/D/real", "Loss/D/fake")),
    ("Regularisers of G", ("Loss/G/center", "Loss/G/knn")),
    ("Logits", ("Logits/real", "Logits/fake")),
    ("R1 penalty", ("Loss/D/r1_penalty",)),
    ("Gradient norms before clipping", ("Gradient/G/norm", "Gradient/D/norm", "Gradient/R1/norm")),
    ("Steps skipped for a gradient that is not finite", ("Gradient/G/skipped", "Gradient/D/skipped")),
    ("Shares of the splats, and flatness", ("Gaussians/visible", "Gaussians/near_transparent", "Gaussians/flatness")),
)
LEVEL_CURVES = (("Opacity by level", "opacity"), ("ln of the scale by level", "log_scale"),
                ("Distance from the origin by level", "distance"))  # fmt: skip

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
    """JSON objects of a file of lines; none if there is no file. A last line that a running or killed run left
    unfinished is skipped. Raises ValueError naming any other line that is not a JSON object."""
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
    """The page as HTML that needs no other file. Raises ValueError if `run_dir` is not the folder of a run."""
    options = run_dir / "training_options.json"
    if not options.is_file():
        raise ValueError(f"{run_dir}: no run folder, it has no training_options.json")
    config = json.loads(options.read_text())
    stats = read_records(run_dir / "stats.jsonl")
    title = html.escape(run_dir.resolve().name)
    sections = [
        f"<h1>{title}</h1><p>{_summary(config, stats)}</p>",
        _section("Curves", _grid(line_chart(name, _series(stats, names), "kimg") for name, names in CURVES)),
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


def _summary(config: dict[str, Any], stats: list[dict[str, Any]]) -> str:
    if not stats:
        return "No tick has ended yet."
    last, hours = stats[-1], stats[-1].get("timing", {}).get("total_sec", 0) / 3600
    done, planned = last["nimg"] / 1000, config.get("total_kimg", 0)
    preset = html.escape(str(config.get("preset")))
    return f"Preset {preset}, {done:.1f} of {planned:g} kimg in {hours:.2f} h, {len(stats)} ticks."


def _series(stats: list[dict[str, Any]], names: Iterable[str]) -> dict[str, list[Point]]:
    """(kimg, value) of the finite values of each name."""
    return {
        name: [
            (r["nimg"] / 1000, r[name])
            for r in stats
            if isinstance(r.get(name), int | float) and math.isfinite(r[name])
        ]
        for name in names
    }


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
    """network-snapshot-NNNNNN.pkl holds whole kimg; network-snapshot-NNNNNN_IIIIIIII.pkl the images as well."""
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
    rows = []
    for name, value in config.items():
        if isinstance(value, dict):
            rows += [f"<tr><td>{html.escape(f'{name}.{k}')}<td>{html.escape(json.dumps(v))}" for k, v in value.items()]
        else:
            rows.append(f"<tr><td>{html.escape(name)}<td>{html.escape(json.dumps(value))}")
    return f"<table>{''.join(rows)}</table>"


def _grid(charts: Iterable[str]) -> str:
    content = "".join(charts)
    return f"<div class=charts>{content}</div>" if content else ""


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""
