"""Renders scenes under cameras: `render`, and the choice of the back end that it calls."""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gaussian.cameras import Cameras
from gaussian.gaussians import FIELD_WIDTHS, LOW_PASS, Gaussians
from torch_utils.precision import exact_float32

BACKENDS = ("auto", "torch", "cpu", "gsplat", "diff-gaussian-rasterization")
# What renders on a device beside the PyTorch back end; "auto" takes the first.
DEVICE_BACKENDS = {"cpu": ("cpu",), "cuda": ("gsplat", "diff-gaussian-rasterization")}
MAX_CHANNELS = 16  # upper limit of C in `colors`


class NonFiniteScene(ValueError):
    """Says that a scene, a camera or a background holds NaN or infinity, where and how often."""


@dataclass(frozen=True)
class Rendering:
    """Holds images of B scenes from V cameras each."""

    rgb: Tensor  # [B, V, 3, H, W] over the background, 0 and up, not limited from above ([B, V, C, H, W] with `colors`)
    alpha: Tensor  # [B, V, 1, H, W] accumulated opacity, 0..1
    depth: Tensor  # [B, V, 1, H, W] sum of alpha T z: camera z in world units, background 0, not divided by alpha

    @property
    def image(self) -> Tensor:
        """Returns 2 rgb - 1, the range that discriminators read; it exceeds 1 where rgb does."""
        return 2 * self.rgb - 1


def render(
    scene: Gaussians,  # B scenes
    cameras: Cameras,  # of leading shape [B, V]
    resolution: int | tuple[int, int],  # pixels: one number for a square, or (height, width)
    background: Tensor | None = None,  # RGB that broadcasts to [B, V, 3]; None is white
    *,
    colors: Tensor | None = None,  # [B, N, C] or [B, V, N, C] with C <= 16, in place of the scene's SH
    scale_modifier: float = 1.0,  # factor on the splats' standard deviations
    subset: slice | Tensor | int | None = None,  # draw only these splats, see `Gaussians.rows_of`; an int is a level
    with_depth: bool = True,  # False: depth is [B, V, 0, H, W], and gsplat is spared a channel
    check_finite: bool = True,  # on a CPU, refuse what is NaN or infinite
    low_pass: float = LOW_PASS,  # square pixels added to the variances that splats have in an image
    backend: str = "auto",  # see `resolve_backend`
) -> Rendering:
    """Splats B scenes from V cameras each (3D Gaussian splatting, Kerbl et al. 2023, sections 4 and 6).

    A splat reaches exactly the pixels where its alpha is at least 1/255. Focal lengths and principal points are the
    cameras'. With `colors`, rgb and background have C channels in place of 3. The published low pass is as wide as a
    pixel of a large image: where images are small, it is wider than what a pixel of a photograph averages.

    A `subset` renders as `scene.select(subset)` would (colors selected alike), bit for bit. Slices and levels are never
    copied; indices are gathered by all back ends but the native one, which reads through them.

    Opacities of exactly 0 and 1 are large finite logits: infinite ones are refused as all infinities are. Without
    `check_finite`, as in a training step that counts and skips non-finite gradients, the native back end turns them
    into NaN. On a GPU the check would wait for the device; it is not made there.

    Differentiable in the scene, the colours and the background, not in the cameras.
    Raises ValueError if a shape does not fit, if an input is NaN or infinite, if the cameras have skew, if the subset
    does not exist, or if the back end does not exist or does not run on the scene's device.
    """
    height, width = _image_size(resolution)
    num_views = _check_scene(scene, cameras)
    channels = 3 if colors is None else _check_colors(colors, scene, num_views)
    background = _background(background, scene, (scene.batch_size, num_views, channels))
    if not scale_modifier > 0:
        raise ValueError(f"scale_modifier must be positive, got {scale_modifier}")
    name = resolve_backend(backend, scene.device, scene.dtype)
    options = _low_pass(low_pass, name)
    if name == "gsplat" and not with_depth:
        options["with_depth"] = False
    if subset is not None:
        rows = scene.rows_of(subset)
        if name == "cpu":
            options["subset"] = rows
        else:
            scene, colors = scene.select(rows), None if colors is None else colors[..., rows, :]
    checked = check_finite and scene.device.type == "cpu"
    if checked and not (name == "cpu" and (colors is not None or scene.sh_degree == 0)):
        _refuse_nonfinite(scene, cameras, background, colors, options.get("subset"))
    with torch.autocast(scene.device.type, enabled=False), exact_float32():  # rasterisation needs float32 throughout
        rgb, alpha, depth = _module(name).rasterize(
            scene, cameras.to(dtype=scene.dtype), height, width, background, colors, scale_modifier, **options
        )
    if checked and name == "cpu" and bool(alpha.detach()[..., 0, 0].isnan().any()):  # all of the image is
        _refuse_nonfinite(scene, cameras, background, colors, options.get("subset"))
        raise ValueError("the colours of the scene's sh leave float32's range")
    return Rendering(rgb=rgb, alpha=alpha, depth=depth if with_depth else depth[:, :, :0])


