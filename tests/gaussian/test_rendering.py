"""Tests what every back end must do with scenes and cameras, and how render() checks its arguments."""

import dataclasses
import math
import warnings

import pytest
import torch

from gaussian import Cameras, Geometry, Rendering, backend_cpu, render, rendering, resolve_backend
from tests.gaussian.scenes import BACKENDS, centroid, make_cameras, make_intrinsics, make_scene, one_splat

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")


def fields_of(scene):
    return [getattr(scene, name) for name in FIELDS]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_known_point_lands_on_its_pixel(backend):
    """Compares a small splat's centroid with its projection in twelve cameras with cx != 0.5, fx != fy and roll."""
    count, height, width = 12, 48, 64
    cameras = make_cameras(count, 1, seed=1, fx=3.0, fy=3.9, cx=0.42, cy=0.57, roll=math.pi)
    points = torch.randn(count, 1, 3, generator=torch.Generator().manual_seed(2)) * 0.1
    scene = dataclasses.replace(one_splat((0, 0, 0)).map(lambda t: t.expand(count, *t.shape[1:])), means=points)
    alpha = render(scene, cameras, (height, width), backend=backend).alpha
    xy, _ = cameras.project(points[:, None])
    expected = xy[:, :, 0] * torch.tensor([width, height])  # [count, 1, 2]
    assert ((expected > 4) & (expected < torch.tensor([width, height]) - 4)).all(), "choose other points"
    assert (expected - torch.tensor([width / 2, height / 2])).norm(dim=-1).max() > 10
    error = (centroid(alpha[:, :, 0]) - expected).norm(dim=-1)
    assert error.max() < 0.05  # worst seen 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_flipped_render_is_the_mirrored_scene_under_the_mirrored_label(backend):
    scene, cameras = make_scene(2, 40), make_cameras(2, 2, cx=0.41, cy=0.55, fy=3.7, roll=0.5)
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    # A reflection at x = 0 turns a rotation by (w, x, y, z) into one by (w, x, -y, -z).
    reflected = dataclasses.replace(
        scene, means=scene.means * mirror, quats=scene.quats * torch.tensor([1.0, 1.0, -1.0, -1.0])
    )
    mirrored = render(reflected, cameras.mirror(), 32, backend=backend)
    plain = render(scene, cameras, 32, backend=backend)
    for name in ("rgb", "alpha", "depth"):
        # Rounding may push a faint splat over the threshold of 1/255 in single pixels; worst seen 4e-7 of rgb.
        difference = (getattr(mirrored, name) - getattr(plain, name).flip(-1)).abs()
        assert (difference > 1e-4).float().mean() < 1e-3 and difference.max() < 0.05, name
    wrong = Cameras(cameras.mirror().cam2world, cameras.intrinsics)
    assert (render(reflected, wrong, 32, backend=backend).rgb - plain.rgb.flip(-1)).abs().max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_moving_the_principal_point_moves_the_image(backend):
    scene = make_scene(1, 40)
    base, moved = (make_cameras(1, 1, cx=cx, cy=cy) for cx, cy in ((0.5, 0.5), (0.5 + 4 / 32, 0.5 - 3 / 32)))
    images = [render(scene, cameras, 32, backend=backend).rgb for cameras in (base, moved)]
    # The affine map's limit is relative to the principal point and can act on splats outside only: allow rounding.
    difference = (images[1][..., :-3, 4:] - images[0][..., 3:, :-4]).abs()
    assert (difference > 1e-4).float().mean() < 1e-3 and difference.max() < 0.05
    assert (images[1] - images[0]).abs().max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_halving_fx_halves_the_width(backend):
    scene = one_splat((0.0, 0.0, 0.0), size=0.03)
    widths = []
    for fx in (4.0, 2.0):
        camera = Geometry((0, 0, 0), (0, 0, 0), 2.7, tuple(map(tuple, make_intrinsics(fx, fy=4.0).tolist()))).frontal()
        alpha = render(scene, camera[None, None], 128, backend=backend).alpha[0, 0, 0]
        x = torch.arange(128) + 0.5 - 64
        variance = (alpha.sum(0) * x * x).sum() / alpha.sum() - 0.3
        widths.append(variance.sqrt().item())
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.01)  # worst seen 1.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_batched_is_looped_and_nothing_leaks(backend):
    scene, cameras = make_scene(3, 60), make_cameras(3, 2, cx=0.45)
    background = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))
    leaves = scene.map(lambda t: t.clone().requires_grad_())
    whole = render(leaves, cameras, 24, background, backend=backend)
    looped = [
        render(scene.scene(b), cameras[b : b + 1, v : v + 1], 24, background[b : b + 1, v : v + 1], backend=backend)
        for b in range(3)
        for v in range(2)
    ]
    for name in ("rgb", "alpha", "depth"):
        parts = torch.cat([getattr(part, name) for part in looped]).reshape(getattr(whole, name).shape)
        torch.testing.assert_close(getattr(whole, name), parts, rtol=0, atol=1e-5)  # worst seen 0

    (whole.rgb[1, 1] * torch.linspace(-1, 1, 24)).sum().backward()
    alone = scene.scene(1).map(lambda t: t.clone().requires_grad_())
    single = render(alone, cameras[1:2, 1:2], 24, background[1:2, 1:2], backend=backend)
    (single.rgb * torch.linspace(-1, 1, 24)).sum().backward()
    for got, expected in zip(fields_of(leaves), fields_of(alone), strict=True):
        assert (got.grad[[0, 2]] == 0).all()
        assert (got.grad[1:2] - expected.grad).norm() <= 1e-4 * expected.grad.norm()  # worst seen 1e-6


