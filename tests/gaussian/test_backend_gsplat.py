"""Tests the gsplat back end without CUDA, by a stand-in with gsplat's documented signature."""

import importlib.util
import inspect
import sys
import types

import pytest
import torch

from gaussian import Cameras, Gaussians, backend_gsplat, backend_torch, rendering, resolve_backend
from tests.gaussian.scenes import make_cameras, make_scene
from torch_utils import native


def stand_in(
    *, means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane, eps2d, packed, tile_size,
    backgrounds, render_mode, rasterize_mode,
):  # fmt: skip
    """Stands in for gsplat 1.5's `rasterization` by the reference: world-to-camera matrices, intrinsics in pixels."""
    assert (packed, tile_size, rasterize_mode) == (False, 16, "classic") and render_mode in ("RGB", "RGB+D")
    assert len({t.shape[-2] for t in (means, quats, scales, colors)} | {opacities.shape[-1]}) == 1
    scene = Gaussians(means, scales.log(), quats, opacities.logit()[..., None], torch.zeros(*means.shape[:2], 1, 3))
    cameras = Cameras(torch.linalg.inv(viewmats), Ks / torch.tensor([[width], [height], [1]]))
    settings = backend_torch.Settings(near=near_plane, low_pass=eps2d, alpha_cap=backend_gsplat.ALPHA_CAP)
    rgb, alpha, depth = backend_torch.rasterize(scene, cameras, height, width, backgrounds, colors, 1.0, settings)
    images = torch.cat([rgb, depth], dim=2) if render_mode == "RGB+D" else rgb
    return images.movedim(2, -1), alpha.movedim(2, -1), {}


@pytest.fixture
def gsplat(monkeypatch):
    """Puts the stand-in in gsplat's place."""
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=stand_in))


def test_a_low_pass_is_handed_over(gsplat):
    scene, cameras = make_scene(1, 40, size=0.002), make_cameras(1, 2)
    arguments = (scene, cameras, 16, 24, torch.ones(1, 2, 3), None, 1.0)
    own = backend_torch.Settings(alpha_cap=backend_gsplat.ALPHA_CAP, low_pass=0.05)
    found, expected = backend_gsplat.rasterize(*arguments, low_pass=0.05), backend_torch.rasterize(*arguments, own)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)  # the stand-in's cameras go through two inverses
    assert (found[1] - backend_gsplat.rasterize(*arguments)[1]).abs().max() > 0.05


@pytest.mark.parametrize("with_depth", [True, False])
def test_what_is_handed_over_gives_the_reference_image(gsplat, with_depth):
    scene, cameras = make_scene(2, 40, coefficients=4), make_cameras(2, 3, cx=0.42, fy=3.7, roll=0.4)
    quats = scene.quats.clone()
    quats[:, 0] = 0
    scene = Gaussians(scene.means, scene.log_scales, quats, scene.opacity_logits, scene.sh)
    background = torch.rand(2, 3, 3)
    arguments = (scene, cameras, 20, 28, background, None, 1.5)
    own = backend_torch.Settings(alpha_cap=backend_gsplat.ALPHA_CAP)
    *images, depth = backend_gsplat.rasterize(*arguments, with_depth)
    *expected_images, expected_depth = backend_torch.rasterize(*arguments, own)
    assert depth.shape == (2, 3, int(with_depth), 20, 28)
    for got, expected in zip(
        [*images, depth], [*expected_images, expected_depth[:, :, : int(with_depth)]], strict=True
    ):
        assert got.shape == expected.shape
        difference = (got - expected).abs()
        if got.numel():
            assert (difference > 1e-4).float().mean() < 1e-3 and difference.max() < 0.05  # rounding at 1/255


def test_the_background_gets_its_gradient(gsplat):
    background = torch.rand(2, 3, 3, requires_grad=True)
    rgb, alpha, _ = backend_gsplat.rasterize(make_scene(2, 40), make_cameras(2, 3), 8, 8, background, None, 1.0)
    (gradient,) = torch.autograd.grad(rgb.sum(), background)
    torch.testing.assert_close(gradient, (1 - alpha).sum((-2, -1)).expand(2, 3, 3))


