"""Makes the one page of a comparison: table, values by yaw, the same seeds from the same cameras, protocol."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from training.comparison.table import arrow, quality_table, size_table, to_html
from training.runs.charts import Point, line_chart
from training.runs.page import grid, page, picture, section, value_table

STYLE = """
.wide{overflow-x:auto}
.comparison td,.comparison th{padding:.3em .8em;text-align:left;border-bottom:1px solid var(--grid)}
.comparison th{vertical-align:top;white-space:nowrap}
.comparison sup,.quoted sup{line-height:0;font-weight:400}
.comparison th small{display:block;font-weight:400;color:var(--soft);white-space:normal;max-width:11em}
.comparison th.n small{margin-left:auto}
.comparison .n{text-align:right;font-variant-numeric:tabular-nums}
.comparison td{white-space:nowrap}
.comparison td.n b{color:var(--best)}
.quoted{font-style:italic;color:var(--soft)}
.notes{font-size:13px;color:var(--soft)}
:root{--best:#0a7d3b}@media(prefers-color-scheme:dark){:root{--best:#5fd38d}}
.systems{display:grid;grid-template-columns:repeat(auto-fill,minmax(480px,1fr));gap:1.4em}
.systems img{width:100%;display:block}
.yaws{display:grid;grid-template-columns:repeat(7,1fr);text-align:center;font-size:12px;color:var(--soft)}
"""


def build_page(comparison: dict[str, Any], reals: bytes, shown: Mapping[str, bytes]) -> str:
    """Returns the page as HTML that needs no other file.

    comparison: the record of comparison.json; reals and shown: PNGs of the data and of each system by name.
    """
    title = f"Comparison on {comparison['data']['name']}"
    yaws = comparison["protocol"]["picture_yaws_deg"]
    figures = [_figure(reals, "Data: images of the nearest cameras", yaws)]
    figures += [_figure(png, name, yaws) for name, png in shown.items()]
    sections = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(_summary(comparison))}</p>",
        to_html(quality_table(comparison)),
        section("Size and speed", to_html(size_table(comparison))),
        section("By the yaw of the camera", grid(_yaw_charts(comparison))),
        section("The same seeds from the same cameras", f"<div class=systems>{''.join(figures)}</div>"),
        section("Protocol", value_table({"data": comparison["data"], "protocol": comparison["protocol"]})),
        section("Networks", value_table({s["name"]: _identity(s) for s in comparison["systems"]})),
    ]
    return page(title, sections, STYLE)


def _summary(comparison: dict[str, Any]) -> str:
    data, protocol = comparison["data"], comparison["protocol"]
    count, colours = len(comparison["systems"]), protocol["background"]
    behind = colours[0] if len(colours) == 1 else "the colour of its training"
    masks = "" if data["masks"] else " (reals as stored: the set has no masks)"
    return (
        f"{count} system{'' if count == 1 else 's'}, {data['items']:,} images of {data['resolution']} px. "
        f"One protocol for all: averaged weights, no truncation (psi 1), seed {protocol['seed']}, "
        f"cameras of random data items, over {behind}{masks}. In columns with 3d the generator is told "
        "the data's frontal camera, in the others the rendering camera. "
        f"↓ smaller is better, ↑ larger. Times were taken on {protocol['machine']}.{_training(protocol)}"
    )


def _training(protocol: dict[str, Any]) -> str:
    """Says which systems were trained for equal time, if any were."""
    trained = protocol["equal_time"]
    if trained is None:
        return ""
    return f" Trained for {trained['minutes']:g} minutes each, one after the other: {', '.join(trained['presets'])}."


def _figure(png: bytes, name: str, yaws: Iterable[float]) -> str:
    """Returns a picture with the yaw of each column over it."""
    heads = "".join(f"<span>{yaw:+.0f}°</span>" for yaw in yaws)
    return picture(png, name).replace("</figcaption>", f"</figcaption><div class=yaws>{heads}</div>")


def _yaw_charts(comparison: dict[str, Any]) -> Iterable[str]:
    """Yields a chart for every metric that has values by yaw, with a line for each system."""
    for metric in comparison["metrics"]:
        name = metric["name"]
        series = {s["name"]: yaw_points(s["results"][name]) for s in comparison["systems"]}
        yield line_chart(f"{name} {arrow(metric)}", series, "yaw of the camera, degrees", last=False)


def yaw_points(record: dict[str, Any]) -> list[Point]:
    """Returns (middle of a bin in degrees, value) of a result by yaw; none of any other."""
    edges = record.get("protocol", {}).get("yaw_edges_deg", [])
    values = [value for name, value in record.get("results", {}).items() if "_bin" in name]
    return [((low + high) / 2, value) for low, high, value in zip(edges, edges[1:], values, strict=False)]


def _identity(system: dict[str, Any]) -> dict[str, Any]:
    return {key: system[key] for key in ("network", "sha256", "background")}
