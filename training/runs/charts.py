"""Draws line charts as inline SVG, for pages that load nothing: series of any length, at a few hundred points."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 26  # pixels around the plot
MAX_POINTS = 300  # of a line; more than the plot can show
NUM_TICKS = 5
NUM_COLORS = 8  # CSS classes s0 to s7 of a page

Point = tuple[float, float]


def downsample(points: Sequence[Point], limit: int = MAX_POINTS) -> list[tuple[float, float, float, float]]:
    """Returns (x, mean, least, largest) of at most `limit` runs of consecutive points, so that no spike goes unseen."""
    count = min(limit, len(points))
    edges = [len(points) * i // count for i in range(count + 1)] if count else [0]
    result = []
    for start, end in itertools.pairwise(edges):
        values = [y for _, y in points[start:end]]
        result.append((points[end - 1][0], sum(values) / len(values), min(values), max(values)))
    return result


def line_chart(title: str, series: Mapping[str, Sequence[Point]], x_label: str, last: bool = True) -> str:
    """Draws a <figure>: a line per series of finite points (x, y) and, where points were joined, their range behind it.

    last: the key gives the last value of each series.
    Returns "" if there is no point at all.
    """
    lines = {name: downsample(points) for name, points in series.items() if points}
    if not lines:
        return ""
    everything = [point for line in lines.values() for point in line]
    x_low, x_high = _limits(min(p[0] for p in everything), max(p[0] for p in everything))
    y_ticks = ticks(min(p[2] for p in everything), max(p[3] for p in everything))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in (t for t in ticks(x_low, x_high) if x_low <= t <= x_high):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT + 2}" text-anchor="end">{html.escape(x_label)}</text>')
    for i, line in enumerate(lines.values()):
        color = f"s{i % NUM_COLORS}"
        upper = [f"{x(p[0]):.1f},{y(p[3]):.1f}" for p in line]
        lower = [f"{x(p[0]):.1f},{y(p[2]):.1f}" for p in reversed(line)]
        middle = [f"{x(p[0]):.1f},{y(p[1]):.1f}" for p in line]
        parts.append(f'<polygon class="band {color}" points="{" ".join(upper + lower)}"/>')
        parts.append(f'<polyline class="line {color}" points="{" ".join(middle)}"/>')
        if len(line) < 20:
            parts += [
                f'<circle class="dot {color}" r="2.5" cx="{p.split(",")[0]}" cy="{p.split(",")[1]}"/>' for p in middle
            ]
    key = "".join(
        f'<span><i class="s{i % NUM_COLORS}"></i>{html.escape(name)}'
        + (f" <b>{line[-1][1]:.4g}</b></span>" if last else "</span>")
        for i, (name, line) in enumerate(lines.items())
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 4}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}<div class=key>{key}</div></figure>"


def ticks(low: float, high: float) -> list[float]:
    """Returns round numbers, evenly spaced, from at most `low` to at least `high`."""
    low, high = _limits(low, high)
    rough = (high - low) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(f for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _limits(low: float, high: float) -> tuple[float, float]:
    """Returns the two, moved apart where they coincide."""
    margin = 0.5 * abs(low) or 0.5
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high)) else (low - margin, high + margin)
