"""Compares CUDA back ends with the reference at their own constants; skipped without a GPU (see benchmarks/gpu.py).

The tolerances are bounds on the relative error in the Euclidean norm. gsplat compiles with fast arithmetic, and its
pixels stop at other roundings: on an H200 its images were within 1.1e-5 and its gradients within 3.3e-4. The other back
end has not run. Each test prints what it found (pytest -s).
"""

import pytest
import torch

from gaussian import Gaussians, backend_diff_gaussian_rasterization, backend_gsplat, backend_torch, render
from tests.gaussian.scenes import centroid, make_cameras, make_scene, one_splat

MODULES = {"gsplat": backend_gsplat, "diff-gaussian-rasterization": backend_diff_gaussian_rasterization}
WITHIN = {"gsplat": (1e-4, 2e-3), "diff-gaussian-rasterization": (2e-3, 1e-2)}  # of images and gradients
OWN = {  # the constants of each
    "gsplat": backend_torch.Settings(alpha_cap=backend_gsplat.ALPHA_CAP),
    "diff-gaussian-rasterization": backend_torch.Settings(),
}


@pytest.fixture(params=list(MODULES))
def backend(request):
    if reason := MODULES[request.param].reason():
        pytest.skip(reason)
    return request.param


def leaves_of(scene):
    leaves = scene.map(lambda t: t.detach().clone().requires_grad_())
    return leaves, [leaves.means, leaves.log_scales, leaves.quats, leaves.opacity_logits, leaves.sh]


@pytest.mark.parametrize("size", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("degree", [0, 3])
def test_image_and_gradients_match_the_reference(backend, size, degree):
    scene = make_scene(2, 500, size=size, coefficients=(degree + 1) ** 2).to("cuda")
    cameras = make_cameras(2, 3, cx=0.42, cy=0.55, fy=3.7, roll=0.4).to("cuda")
    background = torch.rand(2, 3, 3, device="cuda")
    leaves, inputs = leaves_of(scene)
    out = render(leaves, cameras, (96, 80), background, backend=backend)
    fast = [out.rgb, out.alpha, out.depth]
    slow_leaves, slow_inputs = leaves_of(scene.to(dtype=torch.float64))
    slow = backend_torch.rasterize(
        slow_leaves, cameras.to(dtype=torch.float64), 96, 80, background.double(), None, 1.0, OWN[backend]
    )
    upstream = [torch.randn(t.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1)) for t in fast]
    fast_grads = torch.autograd.grad(fast, inputs, upstream)
    slow_grads = torch.autograd.grad(slow, slow_inputs, [u.double() for u in upstream])
    pairs = [(f.detach(), s.detach()) for f, s in zip([*fast, *fast_grads], [*slow, *slow_grads], strict=True)]
    errors = [float((f - s).norm() / s.norm()) for f, s in pairs]
    print(f"\n{backend} size {size} degree {degree}: images {max(errors[:3]):.1e} gradients {max(errors[3:]):.1e}")
    assert max(errors[:3]) < WITHIN[backend][0] and max(errors[3:]) < WITHIN[backend][1]


def test_a_batch_equals_its_scenes_alone(backend):
    scene, cameras = make_scene(3, 200).to("cuda"), make_cameras(3, 2).to("cuda")
    together = render(scene, cameras, 64, backend=backend)
    for b in range(3):
        alone = render(scene.scene(b), cameras[b : b + 1], 64, backend=backend)
        assert (together.rgb[b] - alone.rgb[0]).abs().max() < 1e-6
        assert (together.depth[b] - alone.depth[0]).abs().max() < 1e-5


def test_no_gradient_leaks_between_scenes(backend):
    leaves, inputs = leaves_of(make_scene(3, 100).to("cuda"))
    out = render(leaves, make_cameras(3, 2).to("cuda"), 32, backend=backend)
    for gradient in torch.autograd.grad(out.rgb[1].square().sum() + out.depth[1].sum(), inputs):
        assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


def test_a_small_splat_lands_where_its_point_projects(backend):
    point = torch.tensor([0.11, -0.07, 0.05], device="cuda")
    for cx, cy in ((0.5, 0.5), (0.4, 0.61), (0.62, 0.44)):
        cameras = make_cameras(1, 3, cx=cx, cy=cy, fy=3.9).to("cuda")
        alpha = render(one_splat(point.cpu()).to("cuda"), cameras, 64, backend=backend).alpha
        xy, _ = cameras.project(point.expand(1, 3, 1, 3))
        assert (centroid(alpha[:, :, 0].cpu()) - 64 * xy[..., 0, :].cpu()).abs().max() < 0.05  # pixels


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_colors_of_any_width(backend, channels):
    scene, cameras = make_scene(1, 100).to("cuda"), make_cameras(1, 2).to("cuda")
    colors = torch.rand(1, 2, 100, channels, device="cuda")
    background = torch.rand(1, 2, channels, device="cuda")
    got = render(scene, cameras, 32, background, colors=colors, backend=backend).rgb
    expected = backend_torch.rasterize(scene, cameras, 32, 32, background, colors, 1.0, OWN[backend])[0]
    assert (got - expected).norm() < 2e-3 * expected.norm()


def test_odd_input_gives_finite_images_and_gradients(backend):
    scene = make_scene(1, 8, size=0.05)
    quats, log_scales, means = scene.quats.clone(), scene.log_scales.clone(), scene.means.clone()
    logits = scene.opacity_logits.clone()
    quats[0, 0] = 0
    log_scales[0, 1], log_scales[0, 2] = -27.6, 13.8  # 1e-12 and 1e6
    cameras = make_cameras(1, 1)
    means[0, 3] = cameras.positions[0, 0]  # on the camera plane
    means[0, 4] = 2 * cameras.positions[0, 0]  # behind it
    logits[0, 5], logits[0, 6] = -100, 100
    leaves, inputs = leaves_of(Gaussians(means, log_scales, quats, logits, scene.sh).to("cuda"))
    out = render(leaves, cameras.to("cuda"), 32, backend=backend)
    assert out.rgb.isfinite().all() and out.depth.isfinite().all()
    for gradient in torch.autograd.grad(out.rgb.sum() + out.depth.sum() + out.alpha.sum(), inputs):
        assert gradient.isfinite().all()


def test_an_empty_scene_shows_the_background(backend):
    background = torch.rand(1, 2, 3, device="cuda")
    out = render(make_scene(1, 0).to("cuda"), make_cameras(1, 2).to("cuda"), 8, background, backend=backend)
    assert torch.equal(out.rgb, background[..., None, None].expand_as(out.rgb)) and not out.alpha.any()
