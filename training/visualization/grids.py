"""Draws the pictures of a run: image grids, the cameras of a data set, coloured depth."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gaussian import Cameras, Geometry
from gaussian.cameras import pixel_centres
from training.images import quantize

HISTOGRAM_BIN_DEGREES = 2.5


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Tiles images into one, row by row; cells that are left over are white.

    images: float [N, 3, H, W] in -1..1 or uint8. Returns uint8 [3, rows * H, columns * W] on the CPU; a
    single picture is not copied.
    Raises ValueError if there is no image, or if the shape or `columns` is not legal.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"images must have shape [N, 3, H, W] with N > 0, got {list(images.shape)}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    pixels = (images if images.dtype == torch.uint8 else quantize(images)).cpu()
    count, channels, height, width = pixels.shape
    if count == columns == 1:
        return pixels[0]
    rows = math.ceil(count / columns)
    cells = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    cells[:count] = pixels
    cells = cells.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)  # [C, rows, H, columns, W]
    return cells.reshape(channels, rows * height, columns * width)


def save_image_grid(images: Tensor, path: str | Path, columns: int, factor: int = 1) -> None:
    """Writes `image_grid`, enlarged by `factor`, as a picture; the format goes by the file name."""
    Image.fromarray(enlarge(image_grid(images, columns).permute(1, 2, 0).numpy(), factor)).save(path)


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """Enlarges a picture uint8 [H, W, 3] `factor` times each way, smoothly, so that small ones can be looked at.

    Rendering splats finer than in training sharpens them and shows what the discriminator never saw; this does not.
    """
    if factor == 1:
        return picture
    height, width = picture.shape[:2]
    image = Image.fromarray(picture).resize((factor * width, factor * height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def color_depth(
    depth: Tensor, alpha: Tensor, near: float | None = None, far: float | None = None, background: Tensor | None = None
) -> Tensor:
    """Colours depth for the eye: near is bright, far is dark.

    depth, alpha: [N, 1, H, W] as `Rendering` holds them (depth is the alpha-weighted sum, world units).
    near, far: world units of the two ends; None takes the range of all pixels with alpha over one half.
    background: RGB 0..1 behind what is seen; white if None.
    Returns uint8 [N, 3, H, W]. Where nothing is in front of the background, everything is background.
    """
    distance, solid = mean_depth(depth, alpha)
    if solid.any():
        near = float(distance[solid].min()) if near is None else near
        far = float(distance[solid].max()) if far is None else far
    else:
        near, far = near or 0.0, far or 1.0
    nearness = 1 - (distance - near) / max(far - near, 1e-12)
    table = torch.tensor(matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3], dtype=torch.float32)
    index = (nearness.clamp(0, 1) * 255).round().long().squeeze(1).cpu()
    return _over(table[index].permute(0, 3, 1, 2), alpha * solid, background)


def mean_depth(depth: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean camera z of what a pixel sees, world units, and where alpha is over 1/2; both [N, 1, H, W]."""
    return depth / alpha.clamp_min(1e-6), alpha > 0.5


def depth_range(depth: Tensor, alpha: Tensor) -> tuple[float, float] | None:
    """Returns the nearest and farthest mean depth but for the outermost 1 % of the solid pixels; None if none is."""
    distance, solid = mean_depth(depth, alpha)
    values = distance[solid].sort().values
    if len(values) == 0:
        return None
    cut = len(values) // 100
    return float(values[cut]), float(values[-1 - cut])


def color_normals(depth: Tensor, alpha: Tensor, cameras: Cameras, background: Tensor | None = None) -> Tensor:
    """Colours the surface's direction, from depth: red points right, green up, blue at the camera.

    Neighbouring solid pixels span the surface; one at its rim uses the side that it has.
    depth, alpha: [N, 1, H, W] as `Rendering` holds them; cameras [N]; background as in `color_depth`.
    Returns uint8 [N, 3, H, W].
    """
    z, solid = mean_depth(depth, alpha)
    rays = cameras.rays(*(pixel_centres(n, z) for n in (z.shape[-1], z.shape[-2])))
    points = rays.movedim(-1, 1) * z  # [N, 3, H, W] in camera axes
    normals = torch.linalg.cross(_slope(points, solid, 3), _slope(points, solid, 2), dim=1)
    # The cross product of right and down points into the scene, along camera z; the normal comes towards the camera.
    normals = -torch.nn.functional.normalize(normals, dim=1)
    colors = torch.stack([normals[:, 0], -normals[:, 1], -normals[:, 2]], dim=1) / 2 + 0.5
    return _over(colors.cpu(), alpha * solid, background)