@pytest.mark.parametrize(("scenes", "count", "handed_over"), [(3, 8, 32), (3, 32, 32), (3, 40, 40), (1, 8, 8)])
def test_scenes_of_few_splats_do_not_share_a_warp(monkeypatch, scenes, count, handed_over):
    """gsplat adds gradients of equal splat numbers within a warp of 32, whichever scene they are of."""
    seen = []

    def look(**arguments):
        seen.append(arguments["means"].shape)
        return stand_in(**arguments)

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=look))
    scene, cameras = make_scene(scenes, count, size=0.1), make_cameras(scenes, 2)
    leaves = scene.map(lambda t: t.clone().requires_grad_())
    inputs = [leaves.means, leaves.log_scales, leaves.quats, leaves.opacity_logits, leaves.sh]
    background = torch.rand(scenes, 2, 3)
    rgb, alpha, depth = backend_gsplat.rasterize(leaves, cameras, 16, 16, background, None, 1.0)
    own = backend_torch.Settings(alpha_cap=backend_gsplat.ALPHA_CAP)
    expected = backend_torch.rasterize(leaves, cameras, 16, 16, background, None, 1.0, own)
    assert seen == [(scenes, handed_over, 3)]
    for got, wanted in zip((rgb, alpha, depth), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # worst seen 2e-6
    gradients = [torch.autograd.grad(image.square().sum(), inputs) for image in (rgb, expected[0])]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_the_tile_size_is_the_environments(monkeypatch):
    assert backend_gsplat.tile_size() == 16
    monkeypatch.setenv("SPLATGAN_GSPLAT_TILE", "8")
    assert backend_gsplat.tile_size() == 8
    monkeypatch.setenv("SPLATGAN_GSPLAT_TILE", "12")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend_gsplat.reason.cache_clear()
    with pytest.raises(ValueError, match="SPLATGAN_GSPLAT_TILE=12: legal are 8, 16"):
        backend_gsplat.reason()


def test_the_call_fits_the_package():
    """Names of gsplat's own signature, where it is installed: the stand-in would not notice another one."""
    package = pytest.importorskip("gsplat")
    theirs = inspect.signature(package.rasterization).parameters
    assert set(inspect.signature(stand_in).parameters) <= set(theirs)


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


@pytest.mark.parametrize(
    ("ahead", "built", "locked", "alone"),
    [
        (True, False, False, False),  # a library beside the package
        (False, True, False, False),  # one that a first use has compiled
        (False, True, True, True),  # one that may be half written
        (False, False, False, True),
    ],
)
def test_the_lock_is_held_only_where_something_may_compile(monkeypatch, tmp_path, ahead, built, locked, alone):
    """64 processes that each drew a first splat alone would take minutes to start."""
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    if built:
        (tmp_path / "built" / "gsplat_cuda").mkdir(parents=True)
        (tmp_path / "built" / "gsplat_cuda" / "gsplat_cuda.so").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if ahead else None)
    monkeypatch.setattr(native, "is_locked", lambda name: locked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    held = []
    lock = native.cache_dir() / "gsplat.lock"
    monkeypatch.setattr(backend_gsplat, "_draw_one_splat", lambda: held.append(lock.exists()))
    backend_gsplat.reason.cache_clear()
    assert backend_gsplat.available() and held == [alone] and not lock.exists()
    backend_gsplat.reason.cache_clear()


def test_a_gsplat_that_fails_to_build_is_reported(monkeypatch):
    def fails():
        raise RuntimeError("nvcc fatal")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend_gsplat, "_is_compiled", lambda: True)
    monkeypatch.setattr(backend_gsplat, "_draw_one_splat", fails)
    backend_gsplat.reason.cache_clear()
    assert not backend_gsplat.available() and "nvcc fatal" in backend_gsplat.reason()
    backend_gsplat.reason.cache_clear()
