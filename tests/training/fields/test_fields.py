"""Fields are rendered as the slow twin renders them; parts, batches and sizes do not matter; memory is bounded."""

import dataclasses

import pytest
import torch

from gaussian import Cameras, Density, Rendering, Scene
from tests.training.fields import twin
from tests.training.fields.fields import FAR, GEOMETRY, NEAR, Balls, Waves, cameras, numbers, waves
from torch_utils.random import Draws
from training.fields import marching
from training.fields.marching import March, RayDraws, render_field
from training.fields.rays import camera_rays, importance, inverse_cdf, stratified
from training.fields.volume import absorption, composite, ray_weights

SIZE = (3, 4)
MARCH = March(NEAR, FAR, samples=6, fine_samples=5)
CASES = {
    "plain": (MARCH, "softplus", False),
    "pi-GAN": (dataclasses.replace(MARCH, grid="corners"), "relu", True),
    "last back": (dataclasses.replace(MARCH, last_back=True), "relu", True),
    "EpiGRAF": (dataclasses.replace(MARCH, jitter="inside", grid="corners", last_delta=1e-3), "softplus", True),
    "one pass": (dataclasses.replace(MARCH, fine_samples=0, jitter="onward"), "softplus", True),
}


def same(found: Rendering, expected: Rendering, tolerance: float) -> None:
    for name in ("rgb", "alpha", "depth"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_renders_as_the_slow_twin(case):
    march, activation, random = CASES[case]
    field, seen, behind = waves(activation=activation), cameras(), torch.rand(2, 2, 3, dtype=torch.float64)
    draws = numbers(march, 2 * SIZE[0] * SIZE[1]) if random else RayDraws()
    expected = twin.render(field, seen, SIZE, march, behind, draws)
    same(render_field(field, seen, SIZE, march, behind, draws), expected, 5e-9)  # worst seen 1.3e-9


def test_gradients_are_those_of_the_slow_twin():
    march, activation, _ = CASES["EpiGRAF"]
    draws, behind = numbers(march, 12, batch=1), torch.rand(1, 1, 3, dtype=torch.float64)
    gradients = []
    for render in (render_field, twin.render):
        field = waves(1, activation=activation).map(lambda t: t.clone().requires_grad_(True))
        out = render(field, cameras(1, 1), SIZE, march, behind, draws)
        (out.rgb.square().sum() + out.depth.sum() + out.alpha.cos().sum()).backward()
        gradients.append((field.first.grad, field.second.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_the_slow_twin_has_the_derivatives_of_finite_differences():
    march, seen = March(NEAR, FAR, samples=4, fine_samples=0), cameras(1, 1)
    field, draws = waves(1), numbers(March(NEAR, FAR, 4, 0), 2, batch=1)

    def image(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moved = dataclasses.replace(field, first=first, second=second)
        out = twin.render(moved, seen, (1, 2), march, torch.ones(1, 1, 3, dtype=torch.float64), draws)
        return out.rgb, out.alpha, out.depth

    assert torch.autograd.gradcheck(image, (field.first.requires_grad_(True), field.second.requires_grad_(True)))


def test_composite_has_the_derivatives_of_finite_differences():
    g = torch.Generator().manual_seed(0)
    features, raw = (torch.randn(2, 5, n, generator=g, dtype=torch.float64, requires_grad=True) for n in (3, 1))
    t = torch.rand(2, 5, generator=g, dtype=torch.float64).sort(-1).values.requires_grad_(True)

    def total(features: torch.Tensor, raw: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = composite(features, absorption(raw[..., 0], "softplus"), t, last_delta=0.2)
        return result.features, result.distance, result.alpha, result.through

    assert torch.autograd.gradcheck(total, (features, raw, t))


@pytest.mark.parametrize("grid", ["centres", "corners"])
def test_a_patch_is_the_window_of_the_whole_image(grid):
    """Rows 2 to 4 and columns 1 to 5 of 6 x 8 pixels; with corners the crop ends in the middle of its outer pixels."""
    march = dataclasses.replace(MARCH, grid=grid)
    field, seen = waves(), cameras()
    whole = render_field(field, seen, (6, 8), march)
    boxes = {"centres": (1 / 8, 2 / 6, 6 / 8, 5 / 6), "corners": (1 / 7, 2 / 5, 5 / 7, 4 / 5)}
    patch = render_field(field, seen.crop(boxes[grid]), (3, 5), march)
    for name in ("rgb", "alpha", "depth"):
        window = getattr(whole, name)[..., 2:5, 1:6]
        torch.testing.assert_close(getattr(patch, name), window, rtol=0, atol=1e-12)


def test_parts_and_batches_do_not_matter():
    field, seen = waves(dtype=torch.float32), cameras(dtype=torch.float32)
    whole = render_field(field, seen, SIZE, MARCH)
    with torch.no_grad():
        in_parts = render_field(field, seen, SIZE, dataclasses.replace(MARCH, points=2 * 11 * 5))
    same(in_parts, whole, 1e-6)
    alone = render_field(field.scene(1), seen[1:, 1:], SIZE, MARCH)
    same(alone, Rendering(whole.rgb[1:, 1:], whole.alpha[1:, 1:], whole.depth[1:, 1:]), 1e-6)


def test_parts_that_are_computed_twice_have_the_same_gradient():
    gradients = []
    for recompute in (False, True):
        march = dataclasses.replace(MARCH, points=2 * 11 * 5, recompute=recompute)
        field = waves().map(lambda t: t.clone().requires_grad_(True))
        render_field(field, cameras(), SIZE, march, draws=numbers(march, 24)).rgb.square().sum().backward()
        gradients.append(field.first.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_does_not_grow_with_the_image(recompute):
    """The most points that the field is asked for at once, and the tensors that a gradient keeps."""
    asked = []

    class Counted(Waves):
        def sample(self, points, directions):
            asked.append(points.shape[0] * points.shape[1])
            return super().sample(points, directions)

    field = waves(1)
    field = Counted(field.half_width, field.unit, field.activation, field.shift, field.first, field.second)
    march = dataclasses.replace(MARCH, points=1000, recompute=recompute)
    with torch.set_grad_enabled(recompute):
        render_field(field, cameras(1, 1), 32, march)
    assert sum(asked) == 32 * 32 * 11
    assert max(asked) <= 1000


def test_a_ball_is_as_opaque_and_as_far_as_it_should_be():
    """A ray through the centre, one that passes it, and one that misses; the depth is the camera's z."""
    ball = Balls(0.3, 1.0, "relu", 0.0, torch.tensor([[0.0, 0.0, 0.0, 0.2, 4.0]], dtype=torch.float64))
    straight = dataclasses.replace(GEOMETRY, intrinsics=((2.0, 0, 0.5), (0, 2.0, 0.5), (0, 0, 1.0)))
    camera = straight.frontal().to(dtype=torch.float64).reshape(1, 1)
    out = render_field(ball, camera, 33, March(0.7, 1.3, 2000, 0))
    row = out.alpha[0, 0, 0, 16]
    assert abs(float(row[16]) - twin.sphere_alpha(0.0, 0.2, 4.0)) < 2e-3
    slope = 8 / 33 / 2.0  # 8 pixels from the middle: tangent of the angle
    aside = slope / (1 + slope**2) ** 0.5
    assert abs(float(row[24]) - twin.sphere_alpha(aside, 0.2, 4.0)) < 2e-3
    assert float(row[32]) == 0
    assert out.rgb[0, 0, :, 16, 32].tolist() == [1, 1, 1]  # white behind
    solid = dataclasses.replace(ball, balls=torch.tensor([[0.0, 0.0, 0.0, 0.2, 1e4]], dtype=torch.float64))
    z = render_field(solid, camera, 33, March(0.7, 1.3, 2000, 0)).depth
    angle = (1 + slope**2) ** -0.5
    hit = (angle - (angle**2 - 1 + 0.2**2) ** 0.5) * angle
    assert abs(float(z[0, 0, 0, 16, 16]) - 0.8) < 1e-3
    assert abs(float(z[0, 0, 0, 16, 24]) - hit) < 1e-3


def test_rays_meet_the_pixels_that_the_camera_projects_them_to():
    skewed = cameras()
    skew = skewed.intrinsics.clone()
    skew[..., 0, 1] = 0.05
    skewed = Cameras(skewed.cam2world, skew)
    rays = camera_rays(skewed, SIZE)
    points = (rays.origins + 0.9 * rays.directions).view(2, 2, -1, 3)
    xy, z = skewed.project(points)
    torch.testing.assert_close(z.flatten(1), 0.9 * rays.cosines)
    columns, rows = (torch.arange(4) + 0.5) / 4, (torch.arange(3) + 0.5) / 3
    expected = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).view(-1, 2).double()
    torch.testing.assert_close(xy, expected.expand_as(xy), rtol=0, atol=1e-6)


def test_importance_takes_samples_where_the_weight_is():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    weights = torch.full((11,), 1e-4, dtype=torch.float64)
    weights[4] = 1.0
    found = importance(t, weights, torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    assert ((found > 0.35) & (found < 0.45)).float().mean() > 0.95
    assert (found.diff() > 0).all()


def test_a_draw_on_an_edge_belongs_to_the_lower_or_the_upper_bin():
    edges, weights = torch.tensor([0.0, 1.0, 5.0, 9.0]), torch.tensor([1.0, 0.0, 1.0])
    u = torch.tensor([0.5])
    assert float(inverse_cdf(edges, weights, u)) == 1.0
    assert float(inverse_cdf(edges, weights, u, right=True)) == 5.0


@pytest.mark.parametrize("jitter", ["centred", "inside", "onward"])
def test_jitter_keeps_the_order_and_its_range(jitter):
    u = torch.rand(500, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, step = stratified(0.7, 1.3, 7, u, jitter), 0.1
    assert (t.diff() > 0).all()
    least, most = {"centred": (0.65, 1.35), "inside": (0.7, 1.3), "onward": (0.7, 1.4)}[jitter]
    assert least <= float(t.min()) < least + step / 4
    assert most - step / 4 < float(t.max()) <= most


def test_everything_that_is_dense_is_opaque_and_finite():
    """Densities from 0 to far beyond float32's exponent: gradients stay finite."""
    density = torch.tensor([0.0, 1e-20, 5.0, 1e4, 1e20], requires_grad=True)
    weights, through = ray_weights(density, torch.linspace(0.7, 1.3, 5))
    (weights.sum() + through).backward()
    assert density.grad is not None and density.grad.isfinite().all()
    assert float(weights.detach().sum()) == pytest.approx(1)


def test_a_field_is_a_scene_with_a_density():
    field = waves()
    assert isinstance(field, Scene) and isinstance(field, Density)
    assert field.batch_size == 2 and field.scene(1).batch_size == 1
    points = torch.rand(2, 7, 3, dtype=torch.float64) - 0.5
    raw = field.sample(points, None)[1]
    torch.testing.assert_close(field.density(points), torch.nn.functional.softplus(raw - 0.5))
    assert [tuple(values.shape) for values in field.statistics(cameras(), 64).values()] == [(2,), (2,)]
    solid = Balls(0.3, 1.0, "relu", 0.0, torch.tensor([[0.0, 0.0, 0.0, 0.3, 1e3], [9.0, 9.0, 9.0, 0.3, 1e3]]))
    opaque = solid.statistics(cameras(), 64)["Field/opaque"]
    assert abs(float(opaque[0]) - torch.pi / 6) < 0.05 and float(opaque[1]) == 0


def test_normals_point_to_where_the_density_falls():
    field = waves()
    points = torch.rand(2, 7, 3, dtype=torch.float64) - 0.5
    normals, step = field.normals(points), 1e-5
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(2, 7, dtype=torch.float64), rtol=0, atol=1e-5)
    for axis in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[axis] = step
        slope = (field.raw_density(points + shift) - field.raw_density(points - shift)) / (2 * step)
        length = (slope / normals[..., axis]).abs()
        torch.testing.assert_close(-slope, normals[..., axis] * length, rtol=0, atol=1e-5)
    assert not normals.requires_grad or torch.is_grad_enabled()


def test_draws_are_functions_of_the_sample():
    march = dataclasses.replace(MARCH, samples=40, fine_samples=20)
    both = marching.draw(Draws(1, range(5, 7)), "G/rays", 30, march, noise_std=0.5)
    alone = marching.draw(Draws(1, range(6, 7)), "G/rays", 30, march, noise_std=0.5)
    for name in ("jitter", "fine", "first_noise", "noise"):
        torch.testing.assert_close(getattr(both, name)[1:], getattr(alone, name), rtol=0, atol=0)
    assert both.noise is not None and both.jitter is not None and both.fine is not None
    assert both.noise.shape == (2, 30, 60)
    assert abs(float(both.noise.std()) - 0.5) < 0.02 and abs(float(both.jitter.mean()) - 0.5) < 0.02
    quiet = marching.draw(Draws(1, range(5, 7)), "G/rays", 30, march)
    assert quiet.noise is None and quiet.first_noise is None
    assert (quiet.fine == both.fine).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"near": 1.4}, "near=1.4 and far=1.3: near must be 0 or more, and less than far"),
        ({"samples": 2}, "samples=2 and fine_samples=5: there must be 3 and 0, or more"),
        ({"points": 0}, "points=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_marched_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MARCH, **change)


def test_units_of_the_field_are_no_matter():
    """The same scene in units of its own, cameras three times as far away: the same picture, and depths follow."""
    seen = cameras()
    whole = render_field(waves(), seen, SIZE, dataclasses.replace(MARCH, distance=1.0))
    moved = seen.cam2world.clone()
    moved[..., :3, 3] *= 3
    far = Cameras(moved, seen.intrinsics)
    thirds = dataclasses.replace(waves(), unit=1 / 3, half_width=0.9)
    out = render_field(thirds, far, SIZE, dataclasses.replace(MARCH, distance=1.0))
    same(Rendering(out.rgb, out.alpha, out.depth / 3), whole, 1e-12)
    points = torch.rand(2, 7, 3, dtype=torch.float64) - 0.5
    torch.testing.assert_close(thirds.density(3 * points), waves().density(points) / 3)


def test_near_and_far_follow_the_camera():
    """A camera that steps back along its axis sees the middle pixel through the same samples."""
    seen = GEOMETRY.frontal().to(dtype=torch.float64).reshape(1, 1)
    back = seen.cam2world.clone()
    back[..., :3, 3] *= 1.5
    axis = torch.tensor([[[[4.0, 0, 0.5], [0, 4.0, 0.5], [0, 0, 1]]]], dtype=torch.float64)
    march = dataclasses.replace(MARCH, distance=1.0)
    near, far = (render_field(waves(1), Cameras(pose, axis), 1, march) for pose in (seen.cam2world, back))
    torch.testing.assert_close(near.rgb, far.rgb, rtol=0, atol=1e-12)
    torch.testing.assert_close(near.depth + 0.5 * near.alpha, far.depth, rtol=0, atol=1e-12)


def test_wrong_shapes_and_names_are_refused():
    with pytest.raises(ValueError, match=r"leading shape \[2, V\], got \[1, 2\]"):
        render_field(waves(), cameras(1, 2), 4, MARCH)
    with pytest.raises(ValueError, match="no grid of corners"):
        camera_rays(cameras(), 1, "corners")
    with pytest.raises(ValueError, match="legal are centred, inside, onward"):
        stratified(0.1, 1.0, 4, jitter="sideways")
    with pytest.raises(ValueError, match="legal are relu, softplus"):
        absorption(torch.zeros(1), "exp")