def _slope(points: Tensor, solid: Tensor, axis: int) -> Tensor:
    """Returns the change of points [N, 3, H, W] per pixel along `axis`: the mean over the neighbours that are solid."""
    count = points.shape[axis] - 1
    step = points.narrow(axis, 1, count) - points.narrow(axis, 0, count)
    both = solid.narrow(axis, 1, count) & solid.narrow(axis, 0, count)
    step, weight = step * both, both.to(points)
    total, weights = torch.zeros_like(points), torch.zeros_like(points[:, :1])
    for start in (0, 1):  # every step serves the pixel before it and the one after it
        total.narrow(axis, start, count).add_(step)
        weights.narrow(axis, start, count).add_(weight)
    return total / weights.clamp_min(1)


def _over(colors: Tensor, alpha: Tensor, background: Tensor | None) -> Tensor:
    """Lays colours [N, 3, H, W] over an RGB background by alpha [N, 1, H, W]; uint8 on the CPU."""
    coverage = alpha.clamp(0, 1).cpu()
    behind = torch.ones(3) if background is None else background.cpu()
    return ((colors * coverage + behind[:, None, None] * (1 - coverage)) * 255).round().to(torch.uint8)


def save_camera_histogram(cameras: Cameras | Tensor, geometry: Geometry, path: str | Path) -> None:
    """Draws where the cameras stand: a yaw/pitch histogram in degrees with its two margins, as a PNG.

    cameras: any leading shape, or their labels [..., 25]; geometry: of the same units, see `Cameras.summary`.
    Raises ValueError if there is no camera.
    """
    if isinstance(cameras, Tensor):
        cameras = Cameras.from_labels(cameras)
    yaw, pitch = (angle.rad2deg().flatten().cpu().numpy() for angle in cameras.yaw_pitch(geometry))
    if yaw.size == 0:
        raise ValueError("a camera histogram needs at least one camera, got none")
    yaw_edges, pitch_edges = _bin_edges(yaw), _bin_edges(pitch)
    counts, _, _ = np.histogram2d(yaw, pitch, bins=(yaw_edges, pitch_edges))

    figure = Figure(figsize=(7, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(
        [["yaw", "text"], ["both", "pitch"]], width_ratios=(4, 1), height_ratios=(1, 4), empty_sentinel=None
    )
    # Empty bins stay white, so that a lone camera far out can be seen.
    axes["both"].pcolormesh(yaw_edges, pitch_edges, np.ma.masked_equal(counts.T, 0), cmap="viridis")
    axes["both"].set_xlabel("yaw (degrees, + towards world +x)")
    axes["both"].set_ylabel("pitch (degrees, + up)")
    axes["yaw"].stairs(counts.sum(axis=1), yaw_edges, fill=True)
    axes["yaw"].sharex(axes["both"])
    axes["yaw"].set_ylabel("cameras")
    axes["pitch"].stairs(counts.sum(axis=0), pitch_edges, fill=True, orientation="horizontal")
    axes["pitch"].sharey(axes["both"])
    axes["pitch"].set_xlabel("cameras")
    axes["text"].axis("off")
    focal = geometry.intrinsics[0][0]
    summary = f"{yaw.size} cameras\nradius {geometry.radius:.3g}\nfocal {focal:.3g}\nyaw $\\sigma$ {yaw.std():.1f}°"
    axes["text"].text(0, 1, summary + f"\npitch $\\sigma$ {pitch.std():.1f}°", va="top", fontsize=8)
    figure.savefig(path, dpi=100, format="png")


def _bin_edges(degrees: np.ndarray) -> np.ndarray:
    """Returns edges at multiples of the bin width that enclose all values, with one empty bin at either side."""
    first = math.floor(degrees.min() / HISTOGRAM_BIN_DEGREES) - 1
    last = math.floor(degrees.max() / HISTOGRAM_BIN_DEGREES) + 2
    return np.arange(first, last + 1) * HISTOGRAM_BIN_DEGREES
