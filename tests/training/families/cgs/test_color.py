"""The colour rules: equal pictures, and black splats that come back under one of them."""

import dataclasses

import pytest
import torch
from torch import Tensor

from gaussian import Cameras, Gaussians, render
from gaussian.ply import load_ply, save_ply
from gaussian.spherical_harmonics import Y00
from training.families.cgs.generator import Generator, GeneratorConfig
from training.networks import color

LABEL = torch.tensor([1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.3, 0, 0.5, 0, 4.3, 0.5, 0, 0, 1])
BACKENDS = ("torch", "cpu")
TINY = GeneratorConfig(
    resolution=32, z_dim=24, w_dim=16, num_points=12, ratios=(1, 4), widths=(32, 16), first_blocks=1, num_heads=4,
    point_encoding="fourier+code", coarse_log_scale=-2.5, camera_embedding=False, published_keys=False,
)  # fmt: skip


def cameras(batch: int = 1) -> Cameras:
    return Cameras.from_labels(LABEL.expand(batch, 1, 25))


def coefficients(dtype: torch.dtype = torch.float32) -> Tensor:
    """sh [2, 50, 1, 3] with about a third of the colours under 0, and some at the floor itself."""
    sh = torch.randn(2, 50, 1, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 3
    sh[0, :4] = color.SH_FLOOR
    return sh


def splats(sh: Tensor) -> Gaussians:
    """Wide splats beside each other before the camera, with the coefficients sh [1, N, 1, 3]."""
    count = sh.shape[1]
    means = torch.zeros(1, count, 3)
    means[0, :, 0] = torch.linspace(-0.3, 0.3, count)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4)
    return Gaussians(means, torch.full((1, count, 3), -3.0), quats, torch.zeros(1, count, 1), sh)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_floor_shows_the_published_colours(dtype):
    sh = coefficients(dtype)
    floored = color.inward_floor(sh)
    published, shown = (torch.relu(Y00 * x + 0.5) for x in (sh, floored))
    assert 0.2 < (published == 0).double().mean() < 0.4
    torch.testing.assert_close(shown, published, rtol=0, atol=1.1e-6)  # DARKEST, and the rounding of the sum
    assert (shown > 0).all()
    assert torch.equal(floored[published > color.DARKEST * 2], sh[published > color.DARKEST * 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_floor_matches_its_twin(dtype):
    results = []
    upstream = torch.randn(2, 50, 1, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for function in (color.inward_floor, color.inward_floor_reference):
        sh = coefficients(dtype).requires_grad_()
        floored = function(sh)
        floored.backward(upstream)
        results.append((floored, sh.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_the_gradient_passes_inwards_alone():
    sh = torch.tensor([-9.0, -9.0, -1.0, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(color.inward_floor(sh), sh, torch.tensor([3.0, -3.0, 3.0, -3.0, 3.0]).double())
    assert gradient.tolist() == [0.0, -3.0, 3.0, -3.0, 3.0]  # descent on 3 would lower what is black already
    # Of the function itself, whose derivative is 0 under the floor: gradcheck's upstream gradients are positive.
    assert torch.autograd.gradcheck(color.inward_floor, sh)


def test_what_is_not_finite_stays_so():
    sh = torch.tensor([float("nan"), 0.0], requires_grad=True)
    floored = color.inward_floor(sh)
    assert floored[0].isnan()
    (gradient,) = torch.autograd.grad(floored, sh, torch.tensor([float("nan")] * 2))
    assert gradient.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_back_end_swallows_the_gradient_at_the_floor(backend):
    """A black splat on grey: brighter pixels ask for more of each colour, darker ones for less."""
    for sign, expected in ((1, True), (-1, False)):
        raw = torch.full((1, 3, 1, 3), -4.0, requires_grad=True)
        picture = render(splats(color.inward_floor(raw)), cameras(), 32, torch.tensor(0.5), backend=backend).rgb
        (gradient,) = torch.autograd.grad(-sign * picture.sum(), raw)
        assert bool((gradient != 0).all()) is expected
        assert (gradient <= 0).all()
    published = render(splats(raw), cameras(), 32, torch.tensor(0.5), backend=backend).rgb
    (gradient,) = torch.autograd.grad(-published.sum(), raw)
    assert (gradient == 0).all()
    torch.testing.assert_close(picture, published, rtol=0, atol=1.1e-6)  # of DARKEST


def blackened(rule: str) -> Generator:
    """A generator all of whose splats are black: colours of about -2."""
    torch.manual_seed(0)
    G = Generator(dataclasses.replace(TINY, color_rule=rule))
    with torch.no_grad():
        for head in G.point_gen.gaussians["color"]:
            head.weight.mul_(0.1)
            head.bias.fill_(-9.0)
    return G


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_splats_come_back(backend):
    """Twenty steps of Adam towards white pictures over black bring all splats back, or none as published."""
    z = torch.randn(2, TINY.z_dim, generator=torch.Generator().manual_seed(0))
    brightness = {}
    for rule in color.RULES:
        G = blackened(rule)
        G.rasterizer = backend
        optimizer = torch.optim.Adam(G.parameters(), lr=0.5, betas=(0.0, 0.99))
        for _ in range(20):
            scene = G.synthesis(G.mapping(z))
            picture = G.render(scene, cameras(2), background=torch.zeros(3)).rgb
            optimizer.zero_grad()
            (picture - 1).square().mean().backward()
            optimizer.step()
        brightness[rule] = G.synthesis(G.mapping(z)).colors().mean()
    assert brightness["published"] == 0
    assert brightness["inward"] > 0.5


def test_anchors_and_everything_else_stay_as_published():
    published, inward = (blackened(rule) for rule in color.RULES)
    assert list(published.state_dict()) == list(inward.state_dict())
    ws = torch.randn(2, 1, TINY.w_dim)
    one, other = published.synthesis(ws), inward.synthesis(ws)
    assert (one.sh < color.SH_FLOOR).all() and (other.sh == color.SH_FLOOR).all()
    for name in ("means", "log_scales", "quats", "opacity_logits"):
        assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(getattr(one.anchors, name), getattr(other.anchors, name))
    assert torch.equal(one.anchors.sh, other.anchors.sh)


def test_a_ply_file_shows_the_same(tmp_path):
    scene = blackened("inward").synthesis(torch.randn(1, 1, TINY.w_dim))
    save_ply(tmp_path / "scene.ply", scene)
    again = load_ply(tmp_path / "scene.ply")
    assert torch.equal(again.colors(), scene.colors()) and (again.colors() > 0).all()


def test_a_rule_that_does_not_exist_is_refused():
    assert TINY.color_rule == "published" == GeneratorConfig.published(512).color_rule
    with pytest.raises(ValueError, match="color_rule='bright'; legal are published, inward"):
        dataclasses.replace(TINY, color_rule="bright")
