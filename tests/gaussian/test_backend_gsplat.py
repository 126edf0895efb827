"""Tests the gsplat back end without CUDA, by a stand-in with gsplat's documented signature."""

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
    """Stands in for gsplat 1.5's `rasterization` by the reference: world-to-camera matrices, intrinsics in pixels."""
    assert (packed, render_mode, rasterize_mode) == (False, "RGB+D", "classic")
    scene = Gaussians(means, scales.log(), quats, opacities.logit()[..., None], torch.zeros(*means.shape[:2], 1, 3))
    cameras = Cameras(torch.linalg.inv(viewmats), Ks / torch.tensor([[width], [height], [1]]))
    background = torch.zeros(*viewmats.shape[:2], colors.shape[-1])
    settings = backend_torch.Settings(near=near_plane, low_pass=eps2d, alpha_cap=backend_gsplat.ALPHA_CAP)
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
    own = backend_torch.Settings(alpha_cap=backend_gsplat.ALPHA_CAP)
    images = backend_gsplat.rasterize(*arguments), backend_torch.rasterize(*arguments, own)
    for got, expected in zip(*images, strict=True):
        assert got.shape == expected.shape
        difference = (got - expected).abs()
        assert (difference > 1e-4).float().mean() < 1e-3 and difference.max() < 0.05  # rounding at the 1/255 threshold


def test_a_scene_without_splats_shows_the_background():
    cameras, background = make_cameras(2, 3), torch.rand(2, 3, 3)
    rgb, alpha, depth = backend_gsplat.rasterize(make_scene(2, 0), cameras, 8, 12, background, None, 1.0)
    assert rgb.shape == (2, 3, 3, 8, 12) and torch.equal(rgb, background[..., None, None].expand_as(rgb))
    assert not alpha.any() and not depth.any()


def test_the_higher_alpha_cap_changes_opaque_splats_only():
    """The one constant that differs. What is left of a transmittance up to 0.1 when the stop rule (1e-4) skips a splat
    of alpha 0.999 bounds the difference: 0.1; for opacities up to 0.99 there is none."""
    scene, cameras = make_scene(1, 60, size=0.1), make_cameras(1, 2)
    for shift, low, high in ((8, 1e-3, 0.1), (-0.5, -1.0, 1e-9)):  # worst seen 0.03 with splats as good as opaque
        logits = (scene.opacity_logits + shift).clamp(max=4.59 if shift < 0 else 20)
        splats = Gaussians(scene.means, scene.log_scales, scene.quats, logits, scene.sh)
        arguments = (splats, cameras, 32, 32, torch.zeros(1, 2, 3), torch.rand(1, 60, 3), 1.0)
        caps = (0.99, backend_gsplat.ALPHA_CAP)
        rgb = [backend_torch.rasterize(*arguments, backend_torch.Settings(alpha_cap=cap))[0] for cap in caps]
        assert low < (rgb[0] - rgb[1]).abs().max() < high


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
