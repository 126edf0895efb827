"""Draws a data set's cameras, to see with one's own eyes that the labels mean what they should."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from gaussian import Cameras, Geometry
from training.dataset import ImageDataset
from training.images import composite, quantize

_YAW_BINS = 8
_SHOWN = 200  # cameras drawn as frusta
_SAMPLES = 4  # images that the point is drawn into
_PER_BIN = 64  # images that a mean is taken over
_AXES = (("x", "tab:red"), ("y", "tab:green"), ("z", "tab:blue"))


def save_camera_overview(
    dataset: ImageDataset, path: str | Path, point: Sequence[float] | None = None
) -> list[tuple[float, float]]:
    """Draws frusta from above and from the side, mean images by yaw, histograms, and a point in some images, as a PNG.

    point: in label units; None takes the pivot of the cameras. Returns where it lies in the images shown, in pixels
    from the top left corner.
    Everything is in label units, as the file has them.
    """
    cameras = Cameras.from_labels(torch.from_numpy(dataset.raw_labels)).to(dtype=torch.float64)
    geometry = cameras.summary()
    place = torch.tensor(geometry.pivot if point is None else point, dtype=torch.float64)
    yaw, pitch = (angle.rad2deg().numpy() for angle in cameras.yaw_pitch(geometry))

    figure = Figure(figsize=(16, 13), layout="constrained")
    FigureCanvasAgg(figure)
    rows = np.asarray(figure.subfigures(4, 1, height_ratios=(5, 2.4, 2.6, 3.6)))
    above, side, both = rows[0].subplots(1, 3)
    _draw_frusta(above, cameras, geometry, place, (0, 2), "from above")
    above.invert_yaxis()  # the front, +z, is at the bottom, as on a map before the subject
    _draw_frusta(side, cameras, geometry, place, (2, 1), "from the side")
    _draw_directions(both, yaw, pitch)
    distance = (cameras.positions - place.new_tensor(geometry.centre)).norm(dim=-1).numpy()
    focal = cameras.intrinsics[:, 0, 0].numpy()
    _draw_histograms(rows[1].subplots(1, 4), yaw, pitch, distance, focal)
    _draw_means(rows[2].subplots(1, _YAW_BINS), dataset, yaw)
    spots = _draw_point(rows[3].subplots(1, _SAMPLES), dataset, cameras, geometry, yaw, place)
    rows[0].suptitle(
        f"{dataset.name}: {len(dataset)} cameras, radius {geometry.radius:.4g}, world scale "
        f"{geometry.world_scale:.4g}, pivot {', '.join(f'{round(p, 3) + 0:g}' for p in geometry.pivot)}"
    )
    figure.savefig(path, dpi=80, format="png")
    return spots


def _draw_frusta(
    axes: Axes, cameras: Cameras, geometry: Geometry, point: torch.Tensor, plane: tuple[int, int], title: str
) -> None:
    """Draws cameras as triangles in the plane of two world axes, with the world's origin and the point."""
    step = max(1, len(cameras) // _SHOWN)
    shown = cameras[::step]
    length = 0.25 * geometry.radius
    corners = torch.tensor([[0.0, 0.5], [1.0, 0.5]]) if plane == (0, 2) else torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    rays = torch.cat([corners, torch.ones(2, 1)], dim=-1).to(cameras.dtype) @ shown.intrinsics.inverse().transpose(
        -1, -2
    )
    ends = shown.positions[:, None] + length * rays @ shown.cam2world[:, :3, :3].transpose(-1, -2)  # [M, 2, 3]
    eye = shown.positions[:, None]
    outline = torch.cat([eye, ends, eye], dim=1)[..., list(plane)].numpy()  # [M, 4, 2]
    axes.add_collection(LineCollection(list(outline), colors="0.35", linewidths=0.5))
    for axis, (name, colour) in enumerate(_AXES):
        if axis in plane:
            tip = [0.0, 0.0]
            tip[plane.index(axis)] = 0.3 * geometry.radius
            axes.plot([0, tip[0]], [0, tip[1]], color=colour, linewidth=2, label=f"world {name}")
    axes.plot(*point[list(plane)].tolist(), "m+", markersize=12, label="point")
    axes.autoscale()
    axes.set(title=title, xlabel="xyz"[plane[0]], ylabel="xyz"[plane[1]], aspect="equal")
    axes.legend(fontsize=8)


def _draw_directions(axes: Axes, yaw: np.ndarray, pitch: np.ndarray) -> None:
    counts, xs, ys = np.histogram2d(yaw, pitch, bins=(40, 40))
    axes.pcolormesh(xs, ys, np.ma.masked_equal(counts.T, 0), cmap="viridis")
    axes.set(title="cameras", xlabel="yaw (degrees, + towards world +x)", ylabel="pitch (degrees, + up)")


def _draw_histograms(axes: Sequence[Axes], *values: np.ndarray) -> None:
    names = ("yaw (degrees)", "pitch (degrees)", "distance to the centre (label units)", "focal length (image widths)")
    for own, name, value in zip(axes, names, values, strict=True):
        spread = value.max() - value.min()
        # Values that agree to float32 would otherwise fill 40 bins with rounding.
        same = spread <= 1e-4 * max(abs(value).max(), 1e-9)
        own.hist(value, bins=np.sort(np.linspace(0.9, 1.1, 41) * value.mean()).tolist() if same else 40)
        own.set_xlabel(name)
    axes[0].set_ylabel("cameras")


def _draw_means(axes: Sequence[Axes], dataset: ImageDataset, yaw: np.ndarray) -> None:
    """Draws the mean image per yaw bin: heads that turn with the yaw mean that images and labels belong together."""
    edges = np.linspace(yaw.min(), yaw.max() + 1e-6, _YAW_BINS + 1)
    for own, low, high in zip(axes, edges, edges[1:], strict=False):
        members = np.flatnonzero((yaw >= low) & (yaw < high))
        own.set_axis_off()
        own.set_title(f"yaw {low:.0f} to {high:.0f}: {len(members)}", fontsize=9)
        if len(members):
            some = members[:: max(1, len(members) // _PER_BIN)][:_PER_BIN]
            own.imshow(_pictures(dataset, some).float().mean(0).permute(1, 2, 0).numpy() / 255)


def _draw_point(
    axes: Sequence[Axes],
    dataset: ImageDataset,
    cameras: Cameras,
    geometry: Geometry,
    yaw: np.ndarray,
    point: torch.Tensor,
) -> list[tuple[float, float]]:
    """Draws images from the leftmost to the rightmost camera, with the point and the world's axes at it."""
    chosen = np.argsort(yaw)[np.linspace(0, len(yaw) - 1, _SAMPLES).round().astype(int)]
    length = 0.2 * geometry.radius / (2 * geometry.intrinsics[0][0])
    tips = torch.cat([point[None], point + length * torch.eye(3, dtype=point.dtype)])
    xy, _ = cameras[chosen].project(tips.expand(len(chosen), 4, 3))
    pixels = (xy * dataset.resolution).numpy()  # from the corner; pixel (0, 0) has its centre at 0.5
    for own, item, spots, picture in zip(axes, chosen, pixels, _pictures(dataset, chosen), strict=True):
        own.imshow(picture.permute(1, 2, 0).numpy(), extent=(0, dataset.resolution, dataset.resolution, 0))
        for tip, (_, colour) in zip(spots[1:], _AXES, strict=True):
            own.plot(*zip(spots[0], tip, strict=True), color=colour, linewidth=2)
        own.plot(*spots[0], "m+", markersize=12)
        name = Path(dataset.names([item])[0]).name
        own.set_title(f"{name}: yaw {yaw[item]:.0f}, point at {spots[0][0]:.1f}, {spots[0][1]:.1f} px", fontsize=9)
        own.set(xlim=(0, dataset.resolution), ylim=(dataset.resolution, 0))
    return [(float(x), float(y)) for x, y in pixels[:, 0]]


def _pictures(dataset: ImageDataset, items: np.ndarray) -> torch.Tensor:
    """Reads images as uint8 [B, 3, R, R] over white."""
    batch = dataset.load(items)
    return quantize(composite(batch.images, batch.masks, torch.ones(len(items), 3)))
