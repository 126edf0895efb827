"""Compares the native code of fields with its twins in float64, and tests what must not change its bits."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.training.fields.fields import GEOMETRY
from training.families import family
from training.fields import native_fields
from training.fields.field import RadianceField
from training.fields.native_fields import Layer
from training.fields.triplanes import EG3D, PROPER, plane_features, plane_features_reference
from training.presets import resolve

pytestmark = pytest.mark.skipif(not native_fields.available(), reason="no C++ compiler, or SPLATGAN_NATIVE=0")

# inputs, widths of the layers, which of them show, results, numbers that the last layer reads beside, activation;
# points: less than a tile, some tiles, more than a part
NETWORKS = {
    "sines of pi-GAN": (3, (48, 48, 48), (False, True, True), 4, 3, "sine"),
    "sines of odd widths": (3, (17, 5, 33), (True, False, True), 2, 1, "sine"),
    "EpiGRAF's decoder": (12, (32,), (True,), 4, 0, "lrelu"),
    "one layer of the published widths": (32, (64,), (True,), 33, 0, "lrelu"),
}
POINTS = (5, 300, 1500)


def twin(x: Tensor, layers: list[Layer], bias: Tensor, activation: str, extra: Tensor | None = None) -> Tensor:
    out = bias[:, None]
    for i, layer in enumerate(layers):
        if extra is not None and i + 1 == len(layers):
            x = torch.cat([x, extra], dim=-1)
        x = x @ layer.weights + layer.bias[:, None]
        x = x.sin() if activation == "sine" else F.leaky_relu(x, native_fields.SLOPE)
        if layer.shown is not None:
            out = out + x @ layer.shown
    return out


def network(name: str, points: int, shared: bool) -> tuple[Tensor, list[Layer], Tensor, str, Tensor | None]:
    g = torch.Generator().manual_seed(points)
    inputs, widths, shows, outputs, extras, activation = NETWORKS[name]
    scenes, own = 3, 1 if shared else 3

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    layers, depth = [], inputs
    for i, (width, shown) in enumerate(zip(widths, shows, strict=True)):
        depth += extras if i + 1 == len(widths) else 0
        head = normal(own, width, outputs) / width**0.5 if shown else None
        layers.append(Layer(2 * normal(own, depth, width) / depth**0.5, normal(own, width), head))
        depth = width
    extra = normal(scenes, points, extras) if extras else None
    return normal(scenes, points, inputs), layers, normal(own, outputs), activation, extra


def rounded(case: tuple) -> tuple:
    """Returns a network in float32."""
    x, layers, bias, activation, extra = case
    layers = [Layer(*(None if part is None else part.float() for part in layer)) for layer in layers]
    return x.float(), layers, bias.float(), activation, None if extra is None else extra.float()


def results(run: Callable[..., Tensor], case: tuple, dtype: torch.dtype) -> list[Tensor]:
    """Returns the value and the gradients of a network."""
    x, layers, bias, activation, extra = case

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype).clone().requires_grad_()

    x, layers, bias = leaf(x), [Layer(*map(leaf, layer)) for layer in layers], leaf(bias)
    value = run(x, layers, bias, activation, None if extra is None else extra.to(dtype))
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    inputs = [x, bias, *(part for layer in layers for part in layer if part is not None)]
    return [value.detach(), *torch.autograd.grad(value, inputs, upstream)]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_matches_its_twin(name, points, shared):
    case = network(name, points, shared)
    found, expected = results(native_fields.run, case, torch.float32), results(twin, case, torch.float64)
    for one, other in zip(found, expected, strict=True):
        # Worst seen, relative to the largest number: 2.9e-6; of the twin in float32 1.0e-6.
        assert one.shape == other.shape and (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("largest, tolerance", [(3, 2e-7), (100, 2e-7), (10_000, 5e-7)])  # worst seen 1.3e-7, 2.7e-7
def test_sines_and_their_slopes_are_exact(largest, tolerance):
    x = (torch.linspace(-1, 1, 100_000) * largest)[None, :, None].requires_grad_()
    one, nothing = torch.ones(1, 1, 1), torch.zeros(1, 1)
    y = native_fields.run(x, [Layer(one, nothing, one)], nothing, "sine")
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double()
    assert (y - exact.sin()).abs().max() < tolerance and (slope - exact.cos()).abs().max() < tolerance
    assert y.abs().max() <= 1 + 1e-7


def test_no_sine_is_larger_than_one():
    x = torch.tensor([1e6, 1e9, -1e20, 3e38])[None, :, None]
    one, nothing = torch.ones(1, 1, 1), torch.zeros(1, 1)
    assert native_fields.run(x, [Layer(one, nothing, one)], nothing, "sine").abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("features", [5, 12, 32])  # the latter two have loops of their own
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("axes", [PROPER, EG3D])
def test_planes_match_their_twin(axes, corners, features):
    g = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 3, features, 9, 9, generator=g, dtype=torch.float64)
    points = 1.3 * (2 * torch.rand(2, 2100, 3, generator=g, dtype=torch.float64) - 1)  # some are outside
    points[0, :4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [-1, -1, -1], [1, -1, 0]])
    upstream = torch.randn(2, 2100, features, generator=g, dtype=torch.float64)
    found, expected = [], []
    for read, dtype, to in (
        (plane_features, torch.float32, found),
        (plane_features_reference, torch.float64, expected),
    ):
        leaf = planes.to(dtype).requires_grad_()
        value = read(leaf, points.float().to(dtype), axes, corners)
        to += [value.detach(), *torch.autograd.grad(value, leaf, upstream.to(dtype))]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 5e-6 * other.abs().max()


# ---------------------------------------------------------------- scenes of the families


def scene_of(preset: str, scenes: int = 2) -> RadianceField:
    config = resolve(preset, data="")
    torch.manual_seed(0)
    settings = config.generator
    if preset.startswith("eg3d"):
        settings = dataclasses.replace(settings, plane_resolution=16, channel_base=256, channel_max=16, w_dim=16)
    G = family(config.family).generator(settings).requires_grad_(False)
    G.info = None
    z = torch.randn(scenes, G.z_dim)
    return G.synthesis(G.mapping(z, GEOMETRY.frontal().reshape(1).expand(scenes)))


def sampled(scene: RadianceField, points: Tensor, directions: Tensor) -> list[Tensor]:
    """Returns colours, densities and the gradients of the scene's tensors."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    colours, density = scene.map(leaf).sample(points, directions)
    total = (colours * colours.detach().cos()).sum() + density.sum()
    return [colours.detach(), density.detach(), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("preset", ["epigraf-tiny", "eg3d-field128", "pigan-tiny"])
def test_a_scene_is_the_same_without_native_code(preset, monkeypatch):
    scene = scene_of(preset)
    points = (torch.rand(2, 700, 3) - 0.5) * scene.half_width * scene.unit
    directions = F.normalize(torch.randn(2, 700, 3), dim=-1)
    with monkeypatch.context() as patch:
        calls = []
        run = native_fields._Run if preset == "pigan-tiny" else native_fields._ReadPlanes
        patch.setattr(run, "apply", lambda *args, of=run.apply: calls.append(0) or of(*args))
        found, alone = sampled(scene, points, directions), scene.raw_density(points)
        assert len(calls) == 2
    monkeypatch.setattr(native_fields, "usable", lambda *tensors: False)
    expected = sampled(scene, points, directions)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()  # worst seen 2.1e-6
    assert (alone - expected[1]).abs().max() <= 2e-5 * expected[1].abs().max()


@pytest.mark.parametrize("preset", ["epigraf-tiny", "pigan-tiny"])
def test_normals_have_a_gradient(preset):
    """It takes second derivatives, which PyTorch's code has."""
    scene = scene_of(preset, 1)
    leaves = []
    scene = scene.map(lambda tensor: leaves.append(tensor.detach().requires_grad_()) or leaves[-1])
    normals = scene.normals((torch.rand(1, 20, 3) - 0.5) * scene.half_width * scene.unit)
    normals[..., 0].sum().backward()
    assert all(leaf.grad.isfinite().all() and leaf.grad.any() for leaf in leaves)


# ---------------------------------------------------------------- what must not matter, and what must show


def test_neither_threads_nor_the_batch_change_a_bit():
    planes, points = torch.randn(3, 3, 12, 16, 16), torch.rand(3, 4000, 3) * 2 - 1
    before = torch.get_num_threads()

    def all_of(case: tuple, planes: Tensor, points: Tensor) -> list[Tensor]:
        leaf = planes.clone().requires_grad_()
        value = plane_features(leaf, points)
        return [*results(native_fields.run, case, torch.float32), value, *torch.autograd.grad(value.cos().sum(), leaf)]

    case = network("sines of pi-GAN", 2500, shared=False)
    outcomes = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outcomes.append(all_of(case, planes, points))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)
    x, layers, bias, activation, extra = rounded(case)
    layers = [Layer(*(None if part is None else part[1:2] for part in layer)) for layer in layers]
    alone = native_fields.run(x[1:2], layers, bias[1:2], activation, extra[1:2])
    assert torch.equal(alone[0], outcomes[0][0][1])
    assert torch.equal(plane_features(planes[1:2], points[1:2])[0], plane_features(planes, points)[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(value):
    """A step is skipped for it."""
    x, *others = rounded(network("sines of pi-GAN", 70, shared=False))
    x[1, 66, 0] = value
    out = native_fields.run(x, *others)
    assert out[1, 66].isnan().all() and out[0].isfinite().all() and out[1, :66].isfinite().all()
    points = torch.rand(1, 3, 3)
    points[0, 1, 2] = value
    features = plane_features(torch.randn(1, 3, 12, 8, 8), points)
    assert features[0, 1].isnan().all() and features[0, 0].isfinite().all()
    planes = torch.randn(1, 3, 12, 8, 8)
    planes[0, 0, 3] = value
    assert not plane_features(planes, torch.rand(1, 3, 3))[..., 3].isfinite().any()


def test_other_tensors_are_left_to_pytorch(monkeypatch):
    points, planes = torch.rand(1, 3, 3), torch.rand(1, 3, 4, 8, 8)
    assert native_fields.usable(points, planes)
    assert not native_fields.usable(points.double(), planes)
    assert not native_fields.usable(points, planes.double())
    assert not native_fields.usable(points.requires_grad_(), planes)
    with torch.no_grad():
        assert native_fields.usable(points, planes)
    monkeypatch.setattr(native_fields, "_load", lambda: None)
    assert not native_fields.usable(points.detach(), planes)


def test_a_second_derivative_is_refused():
    planes = torch.rand(1, 3, 4, 8, 8, requires_grad=True)
    value = plane_features(planes, torch.rand(1, 5, 3)).square().sum()
    (gradient,) = torch.autograd.grad(value, planes, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
