"""Tests the adapter of diff-gaussian-rasterization without CUDA, by stand-ins with the signatures of its forks."""

import sys
import types
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gaussian import Cameras, Gaussians, backend_torch, resolve_backend
from gaussian import backend_diff_gaussian_rasterization as adapter
from tests.gaussian.scenes import centroid, make_cameras, make_scene, one_splat

FIELDS = [
    ("image_height", int), ("image_width", int), ("tanfovx", float), ("tanfovy", float), ("bg", Tensor),
    ("scale_modifier", float), ("viewmatrix", Tensor), ("projmatrix", Tensor), ("sh_degree", int), ("campos", Tensor),
    ("prefiltered", bool), ("debug", bool),
]  # fmt: skip


def stand_in(outputs, antialiasing=False, more=(), detach=False):
    """Makes a package of the published interface that calls the reference; `calls` counts its passes.

    outputs: what it returns, of "color", "radii", "depth", "alpha", "invdepth"; detach: extra ones have no gradient.
    """
    extra = [("antialiasing", bool)] if antialiasing else []
    settings_class = NamedTuple("Settings", [*FIELDS, *extra, *((name, float) for name in more)])

    class GaussianRasterizer:
        calls = 0

        def __init__(self, raster_settings):
            self.settings = raster_settings

        def forward(
            self, means3D, means2D, opacities, shs=None, colors_precomp=None, scales=None, rotations=None,
            cov3D_precomp=None,
        ):  # fmt: skip
            type(self).calls += 1
            s = self.settings
            world2cam = s.viewmatrix.T
            clip = (torch.linalg.inv(s.viewmatrix) @ s.projmatrix).T
            intrinsics = clip[:3, :3] / 2
            intrinsics[:2, 2] += 0.5
            intrinsics[2] = torch.tensor([0.0, 0.0, 1.0])
            torch.testing.assert_close(1 / (2 * intrinsics[0, 0]).item(), s.tanfovx)
            cameras = Cameras(torch.linalg.inv(world2cam), intrinsics)[None, None]
            scene = Gaussians(
                means3D[None], scales[None].log(), rotations[None], opacities[None].logit(),
                torch.zeros(1, len(means3D), 1, 3),
            )  # fmt: skip
            color, alpha, depth = backend_torch.rasterize(
                scene, cameras, s.image_height, s.image_width, s.bg[None, None], colors_precomp[None], s.scale_modifier
            )
            found = {"color": color, "alpha": alpha, "depth": depth, "invdepth": 1 / depth.clamp(min=1e-3)}
            found = {name: t[0, 0].detach() if detach and name != "color" else t[0, 0] for name, t in found.items()}
            found["radii"] = torch.ones(len(means3D), dtype=torch.int32)
            return tuple(found[name] for name in outputs)

        __call__ = forward

    return types.SimpleNamespace(GaussianRasterizationSettings=settings_class, GaussianRasterizer=GaussianRasterizer)


@pytest.fixture
def install(monkeypatch):
    def install(package):
        monkeypatch.setitem(sys.modules, adapter.PACKAGE, package)
        adapter._own_outputs.cache_clear()
        adapter.reason.cache_clear()
        return package

    yield install
    adapter._own_outputs.cache_clear()
    adapter.reason.cache_clear()


VARIANTS = [  # outputs, passes of a 3-channel image: an extra one where depth and alpha are not returned
    (("color", "radii"), 2),
    (("color", "radii", "depth"), 2),
    (("color", "radii", "invdepth"), 2),
    (("color", "radii", "depth", "alpha"), 1),
    (("color", "depth", "alpha", "radii"), 1),
]


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("outputs, passes", VARIANTS)
def test_every_fork_gives_the_reference_image_and_gradient(install, outputs, passes, antialiasing):
    package = install(stand_in(outputs, antialiasing))
    assert adapter.interface_reason() == ""
    scene = make_scene(2, 30, coefficients=4)
    cameras = make_cameras(2, 2, cx=0.42, cy=0.55, fy=3.7, roll=0.4)
    background = torch.rand(2, 2, 3)
    adapter._own_outputs("cpu")
    package.GaussianRasterizer.calls = 0
    results = []
    for module in (adapter, backend_torch):
        leaves = scene.map(lambda t: t.clone().requires_grad_())
        images = module.rasterize(leaves, cameras, 20, 28, background, None, 1.5)
        upstream = [torch.randn(i.shape, generator=torch.Generator().manual_seed(3)) for i in images]
        inputs = [leaves.means, leaves.log_scales, leaves.quats, leaves.opacity_logits, leaves.sh]
        results.append([*images, *torch.autograd.grad(images, inputs, upstream)])
    assert package.GaussianRasterizer.calls == passes * 4
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        # Worst seen 6e-5: a pixel at the threshold 1/255 may fall on the other side of it.
        assert (got - expected).norm() < 2e-3 * expected.norm()


def test_outputs_without_gradient_are_not_taken(install):
    install(stand_in(("color", "radii", "depth", "alpha"), detach=True))
    assert adapter._own_outputs("cpu") is None
    install(stand_in(("color", "radii", "depth", "alpha")))
    assert adapter._own_outputs("cpu") == (2, 3)


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_colors_of_any_width(install, channels):
    install(stand_in(("color", "radii")))
    scene, cameras = make_scene(1, 20), make_cameras(1, 2)
    colors = torch.rand(1, 20, channels)
    arguments = (scene, cameras, 16, 16, torch.rand(1, 2, channels), colors, 1.0)
    for got, expected in zip(adapter.rasterize(*arguments), backend_torch.rasterize(*arguments), strict=True):
        assert (got - expected).norm() < 2e-3 * expected.norm()  # worst seen 3e-7


def test_a_small_splat_lands_where_its_point_projects(install):
    install(stand_in(("color", "radii")))
    point = torch.tensor([0.11, -0.07, 0.05])
    cameras = make_cameras(1, 3, cx=0.4, cy=0.61, fy=3.9)
    alpha = adapter.rasterize(one_splat(point), cameras, 64, 64, torch.zeros(1, 3, 3), None, 1.0)[1]
    xy, _ = cameras.project(point.expand(1, 3, 1, 3))
    assert (centroid(alpha[:, :, 0]) - 64 * xy[..., 0, :]).abs().max() < 0.05  # pixels


def test_what_it_cannot_render_is_refused_by_name(install):
    install(stand_in(("color", "radii")))
    arguments = (make_scene(1, 5), make_cameras(1, 1, cx=0.7), 8, 8, torch.zeros(1, 1, 3), None, 1.0)
    with pytest.raises(ValueError, match=r"up to 0\.15 image sizes off the centre; use 'gsplat'"):
        adapter.rasterize(*arguments)


def test_an_unknown_fork_is_named(install):
    install(stand_in(("color", "radii"), more=("kernel_size",)))
    assert "asks for kernel_size" in adapter.interface_reason()
    assert "install the one of https://github.com/graphdeco-inria" in adapter.interface_reason()


def test_it_is_used_only_when_asked_for_and_there(install, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    install(None)  # an import raises
    with pytest.raises(ValueError, match=r"'diff-gaussian-rasterization' is not available: the package .* install"):
        resolve_backend("diff-gaussian-rasterization", "cuda")
    install(stand_in(("color", "radii")))
    assert resolve_backend("diff-gaussian-rasterization", "cuda") == "diff-gaussian-rasterization"
    with pytest.raises(ValueError, match="legal there: 'auto', 'torch', 'cpu'"):
        resolve_backend("diff-gaussian-rasterization", "cpu")
