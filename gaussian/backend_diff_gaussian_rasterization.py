"""Renders on NVIDIA GPUs through the package `diff-gaussian-rasterization`, where the user has installed it.

The package (Kerbl et al. 2023; research licence, therefore neither a dependency nor the default) renders one view a
call and three channels, and its forks differ: they return two to four tensors and want `antialiasing` or not. So the
settings are filled by name, and only what every fork agrees on is relied upon, the colours: alpha and depth are
rendered as two more channels, 1 and the camera z. Where a fork returns them itself, and a probe finds both their values
and their gradients equal to that, its own are taken, which saves the second pass.

Differences to the reference (`backend_torch`): a splat reaches to the edge of the 16x16 tiles that its box of three
standard deviations touches; and the local affine map is limited symmetrically about the principal point, which for
principal points up to MAX_OFFSET off the centre concerns splats outside the image only. Further ones are refused.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian.cameras import Cameras
from gaussian.gaussians import Gaussians

PACKAGE = "diff_gaussian_rasterization"
INSTALL = "install the one of https://github.com/graphdeco-inria/diff-gaussian-rasterization"
CHANNELS = 3  # the number of colour channels that the package is compiled for
SETTINGS = {
    "image_height", "image_width", "tanfovx", "tanfovy", "bg", "scale_modifier", "viewmatrix", "projmatrix",
    "sh_degree", "campos", "prefiltered", "debug", "antialiasing",
}  # fmt: skip
ARGUMENTS = {
    "self", "means3D", "means2D", "opacities", "shs", "colors_precomp", "scales", "rotations", "cov3D_precomp",
}  # fmt: skip
MAX_OFFSET = 0.15  # image sizes; the package's limit of 1.3 half images reaches this far beyond the edge
PROBE_TOLERANCE = 1e-3  # relative to the largest value


class View(NamedTuple):
    """Holds one camera as the package reads it; the matrices are transposed, since it multiplies row vectors."""

    world2cam: Tensor  # [4, 4] transposed
    projection: Tensor  # [4, 4] transposed, world to clip space
    tangents: tuple[float, float]  # of half the horizontal and vertical field of view, on the host
    position: Tensor  # [3] camera centre, world units


def available() -> bool:
    return reason() == ""


@functools.cache
def reason() -> str:
    """Returns why this back end cannot be used, "" if it can. Without CUDA the package is not imported."""
    return interface_reason() if torch.cuda.is_available() else "no CUDA device"


def interface_reason() -> str:
    """Returns what is wrong with the installed package, such as an unknown setting; "" if it can be called."""
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError as error:
        return f"the package diff-gaussian-rasterization cannot be imported ({error}); {INSTALL}"
    except Exception as error:  # whatever its compiled part raises: reported, not swallowed
        return f"diff-gaussian-rasterization does not work here ({type(error).__name__}: {error}); {INSTALL}"
    settings = _required(package.GaussianRasterizationSettings) - SETTINGS
    arguments = _required(package.GaussianRasterizer.forward) - ARGUMENTS
    unknown = sorted(settings | arguments)
    if unknown:
        return f"this fork of diff-gaussian-rasterization asks for {', '.join(unknown)}, unknown here; {INSTALL}"
    return ""


def rasterize(
    scene: Gaussians,  # B scenes
    cameras: Cameras,  # [B, V]
    height: int,
    width: int,
    background: Tensor,  # [B, V, C]
    colors: Tensor | None,  # [B, N, C] or [B, V, N, C]; None takes the scene's SH
    scale_modifier: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rgb [B, V, C, H, W], alpha [B, V, 1, H, W] and depth [B, V, 1, H, W]; see `gaussian.render`.

    Raises ValueError for a principal point over MAX_OFFSET off the image's centre.
    """
    views = _views(cameras)
    if any(abs(c - 0.5) > MAX_OFFSET for c in cameras.intrinsics[..., :2, 2].flatten().tolist()):
        raise ValueError(
            f"back end 'diff-gaussian-rasterization' renders principal points up to {MAX_OFFSET} image sizes off the "
            "centre; use 'gsplat' for these cameras"
        )
    if colors is None:
        colors = scene.colors() if scene.sh_degree == 0 else scene.colors(cameras.positions)
    if colors.ndim == 3:
        colors = colors[:, None].expand(-1, cameras.shape[1], -1, -1)  # [B, V, N, C]
    own = _own_outputs(scene.device.type)
    scales, quats, opacities = scale_modifier * scene.scales(), scene.unit_quats(), scene.opacities()
    images = []
    for b in range(cameras.shape[0]):  # one view a call is all that the package offers
        splats = (scene.means[b], scales[b], quats[b], opacities[b])
        for v in range(cameras.shape[1]):
            images.append(_draw(splats, views[b * cameras.shape[1] + v], colors[b, v], height, width, own))
    stacked = torch.stack(images).unflatten(0, tuple(cameras.shape))  # [B, V, C + 2, H, W]
    rgb, depth, alpha = stacked.split([colors.shape[-1], 1, 1], dim=2)
    return rgb + (1 - alpha) * background[..., None, None], alpha, depth


