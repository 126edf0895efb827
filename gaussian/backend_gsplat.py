"""Renders on NVIDIA GPUs through gsplat (Apache-2.0), in one batched call for all scenes and views.

Written against the documented `rasterization` of gsplat 1.5. Differences to the reference (`backend_torch`): alpha is
capped at ALPHA_CAP inside gsplat; a pixel also stops before a splat that takes the transmittance to exactly 1e-4.

gsplat compiles its kernels when they are first used, and removes a build folder that it thinks is stale: so one process
does that under our lock while the others of the machine wait.
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from gaussian.cameras import Cameras
from gaussian.gaussians import QUAT_EPS, Gaussians
from torch_utils import native

NEAR = 0.2  # camera z, world units, below which a splat is dropped
LOW_PASS = 0.3  # square pixels added to both variances
ALPHA_CAP = 0.999  # a constant inside gsplat; the published rasteriser has 0.99


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
    try:
        with native.exclusive_build("gsplat", "gsplat compiles its CUDA kernels, once; this takes some minutes"):
            _draw_one_splat()
    except Exception as error:  # of the import, of its compiler or of the driver: reported, not swallowed
        return f"gsplat does not work here ({type(error).__name__}: {error})"
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
    """Returns rgb [B, V, C, H, W], alpha [B, V, 1, H, W] and depth [B, V, 1, H, W]; see `gaussian.render`."""
    if scene.num_splats == 0:
        alpha = background.new_zeros(*cameras.shape, 1, height, width)
        return background[..., None, None] + alpha, alpha, alpha.clone()
    if colors is None:
        colors = scene.colors() if scene.sh_degree == 0 else scene.colors(cameras.positions)
    pixels = torch.tensor([[width], [height], [1]], dtype=scene.dtype, device=scene.device)
    # gsplat divides by the quaternion's norm: the zero quaternion, the identity everywhere here, would give nan.
    no_rotation = scene.quats.norm(dim=-1, keepdim=True) < QUAT_EPS
    images, alpha, _ = importlib.import_module("gsplat").rasterization(
        means=scene.means.contiguous(),
        quats=torch.where(no_rotation, scene.quats.new_tensor([1.0, 0.0, 0.0, 0.0]), scene.quats),
        scales=scale_modifier * scene.scales(),
        opacities=scene.opacities()[..., 0],
        colors=colors.contiguous(),
        viewmats=cameras.world2cam.contiguous(),
        Ks=(cameras.intrinsics * pixels).contiguous(),  # [B, V, 3, 3] in pixels
        width=width,
        height=height,
        near_plane=NEAR,
        eps2d=LOW_PASS,
        packed=False,
        render_mode="RGB+D",
        rasterize_mode="classic",
    )
    images, alpha = images.movedim(-1, 2), alpha.movedim(-1, 2)  # [B, V, C + 1, H, W] and [B, V, 1, H, W]
    rgb, depth = images[:, :, :-1], images[:, :, -1:]
    return rgb + (1 - alpha) * background[..., None, None], alpha, depth


def _draw_one_splat() -> None:
    origin = torch.zeros(1, 1, 3, device="cuda")
    scene = Gaussians(
        means=origin,
        log_scales=origin - 2,
        quats=origin.new_tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        opacity_logits=origin[..., :1],
        sh=origin[:, :, None],
    )
    cameras = Cameras.look_at(origin.new_tensor([[[0.0, 0.0, 2.0]]]), (0.0, 0.0, 0.0), intrinsics=torch.eye(3).cuda())
    rasterize(scene, cameras, 16, 16, origin, None, 1.0)
    torch.cuda.synchronize()
