"""Draws pictures of results. Matplotlib is imported where one is drawn: it is slow to load, and few need it."""

from __future__ import annotations

from pathlib import Path

from metrics.results import MetricResult


def save_by_yaw(result: MetricResult, path: Path) -> None:
    """Draws a bar per yaw bin of `fid_yaw<N>` or `swd_yaw<N>`, as wide as it; bins of few reals are hatched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    edges, few = result.protocol["yaw_edges_deg"], result.protocol["bins_with_few_reals"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    heights = list(result.values.values())
    for b, (low, high, height) in enumerate(zip(edges, edges[1:], heights, strict=False), start=1):
        axes.bar(low, height, high - low, align="edge", edgecolor="white", hatch="//" if b in few else None)
        axes.annotate(f"{height:.3g}", ((low + high) / 2, height), ha="center", va="bottom")
    axes.axhline(result.value, linestyle="--", color="black", linewidth=1)
    axes.set_xlabel("yaw of the camera (degrees, + towards world +x)")
    detector = result.protocol["detector"]
    axes.set_ylabel("SWD" if detector is None else f"FID ({detector})")
    hatched = "; hatched: few reals" if few else ""
    axes.set_title(f"{result.name}: mean {result.value:.4g} (dashed){hatched}")
    figure.savefig(path, dpi=100)
