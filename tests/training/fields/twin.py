"""The slow twin of training/fields/: one ray at a time, in Python and float64, as the published codes define it.

It adds 1e-10 to every factor of the transmittance, which ours leaves out, and places samples by looking through the
bins one after the other.
"""

import math

import torch
from torch import Tensor

from gaussian import Cameras, Rendering
from training.fields.field import RadianceField
from training.fields.marching import March, RayDraws


def ray(camera: Cameras, row: int, column: int, height: int, width: int, grid: str) -> tuple[Tensor, Tensor, float]:
    """Origin, direction and cosine of the ray of one pixel of one camera (leading shape [])."""
    if grid == "centres":
        u, v = (column + 0.5) / width, (row + 0.5) / height
    else:
        u, v = column / (width - 1), row / (height - 1)
    local = torch.linalg.solve(camera.intrinsics, torch.tensor([u, v, 1.0], dtype=camera.dtype))
    length = float(local.norm())
    return camera.positions, camera.cam2world[:3, :3] @ (local / length), 1 / length


def activated(raw: Tensor, field: RadianceField) -> Tensor:
    raw = raw + field.shift
    return raw.clamp_min(0) if field.activation == "relu" else torch.log1p(torch.exp(raw))


def weights(density: Tensor, t: Tensor, last_delta: float) -> list[Tensor]:
    result, light = [], torch.ones((), dtype=t.dtype)
    for k in range(len(t)):
        delta = t[k + 1] - t[k] if k + 1 < len(t) else last_delta
        alpha = 1 - torch.exp(-delta * density[k])
        result.append(alpha * light)
        light = light * (1 - alpha + 1e-10)
    return result


def placed(t: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """Samples of the second pass of one ray."""
    edges = [(float(t[k]) + float(t[k + 1])) / 2 for k in range(len(t) - 1)]
    bins = [float(x) + 1e-5 + 1e-5 for x in w[1:-1]]
    total, cdf = sum(bins), [0.0]
    for value in bins:
        cdf.append(cdf[-1] + value / total)
    result = []
    for draw in u.tolist():
        k = sum(c < draw for c in cdf)
        low, high = max(k - 1, 0), min(k, len(bins))
        share = cdf[high] - cdf[low]
        result.append(edges[low] + (draw - cdf[low]) / (share if share >= 1e-5 else 1) * (edges[high] - edges[low]))
    return torch.tensor(result, dtype=t.dtype)


def even(march: March, u: Tensor | None) -> Tensor:
    t = torch.linspace(march.near, march.far, march.samples, dtype=torch.float64)
    if u is None:
        return t
    step = (march.far - march.near) / (march.samples - 1)
    if march.jitter == "centred":
        return t + (u - 0.5) * step
    if march.jitter == "onward":
        return t + u * step
    edges = [march.near, *((t[k] + t[k + 1]) / 2 for k in range(len(t) - 1)), march.far]
    return torch.stack([torch.as_tensor(edges[k] + (edges[k + 1] - edges[k]) * u[k]) for k in range(len(t))])


def pixel(
    field: RadianceField, camera: Cameras, place: tuple[int, int], size: tuple[int, int], march: March, draws: RayDraws
) -> tuple[Tensor, Tensor, Tensor]:
    """Premultiplied features [C], alpha and camera z times alpha of one pixel. field: one scene; draws: of the ray."""
    origin, direction, cosine = ray(camera, *place, *size, march.grid)

    def look(t: Tensor) -> tuple[Tensor, Tensor]:
        points = torch.stack([origin + float(x) * direction for x in t])[None]
        features, sigma = field.sample(points, direction.expand(1, len(t), 3))
        return features[0], sigma[0]

    t = even(march, draws.jitter)
    features, sigma = look(t)
    if march.fine_samples:
        noise = 0 if draws.first_noise is None else draws.first_noise
        u = draws.fine
        if u is None:
            u = (torch.arange(march.fine_samples, dtype=t.dtype) + 0.5) / march.fine_samples
        first = torch.stack(weights(activated(sigma + noise, field), t, march.last_delta)).detach()
        fine = placed(t, first, u)
        fine_features, fine_sigma = look(fine)
        order = sorted(range(len(fine) + len(t)), key=lambda k: float(torch.cat([fine, t])[k]))
        t, sigma = torch.cat([fine, t])[order], torch.cat([fine_sigma, sigma])[order]
        features = torch.cat([fine_features, features])[order]
    w = weights(activated(sigma + (0 if draws.noise is None else draws.noise), field), t, march.last_delta)
    if march.last_back:
        w[-1] = w[-1] + 1 - sum(w)
    color = sum(a * b for a, b in zip(w, features, strict=True))
    return color, sum(w), sum(a * b for a, b in zip(w, t, strict=True)) * cosine


def render(
    field: RadianceField, cameras: Cameras, size: tuple[int, int], march: March, background: Tensor, draws: RayDraws
) -> Rendering:
    """background: [B, V, C]; draws: of R = V H W rays."""
    (batch, views), (height, width) = cameras.shape, size
    results = []
    for b in range(batch):
        own = field.map(lambda values, b=b: values[b : b + 1])
        for v in range(views):
            for row in range(height):
                for column in range(width):
                    r = (v * height + row) * width + column
                    numbers = RayDraws(*(None if x is None else x[b, r] for x in vars(draws).values()))
                    color, alpha, z = pixel(own, cameras[b, v], (row, column), size, march, numbers)
                    results.append((color + (1 - alpha) * background[b, v], alpha, z))
    rgb, alpha, depth = (torch.stack(values) for values in zip(*results, strict=True))
    rgb = rgb.view(batch, views, height, width, -1).permute(0, 1, 4, 2, 3)
    return Rendering(rgb, alpha.view(batch, views, 1, height, width), depth.view(batch, views, 1, height, width))


def sphere_alpha(distance: float, radius: float, density: float) -> float:
    """Opacity of an even ball of some density along a line that passes its centre at some distance."""
    return 1 - math.exp(-2 * density * math.sqrt(max(radius**2 - distance**2, 0.0)))
