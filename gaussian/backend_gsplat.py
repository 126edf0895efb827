"""Renders on NVIDIA GPUs through gsplat (Apache-2.0), in one batched call for all scenes and views.

Written against the documented `rasterization` of gsplat 1.5. Differences to the reference (`backend_torch`): alpha is
capped at ALPHA_CAP inside gsplat; a pixel also stops before a splat that takes the transmittance to exactly 1e-4.

gsplat compiles its kernels when they are first used, and removes a build folder that it thinks is stale: so one process
does that under our lock while the others that share the folder wait. Where its library is there, nothing is locked.

Each call waits once for the device, inside gsplat, which allocates by the number of intersections of splats and tiles.

Environment: SPLATGAN_GSPLAT_TILE (8 or 16, the default): pixels along a tile's side. Small splats want small tiles.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian.cameras import Cameras
from gaussian.gaussians import LOW_PASS, QUAT_EPS, Gaussians
from torch_utils import native
from torch_utils.constants import kept

NEAR = 0.2  # camera z, world units, below which a splat is dropped
ALPHA_CAP = 0.999  # a constant inside gsplat; the published rasteriser has 0.99
TILES = (8, 16)  # legal pixels along a tile's side
WARP = 32  # threads that add their gradients together, see `_padded`
LOCK = "gsplat"  # held while gsplat compiles


def available() -> bool:
    """Returns whether CUDA is there and gsplat renders a first splat; gsplat is not imported without CUDA."""
    return reason() == ""


@functools.cache
def reason() -> str:
    """Returns why this back end cannot be used, "" if it can.

    gsplat may have to compile its kernels when it is first used, which can fail in any way: so one splat is drawn.
    """
    if not torch.cuda.is_available():
        return "no CUDA device"
    tile_size()  # what the user set wrongly is not gsplat's failure
    try:
        if _is_compiled():
            _draw_one_splat()
        else:
            with native.exclusive_build(LOCK, "gsplat compiles its CUDA kernels, once; this takes some minutes"):
                _draw_one_splat()
    except Exception as error:  # of the import, of its compiler or of the driver: reported, not swallowed
        return f"gsplat does not work here ({type(error).__name__}: {error})"
    return ""


def tile_size() -> int:
    """Returns the pixels along a tile's side. Raises ValueError if the environment asks for an illegal number."""
    given = os.environ.get("SPLATGAN_GSPLAT_TILE", "16")
    if given not in map(str, TILES):
        raise ValueError(f"SPLATGAN_GSPLAT_TILE={given}: legal are {', '.join(map(str, TILES))}")
    return int(given)


def _is_compiled() -> bool:
    """Tells whether gsplat's library is there, whole: built ahead, or by a first use that has ended."""
    if importlib.util.find_spec("gsplat.csrc") is not None:
        return True
    from torch.utils.cpp_extension import _get_build_directory  # gsplat asks it too; imported late, it takes a second

    library = Path(_get_build_directory("gsplat_cuda", verbose=False), "gsplat_cuda.so")
    return library.exists() and not native.is_locked(LOCK)


def rasterize(
    scene: Gaussians,  # B scenes
    cameras: Cameras,  # [B, V]
    height: int,
    width: int,
    background: Tensor,  # [B, V, C]
    colors: Tensor | None,  # [B, N, C] or [B, V, N, C]; None takes the scene's SH
    scale_modifier: float,
    with_depth: bool = True,
    low_pass: float = LOW_PASS,  # square pixels
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rgb [B, V, C, H, W], alpha [B, V, 1, H, W] and depth [B, V, 1, H, W]; see `gaussian.render`.

    Without `with_depth`, which saves a channel and its copies, depth is [B, V, 0, H, W].
    """
    channels = int(with_depth)
    if scene.num_splats == 0:
        alpha = background.new_zeros(*cameras.shape, 1, height, width)
        return background[..., None, None] + alpha, alpha, alpha.clone()[:, :, :channels]
    if colors is None:
        colors = scene.colors() if scene.sh_degree == 0 else scene.colors(cameras.positions)
    # gsplat divides by the quaternion's norm: the zero quaternion, the identity everywhere here, would give nan.
    no_rotation = scene.quats.norm(dim=-1, keepdim=True) < QUAT_EPS
    splats = {
        "means": scene.means,
        "quats": torch.where(no_rotation, _identity(scene.dtype, scene.device), scene.quats),
        "scales": scale_modifier * scene.scales(),
        "opacities": scene.opacities(),
        "colors": colors,
    }
    means, quats, scales, opacities, colors = _padded(splats, scene)
    images, alpha, _ = importlib.import_module("gsplat").rasterization(
        means=means.contiguous(),
        quats=quats,
        scales=scales,
        opacities=opacities[..., 0],
        colors=colors.contiguous(),
        viewmats=cameras.world2cam.contiguous(),
        Ks=(cameras.intrinsics * _pixels(width, height, scene.dtype, scene.device)).contiguous(),  # [B, V, 3, 3]
        width=width,
        height=height,
        near_plane=NEAR,
        eps2d=low_pass,
        packed=False,
        tile_size=tile_size(),
        backgrounds=background.contiguous(),  # a depth gets 0 behind it
        render_mode="RGB+D" if with_depth else "RGB",
        rasterize_mode="classic",
    )
    images, alpha = images.movedim(-1, 2), alpha.movedim(-1, 2)  # [B, V, C or C + 1, H, W] and [B, V, 1, H, W]
    if not with_depth:
        return images, alpha, images[:, :, :0]
    rgb, depth = images.tensor_split([-1], dim=2)
    return rgb, alpha, depth


def _padded(splats: dict[str, Tensor], scene: Gaussians) -> list[Tensor]:
    """Returns the fields [..., N, width] with at least WARP splats where there are several scenes.

    The backward of gsplat 1.5.3's projection adds the gradients of equal splat numbers within a warp, and does not ask
    of which scene they are: with fewer splats than a warp has threads, scenes would get each other's gradients. What is
    added is empty (opacity 0), and gsplat leaves it out.
    """
    missing = WARP - scene.num_splats
    if scene.batch_size == 1 or missing <= 0:
        return list(splats.values())
    return [F.pad(field, (0, 0, 0, missing), value=float(name == "quats")) for name, field in splats.items()]


@kept
def _pixels(width: int, height: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the factors [3, 1] that turn normalised intrinsics into pixels."""
    return torch.tensor([[width], [height], [1]], dtype=dtype, device=device)


@kept
def _identity(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=dtype, device=device)


def _draw_one_splat() -> None:
    origin = torch.zeros(1, 1, 3, device="cuda")
    scene = Gaussians(
        means=origin,
        log_scales=origin - 2,
        quats=origin.new_tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        opacity_logits=origin[..., :1],
        sh=origin[:, :, None],
    )
    lens = torch.eye(3, device=origin.device)
    cameras = Cameras.look_at(origin.new_tensor([[[0.0, 0.0, 2.0]]]), (0.0, 0.0, 0.0), intrinsics=lens)
    rasterize(scene, cameras, 16, 16, origin, None, 1.0)
    torch.cuda.synchronize()
