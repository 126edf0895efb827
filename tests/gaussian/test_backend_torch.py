"""Compares the reference rasteriser with a loop over pixels, closed forms and finite differences."""

import dataclasses
import math

import pytest
import torch

from gaussian import Gaussians, backend_torch
from gaussian.backend_torch import Settings
from tests.gaussian.scenes import make_cameras, make_scene, one_splat

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")


def rasterize(scene, cameras, height=24, width=24, settings=None, background=None, colors=None, scale_modifier=1.0):
    if background is None:
        background = scene.means.new_ones(*cameras.shape, 3 if colors is None else colors.shape[-1])
    settings = Settings() if settings is None else settings
    return backend_torch.rasterize(scene, cameras, height, width, background, colors, scale_modifier, settings)


def slow_image(scene, camera, height, width, background):
    """Renders one scene [1, N] from one camera [], pixel by pixel and splat by splat, from the formulas. float64."""
    fx, fy, cx, cy = (camera.intrinsics[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    view = camera.world2cam
    w, x, y, z = scene.unit_quats()[0].unbind(-1)
    splats = []
    for i in range(scene.num_splats):
        axis, cosine, sine = torch.stack([x[i], y[i], z[i]]), 2 * w[i] ** 2 - 1, 2 * w[i]
        cross = torch.tensor([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        rotation = cosine * torch.eye(3) + 2 * torch.outer(axis, axis) + sine * cross
        covariance = rotation @ torch.diag(scene.scales()[0, i] ** 2) @ rotation.T
        px, py, pz = (view[:3, :3] @ scene.means[0, i] + view[:3, 3]).tolist()
        if pz <= 0.2:
            continue
        mx = min(max(px / pz, -cx / fx - 0.15 / fx), (1 - cx) / fx + 0.15 / fx)
        my = min(max(py / pz, -cy / fy - 0.15 / fy), (1 - cy) / fy + 0.15 / fy)
        local = torch.tensor([[1, 0, -mx], [0, 1, -my]]) * torch.tensor([[fx * width], [fy * height]]) / pz
        flat = local @ view[:3, :3] @ covariance @ view[:3, :3].T @ local.T + 0.3 * torch.eye(2)
        centre = torch.tensor([(fx * px / pz + cx) * width, (fy * py / pz + cy) * height])
        splats.append((pz, centre, torch.linalg.inv(flat), scene.opacities()[0, i, 0], scene.colors()[0, i]))
    splats.sort(key=lambda splat: splat[0])  # stable
    rgb, alpha, depth = torch.zeros(3, height, width), torch.zeros(1, height, width), torch.zeros(1, height, width)
    stopped = 0
    for row in range(height):
        for column in range(width):
            through = 1.0
            for pz, centre, inverse, opacity, color in splats:
                offset = torch.tensor([column + 0.5, row + 0.5]) - centre
                a = min(0.99, (opacity * torch.exp(-0.5 * offset @ inverse @ offset)).item())
                if a < 1 / 255:
                    continue
                if through * (1 - a) < 1e-4:
                    stopped += 1
                    break
                rgb[:, row, column] += a * through * color
                depth[0, row, column] += a * through * pz
                through *= 1 - a
            alpha[0, row, column] = 1 - through
    return rgb + (1 - alpha) * background[:, None, None], alpha, depth, stopped


def test_against_a_loop_over_pixels():
    """Covers non-square, off-centre and rolled images, capped splats, stopped pixels, equal depths, limited maps."""
    torch.set_default_dtype(torch.float64)
    try:
        scene = make_scene(1, 40, size=0.06, dtype=torch.float64)
        means, logits = scene.means.clone(), scene.opacity_logits.clone()
        logits[:, :20] = 8.0
        means[:, 0] = means[:, 1]
        means[:, 2] *= 4
        scene = dataclasses.replace(scene, means=means, opacity_logits=logits)
        cameras = make_cameras(1, 1, seed=3, cx=0.4, cy=0.55, fy=3.5, roll=1.0, dtype=torch.float64)
        background = torch.tensor([0.2, 0.5, 0.9])
        *expected, stopped = slow_image(scene, cameras[0, 0], 13, 18, background)
        got = rasterize(scene, cameras, 13, 18, background=background.expand(1, 1, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert stopped > 10
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one[0, 0], other, rtol=0, atol=1e-11)  # worst seen 2e-15


def test_one_splat_in_closed_form():
    """Expects alpha = opacity exp(-r^2 / 2 variance) down to 1/255 on the camera's axis, and depth = alpha z."""
    scene = one_splat((0.0, 0.0, 0.0), size=0.05, opacity_logit=1.0, dtype=torch.float64)
    cameras = make_cameras(1, 1, dtype=torch.float64)
    direction = (cameras.cam2world[0, 0, :3, 2] * 2.0).reshape(1, 1, 3)
    scene = dataclasses.replace(scene, means=cameras.positions + direction)
    background = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    rgb, alpha, depth = rasterize(scene, cameras, 33, 33, background=background.expand(1, 1, 3))
    variance = (4.2647 * 33 * 0.05 / 2.0) ** 2 + 0.3
    y, x = torch.meshgrid(*[torch.arange(33, dtype=torch.float64) - 16] * 2, indexing="ij")
    expected = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)) * torch.exp(-(x * x + y * y) / (2 * variance))
    expected = torch.where(expected >= 1 / 255, expected, 0.0)
    assert 0 < (expected > 0).sum() < 33 * 33
    torch.testing.assert_close(alpha[0, 0, 0], expected, rtol=0, atol=1e-6)  # worst seen 2e-8
    torch.testing.assert_close(depth[0, 0, 0], 2 * expected, rtol=0, atol=1e-6)
    white = torch.ones(3, 1, 1, dtype=torch.float64)
    over = expected * white + (1 - expected) * background[:, None, None]
    torch.testing.assert_close(rgb[0, 0], over, rtol=0, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    scene = make_scene(2, 6, size=0.06, coefficients=4, dtype=torch.float64)
    cameras = make_cameras(2, 2, cx=0.45, fy=3.9, dtype=torch.float64)
    inputs = [getattr(scene, name).clone().requires_grad_() for name in FIELDS]
    background = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def images(*fields):
        *fields, over = fields
        return rasterize(Gaussians(*fields), cameras, 10, 12, background=over)

    assert torch.autograd.gradcheck(images, (*inputs, background), fast_mode=True)


@pytest.mark.parametrize("coefficients", [1, 16])
def test_every_single_derivative_is_that_of_finite_differences(coefficients):
    """Compares the whole Jacobian, on overlapping splats of which some are capped."""
    scene = make_scene(1, 4, size=0.15, coefficients=coefficients, dtype=torch.float64)
    scene = dataclasses.replace(
        scene, opacity_logits=scene.opacity_logits + torch.tensor([0.0, 1.0, 3.0, 6.0])[:, None]
    )
    cameras = make_cameras(1, 1, cx=0.45, fy=3.9, roll=0.5, dtype=torch.float64)
    inputs = [getattr(scene, name).clone().requires_grad_() for name in FIELDS]
    assert rasterize(scene, cameras, 5, 6)[1].max() >= 0.99
    assert torch.autograd.gradcheck(lambda *fields: rasterize(Gaussians(*fields), cameras, 5, 6), inputs)


@pytest.mark.parametrize("lead", [(2, 6), (2, 3, 6)])
def test_gradients_of_colors(lead):
    scene = make_scene(2, 6, size=0.06, dtype=torch.float64)
    cameras = make_cameras(2, 3, dtype=torch.float64)
    colors = torch.rand(*lead, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: rasterize(scene, cameras, 8, 8, colors=c), colors, fast_mode=True)


def test_gradient_stops_at_the_cap():
    """A capped alpha passes no gradient; the pixels of the flank, which are not capped, do."""
    scene = one_splat((0.0, 0.0, 0.0), size=0.2, opacity_logit=12.0, dtype=torch.float64)
    cameras = make_cameras(1, 1, dtype=torch.float64)
    logits = scene.opacity_logits.clone().requires_grad_()
    _, alpha, _ = rasterize(dataclasses.replace(scene, opacity_logits=logits), cameras, 8, 8)
    capped = alpha >= 0.99
    assert capped.any() and not capped.all()
    (of_capped,) = torch.autograd.grad(alpha[capped].sum(), logits, retain_graph=True)
    (of_others,) = torch.autograd.grad(alpha[~capped].sum(), logits)
    assert of_capped == 0 and of_others > 0


def gradients(scene, cameras, settings=None):
    leaves = scene.map(lambda t: t.clone().requires_grad_())
    outputs = rasterize(leaves, cameras, settings=settings)
    generator = torch.Generator().manual_seed(0)
    total = sum((o * torch.rand(o.shape, generator=generator).to(o)).sum() for o in outputs)
    return outputs, torch.autograd.grad(total, [getattr(leaves, name) for name in FIELDS])


def test_chunks_and_tiles_change_nothing():
    scene, cameras = make_scene(2, 300, dtype=torch.float64), make_cameras(2, 2, cx=0.4, dtype=torch.float64)
    outputs, grads = gradients(scene, cameras)
    for settings in (Settings(chunk=1), Settings(chunk=5000), Settings(tile=16), Settings(tile=5)):
        other_outputs, other_grads = gradients(scene, cameras, settings)
        for one, other in zip((*outputs, *grads), (*other_outputs, *other_grads), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)  # worst seen 4e-13


def test_float32_is_near_float64():
    scene, cameras = make_scene(2, 300), make_cameras(2, 2, cx=0.4)
    outputs, grads = gradients(scene, cameras)
    exact_outputs, exact_grads = gradients(scene.to(dtype=torch.float64), cameras.to(dtype=torch.float64))
    for one, exact in zip((*outputs, *grads), (*exact_outputs, *exact_grads), strict=True):
        assert (one - exact).norm() <= 1e-5 * exact.norm()  # worst seen 7e-7


def test_arguments_of_the_rasteriser_act():
    scene, cameras = make_scene(1, 30, dtype=torch.float64), make_cameras(1, 1, dtype=torch.float64)
    opaque = dataclasses.replace(scene, opacity_logits=torch.full_like(scene.opacity_logits, 20.0))
    base = rasterize(opaque, cameras)[1]
    for settings in (Settings(alpha_cap=0.9), Settings(alpha_min=0.1), Settings(near=2.7), Settings(low_pass=1.0),
                     Settings(transmittance_min=0.1)):  # fmt: skip
        assert (rasterize(opaque, cameras, settings=settings)[1] - base).abs().max() > 1e-3, settings
    first = rasterize(one_splat((0, 0, 0), 0.5, 20.0), make_cameras(1, 1), settings=Settings(alpha_cap=0.7))[1]
    assert first.max().item() == pytest.approx(0.7)
    with pytest.raises(ValueError, match="alpha_cap"):
        Settings(alpha_cap=1.0)


def test_equal_depths_blend_in_the_order_of_the_splats():
    splat = one_splat((0.0, 0.0, 0.0), 0.3, 1.0)
    pair = splat.map(lambda t: torch.cat([t, t], dim=1))
    colors = torch.tensor([[[1.0], [0.0]]])
    front, behind = (rasterize(pair, make_cameras(1, 1), colors=c)[0].min() for c in (colors, colors.flip(1)))
    assert front > behind + 0.1


def test_a_splat_reaches_exactly_where_its_alpha_is_at_least_one_255th():
    """Draws a long needle across the image, which the published box of three standard deviations would cut."""
    scene = one_splat((0.0, 0.0, 0.0), 0.01, 20.0, dtype=torch.float64)
    scene = dataclasses.replace(scene, log_scales=torch.tensor([[[0.05, 1e-3, 1e-3]]], dtype=torch.float64).log())
    camera = make_cameras(1, 1, dtype=torch.float64)
    camera = type(camera)(torch.eye(4, dtype=torch.float64).reshape(1, 1, 4, 4), camera.intrinsics)
    scene = dataclasses.replace(scene, means=torch.tensor([[[0.0, 0.0, 2.7]]], dtype=torch.float64))
    _, alpha, _ = rasterize(scene, camera, 65, 65)
    sigma = math.sqrt((4.2647 * 65 * 0.05 / 2.7) ** 2 + 0.3)
    reach = math.floor(sigma * math.sqrt(2 * math.log(255 * torch.sigmoid(torch.tensor(20.0)).item())))
    assert 3 * sigma < reach < 32
    assert (alpha[0, 0, 0, 32] > 0).nonzero().flatten().tolist() == list(range(32 - reach, 32 + reach + 1))
    assert alpha[alpha > 0].min() >= 1 / 255 - 1e-12


def test_a_thin_needle_does_not_cancel():
    """Draws axes of 100 and 1e-6 at 45 degrees: float32 keeps the determinant and gives float64's image."""
    scene = one_splat((0.0, 0.0, 0.0), 1e-6, 3.0)
    turn = torch.tensor([[[math.cos(math.pi / 8), 0.0, 0.0, math.sin(math.pi / 8)]]])
    scene = dataclasses.replace(scene, quats=turn, log_scales=torch.tensor([[[100.0, 1e-6, 1e-6]]]).log())
    cameras = make_cameras(1, 1)
    images = [rasterize(s, c)[1] for s, c in ((scene, cameras), (scene.to(dtype=torch.float64),
                                                              cameras.to(dtype=torch.float64)))]  # fmt: skip
    torch.testing.assert_close(images[0].double(), images[1], rtol=0, atol=1e-4)  # worst seen 2e-6
    assert 0.05 < (images[1] > 0).double().mean() < 0.5


def test_scale_modifier_multiplies_the_deviations():
    scene, cameras = make_scene(1, 20), make_cameras(1, 1)
    grown = dataclasses.replace(scene, log_scales=scene.log_scales + math.log(2.0))
    torch.testing.assert_close(rasterize(scene, cameras, scale_modifier=2.0)[0], rasterize(grown, cameras)[0])


def test_inputs_stay_as_they_are_and_two_calls_give_the_same_bits():
    scene, cameras = make_scene(2, 50), make_cameras(2, 2)
    before = scene.map(torch.clone), cameras.map(torch.clone)
    (outputs, grads), (again, grads_again) = gradients(scene, cameras), gradients(scene, cameras)
    assert all(torch.equal(a, b) for a, b in zip((*outputs, *grads), (*again, *grads_again), strict=True))
    assert all(torch.equal(getattr(scene, name), getattr(before[0], name)) for name in FIELDS)
    assert torch.equal(cameras.labels, before[1].labels)