def resolve_backend(name: str = "auto", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Returns the back end that renders on a device.

    Legal are "torch", "cpu" (the native kernel), and on CUDA "gsplat" and "diff-gaussian-rasterization" (only when
    asked for by name).

    "auto" takes the fastest that is there, and the PyTorch one for float64. Where it has to fall back to PyTorch it
    warns once, naming the reason. Raises ValueError if a back end asked for by name does not exist or cannot be used.
    """
    device = torch.device(device)
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} does not exist; legal are {BACKENDS}")
    if name == "torch" or (name == "auto" and dtype != torch.float32):
        return "torch"
    there = DEVICE_BACKENDS.get(device.type, ())
    if name != "auto" and (name not in there or dtype != torch.float32):
        legal = ", ".join(repr(n) for n in ("auto", "torch", *(there if dtype == torch.float32 else ())))
        kind = f"{str(dtype).removeprefix('torch.')} on {device.type}"
        raise ValueError(f"backend {name!r} does not render {kind}; legal there: {legal}")
    if not there:
        return "torch"
    wanted = there[0] if name == "auto" else name
    reason = _unavailable(wanted)
    if reason is None:
        return wanted
    if name != "auto":
        raise ValueError(f"backend {name!r} is not available: {reason}")
    _warn_once(f"rendering on {device.type} with the slow back end 'torch': '{wanted}' cannot be used: {reason}")
    return "torch"


def _background(background: Tensor | None, scene: Gaussians, shape: tuple[int, int, int]) -> Tensor:
    """Returns the background, white for None, in a shape [B, V, C]. Raises ValueError if it does not broadcast."""
    if background is None:
        background = scene.means.new_ones(())
    try:
        return background.to(scene.means).expand(shape)
    except RuntimeError:
        raise ValueError(f"background must broadcast to {list(shape)}, got {list(background.shape)}") from None


def check_low_pass(low_pass: float, name: str = "low_pass") -> None:
    """Raises ValueError, with the name, unless a low pass is one that splats can have."""
    if not 0 < low_pass < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {low_pass}")


def _low_pass(low_pass: float, backend: str) -> dict[str, Any]:
    """Returns the options that tell a back end of another low pass. Raises ValueError for one that it cannot have."""
    check_low_pass(low_pass)
    if low_pass == LOW_PASS:
        return {}
    if backend == "diff-gaussian-rasterization":
        raise ValueError(f"back end {backend!r} has a low pass of {LOW_PASS}; this scene needs {low_pass}")
    return {"low_pass": low_pass}


def _image_size(resolution: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if not (height > 0 and width > 0):
        raise ValueError(f"resolution must be positive, or (height, width) of positive numbers, got {resolution}")
    return height, width


def _check_scene(scene: Gaussians, cameras: Cameras) -> int:
    """Returns the number of views V."""
    if scene.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the scene must be float32 or float64, got {scene.dtype}")
    if len(cameras.shape) != 2 or cameras.shape[0] != scene.batch_size:
        raise ValueError(f"cameras must have leading shape [{scene.batch_size}, V], got {list(cameras.shape)}")
    if cameras.device != scene.device:
        raise ValueError(f"cameras are on {cameras.device}, the scene is on {scene.device}; they must be together")
    # No back end models skew. On a GPU the test would stall the stream; data sets are checked when they are read.
    if cameras.device.type == "cpu" and bool((cameras.intrinsics[..., 0, 1] != 0).any()):
        raise ValueError("cameras with skew (intrinsics[0, 1] != 0) cannot be rendered")
    return cameras.shape[1]


def _refuse_nonfinite(
    scene: Gaussians, cameras: Cameras, background: Tensor, colors: Tensor | None, subset: slice | Tensor | None
) -> None:
    """Raises NonFiniteScene for the first input that is NaN or infinite, saying where and how often."""
    if subset is not None:
        scene, colors = scene.select(subset), None if colors is None else colors[..., subset, :]
    inputs = {name: getattr(scene, name) for name in (*FIELD_WIDTHS, "sh")}
    if colors is not None:
        inputs["colors"] = colors
        del inputs["sh"]
    inputs |= {"cam2world": cameras.cam2world, "intrinsics": cameras.intrinsics, "background": background}
    for name, tensor in inputs.items():
        wrong = ~tensor.detach().isfinite()
        if wrong.any():
            count, first = int(wrong.sum()), wrong.nonzero()[0].tolist()
            value = float(tensor[tuple(first)].detach())
            raise NonFiniteScene(
                f"{name} {list(tensor.shape)} has {count} values that are NaN or infinite, the first of them {value} "
                f"at {first}; only finite numbers can be rendered"
            )


def _check_colors(colors: Tensor, scene: Gaussians, num_views: int) -> int:
    """Returns the number of channels C."""
    if colors.dtype != scene.dtype:
        raise ValueError(f"colors must be {scene.dtype} as the scene is, got {colors.dtype}")
    leads = ([scene.batch_size, scene.num_splats], [scene.batch_size, num_views, scene.num_splats])
    if list(colors.shape[:-1]) not in leads or not 1 <= colors.shape[-1] <= MAX_CHANNELS:
        legal = " or ".join(str([*lead, "C"]) for lead in leads)
        raise ValueError(f"colors must have shape {legal} with 1 <= C <= {MAX_CHANNELS}, got {list(colors.shape)}")
    return colors.shape[-1]


def _module(name: str) -> ModuleType:
    """Imports a back end when it is first used: one of them compiles code, another needs CUDA."""
    return importlib.import_module(f"gaussian.backend_{name.replace('-', '_')}")


def _unavailable(name: str) -> str | None:
    """Returns why a back end cannot be used, or None."""
    module = _module(name)
    return None if module.available() else str(module.reason())


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