def broken_scene():
    """Makes good scenes [2, 30] but for eight splats, each broken in its own way."""
    scene = make_scene(2, 30)
    means, log_scales, quats, logits = (t.clone() for t in fields_of(scene)[:4])
    quats[:, 0] = 0
    log_scales[:, 1], log_scales[:, 2] = math.log(1e-12), math.log(1e6)
    log_scales[:, 3] = torch.tensor([1e6, 1e-12, 1e-12]).log()
    means[:, 4], means[:, 5] = torch.tensor([0.0, 0.0, 2.7]), torch.tensor([1.0, 0.3, 2.7])  # at, beside the camera
    means[:, 6], means[:, 7] = torch.tensor([0.0, 0.1, 9.0]), torch.tensor([1e6, -1e6, -1e6])
    logits[:, 8], logits[:, 9] = 100.0, -100.0
    means[:, 10], log_scales[:, 10] = torch.tensor([0.0, 0.05, 2.7 - 0.2001]), math.log(1e6)
    return dataclasses.replace(scene, means=means, log_scales=log_scales, quats=quats, opacity_logits=logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resolution", [16, 128])
def test_broken_splats_stay_finite(backend, resolution):
    scene = broken_scene()
    geometry = Geometry((0, 0, 0), (0, 0, 0), 2.7, tuple(map(tuple, make_intrinsics().tolist())))
    cameras = geometry.orbit(torch.tensor([[0.0, 0.5], [0.0, -0.5]]))
    leaves = scene.map(lambda t: t.clone().requires_grad_())
    out = render(leaves, cameras, resolution, backend=backend)
    (out.rgb.square().sum() + out.alpha.sum() + out.depth.sum()).backward()
    assert all(t.isfinite().all() for t in (out.rgb, out.alpha, out.depth))
    for name, leaf in zip(FIELDS, fields_of(leaves), strict=True):
        assert leaf.grad.isfinite().all(), name
    # Who cannot be seen gets no gradient, and the others still get one.
    assert (leaves.means.grad[:, [6, 9]] == 0).all()
    assert leaves.means.grad[:, 11:].abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_splat_at_all_gives_the_background(backend):
    scene = make_scene(2, 5).map(lambda t: t[:, :0])
    out = render(scene, make_cameras(2, 3), (5, 7), torch.tensor([0.1, 0.2, 0.3]), backend=backend)
    assert torch.equal(out.rgb, torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(2, 3, 3, 5, 7))
    assert not out.alpha.any() and not out.depth.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scene_out_of_sight_gives_the_background_and_no_gradient(backend):
    """Covers splats behind the camera, beside the image, and too faint to be seen."""
    scene, cameras = make_scene(1, 30), make_cameras(1, 1)
    forward, right = cameras.cam2world[0, 0, :3, 2], cameras.cam2world[0, 0, :3, 0]
    for change in (
        {"means": scene.means - 5 * forward},
        {"means": scene.means + 5 * right},
        {"opacity_logits": torch.full_like(scene.opacity_logits, -6.0)},
    ):
        leaves = dataclasses.replace(scene, **change).map(lambda t: t.clone().requires_grad_())
        out = render(leaves, cameras, (9, 11), torch.tensor([0.1, 0.2, 0.3]), backend=backend)
        assert torch.equal(out.rgb, torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(1, 1, 3, 9, 11))
        total = out.rgb.sum() + out.alpha.sum() + out.depth.sum()
        assert not any(g.any() for g in torch.autograd.grad(total, fields_of(leaves)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_higher_harmonics_are_seen_from_each_camera(backend):
    scene, cameras = make_scene(2, 30, coefficients=16), make_cameras(2, 2)
    one = render(scene, cameras, 16, backend=backend).rgb
    other = render(scene, cameras, 16, colors=scene.colors(cameras.positions), backend=backend).rgb
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 5, 16])
def test_colors_bring_their_own_channels(backend, channels):
    scene, cameras = make_scene(2, 30, size=0.02), make_cameras(2, 3)
    colors = torch.rand(2, 30, channels)
    out = render(scene, cameras, 16, colors=colors, backend=backend)
    assert out.rgb.shape == (2, 3, channels, 16, 16)
    per_view = colors[:, None].expand(2, 3, 30, channels).clone()
    torch.testing.assert_close(render(scene, cameras, 16, colors=per_view, backend=backend).rgb, out.rgb)
    black = render(scene, cameras, 16, torch.zeros(channels), colors=torch.ones(2, 30, channels), backend=backend)
    torch.testing.assert_close(black.rgb, out.alpha.expand_as(black.rgb), rtol=0, atol=1e-5)
    empty = (out.alpha == 0).expand_as(out.rgb)
    assert empty.any() and (out.rgb[empty] == 1).all()  # the default is white


def test_rendering_image_is_in_the_range_of_discriminators():
    rgb = torch.rand(1, 1, 3, 2, 2)
    torch.testing.assert_close(Rendering(rgb, rgb[:, :, :1], rgb[:, :, :1]).image, 2 * rgb - 1)


def test_backgrounds_broadcast():
    scene, cameras = make_scene(2, 10), make_cameras(2, 3)
    reference = render(scene, cameras, 8, torch.full((2, 3, 3), 0.5), backend="torch").rgb
    for background in (torch.tensor(0.5), torch.full((3,), 0.5), torch.full((2, 1, 3), 0.5)):
        torch.testing.assert_close(render(scene, cameras, 8, background, backend="torch").rgb, reference)
    white = render(scene, cameras, 8, torch.ones(3), backend="torch").rgb
    torch.testing.assert_close(render(scene, cameras, 8, backend="torch").rgb, white)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": make_cameras(3, 1)}, r"cameras must have leading shape \[2, V\], got \[3, 1\]"),
        ({"cameras": make_cameras(2, 1)[:, 0]}, r"leading shape \[2, V\], got \[2\]"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": (4, -1)}, "resolution"),
        ({"background": torch.zeros(2, 4)}, r"background must broadcast to \[2, 1, 3\], got \[2, 4\]"),
        ({"colors": torch.zeros(2, 4, 3)}, "colors must have shape"),
        ({"colors": torch.zeros(2, 5, 17)}, "C <= 16"),
        ({"colors": torch.zeros(2, 5, 3, dtype=torch.float16)}, "colors must be torch.float32"),
        ({"scene": make_scene(2, 5, dtype=torch.bfloat16)}, "float32 or float64"),
        ({"colors": torch.zeros(2, 2, 5, 3)}, "colors"),
        ({"scale_modifier": 0.0}, "scale_modifier"),
        ({"low_pass": 0.0}, "low_pass must be positive and finite"),
        ({"backend": "cuda"}, "legal are"),
        ({"backend": "gsplat"}, "does not render"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"scene": make_scene(2, 5), "cameras": make_cameras(2, 1), "resolution": 8, "backend": "torch"}
    with pytest.raises(ValueError, match=message):
        render(**{**arguments, **change})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_low_pass_widens_small_splats(backend):
    scene, cameras = one_splat((0.0, 0.0, 0.0), 1e-4, 0.0), make_cameras(1, 1)
    area = [float(render(scene, cameras, 64, backend=backend, low_pass=x).alpha.sum()) for x in (0.3, 0.6, 1.2)]
    assert area[0] * 1.9 < area[1] and area[1] * 1.9 < area[2]
    torch.testing.assert_close(
        render(scene, cameras, 64, backend=backend).rgb, render(scene, cameras, 64, backend=backend, low_pass=0.3).rgb
    )


def test_skew_is_refused_by_name():
    cameras = make_cameras(1, 1)
    intrinsics = cameras.intrinsics.clone()
    intrinsics[..., 0, 1] = 0.1
    with pytest.raises(ValueError, match="skew"):
        render(make_scene(1, 5), Cameras(cameras.cam2world, intrinsics), 8)


def test_auto_takes_the_native_back_end_and_the_twin_for_float64(monkeypatch):
    monkeypatch.setattr(backend_cpu, "available", lambda: True)
    assert resolve_backend("auto", "cpu") == "cpu"
    assert resolve_backend("auto", "cpu", torch.float64) == "torch"
    assert resolve_backend("torch", "cpu") == "torch"
    with pytest.raises(ValueError, match="float64"):
        resolve_backend("cpu", "cpu", torch.float64)


def test_auto_falls_back_with_one_warning_that_says_why(monkeypatch):
    rendering._warn_once.cache_clear()
    monkeypatch.setattr(backend_cpu, "available", lambda: False)
    monkeypatch.setattr(backend_cpu, "reason", lambda: "no compiler (test)")
    with pytest.warns(UserWarning, match=r"'torch'.*no compiler \(test\)"):
        assert resolve_backend("auto", "cpu") == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render(make_scene(1, 5), make_cameras(1, 1), 8).rgb.shape == (1, 1, 3, 8, 8)
    with pytest.raises(ValueError, match="no compiler"):
        resolve_backend("cpu", "cpu")
    rendering._warn_once.cache_clear()


def test_float64_and_gradient_of_the_background():
    scene, cameras = make_scene(1, 10, dtype=torch.float64), make_cameras(1, 2)
    background = torch.rand(1, 2, 3, dtype=torch.float64, requires_grad=True)
    out = render(scene, cameras, 8, background)
    assert out.rgb.dtype == torch.float64
    out.rgb.sum().backward()
    torch.testing.assert_close(background.grad, (1 - out.alpha.detach()).sum((-1, -2)).expand(1, 2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_reach_the_rasteriser(backend):
    scene, cameras = make_scene(1, 30), make_cameras(1, 1)
    expected = render(scene, cameras, 16, backend=backend).rgb
    with torch.autocast("cpu", torch.bfloat16):
        got = render(scene, cameras, 16, backend=backend).rgb
    assert got.dtype == torch.float32 and torch.equal(got, expected)
