"""The gsplat back end without CUDA: what it hands over, checked by a stand-in with gsplat's documented signature."""

import sys
import types

import pytest
import torch

from gaussian import Cameras, Gaussians, backend_gsplat, backend_torch, rendering, resolve_backend
from tests.gaussian.scenes import make_cameras, make_scene


def stand_in(
    *, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, packed, render_mode,
    rasterize_mode,
):  # fmt: skip
    """gsplat 1.5's `rasterization`, done by the reference: world-to-camera matrices and intrinsics in pixels."""
    assert (packed, render_mode, rasterize_mode) == (False, "RGB+D", "classic")
    scene = Gaussians(means, scales.log(), quats, opacities.logit()[..., None], torch.zeros(*means.shape[:2], 1, 3))
    cameras = Cameras(torch.linalg.inv(viewmats), Ks / torch.tensor([[width], [height], [1]]))
    background = torch.zeros(*viewmats.shape[:2], colors.shape[-1])
    settings = backend_torch.Settings(near=near_plane, low_pass=eps2d)
    rgb, alpha, depth = backend_torch.rasterize(scene, cameras, height, width, background, colors, 1.0, settings)
    return torch.cat([rgb, depth], dim=2).movedim(2, -1), alpha.movedim(2, -1), {}


def test_what_is_handed_over_gives_the_reference_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=stand_in))
    scene, cameras = make_scene(2, 40, coefficients=4), make_cameras(2, 3, cx=0.42, fy=3.7, roll=0.4)
    quats = scene.quats.clone()
    quats[:, 0] = 0
    scene = Gaussians(scene.means, scene.log_scales, quats, scene.opacity_logits, scene.sh)
    background = torch.rand(2, 3, 3)
    arguments = (scene, cameras, 20, 28, background, None, 1.5)
    for got, expected in zip(backend_gsplat.rasterize(*arguments), backend_torch.rasterize(*arguments), strict=True):
        assert got.shape == expected.shape
        difference = (got - expected).abs()
        assert (difference > 1e-4).float().mean() < 1e-3 and difference.max() < 0.05  # rounding at the 1/255 threshold


def test_without_cuda_gsplat_is_not_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "gsplat", None)  # an import would raise
    backend_gsplat.reason.cache_clear()
    assert not backend_gsplat.available() and backend_gsplat.reason() == "no CUDA device"
    rendering._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="no CUDA device"):
        assert resolve_backend("auto", "cuda") == "torch"
    backend_gsplat.reason.cache_clear()


def test_a_gsplat_that_fails_to_build_is_reported(monkeypatch):
    def fails():
        raise RuntimeError("nvcc fatal")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend_gsplat, "_draw_one_splat", fails)
    backend_gsplat.reason.cache_clear()
    assert not backend_gsplat.available() and "nvcc fatal" in backend_gsplat.reason()
    backend_gsplat.reason.cache_clear()