def _draw(
    splats: Sequence[Tensor], view: View, colors: Tensor, height: int, width: int, own: tuple[int, int] | None
) -> Tensor:
    """Renders one view over black: [C + 2, H, W], the colours, depth and alpha. `own`: see `_own_outputs`."""
    channels = colors if own else torch.cat([colors, _depth_and_one(splats[0], view)], dim=-1)  # [N, C (+ 2)]
    missing = -channels.shape[-1] % CHANNELS
    passes = [
        _call(splats, view, part, height, width) for part in F.pad(channels, (0, missing)).split(CHANNELS, dim=-1)
    ]
    image = torch.cat([outputs[0] for outputs in passes])[: channels.shape[-1]]
    return torch.cat([image, *(passes[0][i].reshape(1, height, width) for i in own)]) if own else image


def _depth_and_one(means: Tensor, view: View) -> Tensor:
    """Returns camera z in world units and 1 for each splat [N, 2]; they blend into depth and alpha."""
    column = view.world2cam[:, 2]
    z = means @ column[:3] + column[3]
    return torch.stack([z, torch.ones_like(z)], dim=-1)


def _call(splats: Sequence[Tensor], view: View, colors: Tensor, height: int, width: int) -> Sequence[Any]:
    """Returns everything the package does for one view and three channels over black; the image comes first."""
    package = importlib.import_module(PACKAGE)
    means, scales, quats, opacities = splats
    values = {
        "image_height": height,
        "image_width": width,
        "tanfovx": view.tangents[0],
        "tanfovy": view.tangents[1],
        "bg": means.new_zeros(CHANNELS),
        "scale_modifier": 1.0,
        "viewmatrix": view.world2cam,
        "projmatrix": view.projection,
        "sh_degree": 0,
        "campos": view.position,
        "prefiltered": False,
        "debug": False,
        "antialiasing": False,
    }
    known = inspect.signature(package.GaussianRasterizationSettings).parameters
    settings = package.GaussianRasterizationSettings(**{name: values[name] for name in values if name in known})
    return package.GaussianRasterizer(raster_settings=settings)(
        means3D=means.contiguous(),
        means2D=torch.zeros_like(means),
        opacities=opacities.contiguous(),
        colors_precomp=colors.contiguous(),
        scales=scales.contiguous(),
        rotations=quats.contiguous(),
    )


def _views(cameras: Cameras) -> list[View]:
    """Converts cameras [B, V] to a list, scene-major.

    In clip space x / w runs from -1 at the image's left edge to 1 at its right, and w = z.
    """
    intrinsics = cameras.intrinsics
    clip = intrinsics.new_zeros(*cameras.shape, 4, 4)
    clip[..., :2, :3] = 2 * intrinsics[..., :2, :]
    clip[..., :2, 2] -= 1
    clip[..., 2:, 2] = 1
    world2cam = cameras.world2cam.transpose(-1, -2)
    projection = world2cam @ clip.transpose(-1, -2)
    tangents = (0.5 / intrinsics[..., [0, 1], [0, 1]]).flatten(0, -2).tolist()
    matrices = (t.flatten(0, -3).contiguous().unbind() for t in (world2cam, projection))
    positions = cameras.positions.flatten(0, -2).contiguous().unbind()
    return [View(w, p, (x, y), o) for w, p, (x, y), o in zip(*matrices, tangents, positions, strict=True)]


@functools.cache
def _own_outputs(device: str) -> tuple[int, int] | None:
    """Returns the positions of depth and alpha among the package's outputs; None unless both agree with `render`.

    Tried on a small scene: values and gradients must agree with those of the blended channels.
    """
    generator = torch.Generator().manual_seed(0)
    size, count = 16, 8
    raw = [torch.rand(count, width, generator=generator) for width in (3, 3, 4, 1)]
    means, scales, quats, opacities = (
        t.to(device).requires_grad_() for t in (raw[0] - 0.5, 0.1 + raw[1] / 4, F.normalize(raw[2] + 0.1), raw[3])
    )
    splats = (means, scales, quats, opacities)
    intrinsics = means.new_tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    camera = Cameras.look_at(means.new_tensor([[0.3, 0.2, 2.0]]), (0.0, 0.0, 0.0), intrinsics=intrinsics)
    view = _views(camera)[0]
    outputs = _call(splats, view, F.pad(_depth_and_one(means, view), (0, 1)), size, size)
    weight = torch.rand(size, size, generator=generator).to(device)
    found = []
    for expected in outputs[0][:2]:  # depth, then alpha
        target = _value_and_gradient(expected, weight, splats)
        matches = [
            i
            for i, output in enumerate(outputs[1:], start=1)
            if isinstance(output, Tensor)
            and output.numel() == size * size
            and output.requires_grad
            and _agree(_value_and_gradient(output.reshape(size, size), weight, splats), target)
        ]
        found.append(matches[0] if matches else None)
    depth, alpha = found
    return None if depth is None or alpha is None else (depth, alpha)


def _value_and_gradient(image: Tensor, weight: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad((image * weight).sum(), inputs, retain_graph=True, allow_unused=True)
    return [image.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))]


def _agree(values: Sequence[Tensor], targets: Sequence[Tensor]) -> bool:
    return all(
        bool((value - target).abs().max() <= PROBE_TOLERANCE * target.abs().max())
        for value, target in zip(values, targets, strict=True)
    )


def _required(function: Any) -> set[str]:
    """Returns the names of the parameters that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
