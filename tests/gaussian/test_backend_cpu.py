"""Compares the native CPU back end with its PyTorch twin in float64, and tests what must not change its bits."""

import math
import multiprocessing
import os

import pytest
import torch
import torch.nn.functional as F

from gaussian import Cameras, Gaussians, backend_cpu, backend_torch
from torch_utils import native

pytestmark = pytest.mark.skipif(not backend_cpu.available(), reason=f"no native back end: {backend_cpu.reason()}")

FIELDS = ("means", "log_scales", "quats", "opacity_logits")
GRADIENTS = (*(f"d{name}" for name in FIELDS), "dcolors", "dbackground")


def make_scene(batch, splats, size, seed, *, coefficients=1, spread=0.4):
    """Draws splats in a ball about the origin, float64; `size` is the median standard deviation in world units."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    radius = torch.rand(batch, splats, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    return Gaussians(
        means=spread * radius * F.normalize(normal(batch, splats, 3), dim=-1),
        log_scales=math.log(size) + 0.5 * normal(batch, splats, 3),
        quats=normal(batch, splats, 4),
        opacity_logits=normal(batch, splats, 1) - 0.5,
        sh=normal(batch, splats, coefficients, 3),
    )


def make_cameras(batch, views, seed, *, cx=0.5, cy=0.5, distance=2.7):
    generator = torch.Generator().manual_seed(seed)
    position = distance * F.normalize(torch.randn(batch, views, 3, generator=generator, dtype=torch.float64), dim=-1)
    intrinsics = torch.tensor([[4.2647, 0, cx], [0, 3.9, cy], [0, 0, 1]], dtype=torch.float64)
    return Cameras.look_at(position, (0.0, 0.0, 0.0), intrinsics=intrinsics)


def run(
    backend, scene, cameras, size, background, colors, dtype=torch.float32, upstream=None, scale_modifier=1.0, **options
):
    """Returns outputs and gradients by name; `upstream` are the outputs' gradients (random ones by default)."""

    def leaf(tensor):
        return None if tensor is None else tensor.to(dtype).clone().requires_grad_()

    scene, colors, background = scene.map(leaf), leaf(colors), leaf(background)
    outputs = backend.rasterize(scene, cameras.to(dtype=dtype), *size, background, colors, scale_modifier, **options)
    if upstream is None:
        generator = torch.Generator().manual_seed(99)
        upstream = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    inputs = {name: getattr(scene, name) for name in FIELDS}
    inputs |= {"colors": scene.sh if colors is None else colors, "background": background}
    total = sum((o * u.to(dtype)).sum() for o, u in zip(outputs, upstream, strict=True))
    gradients = torch.autograd.grad(total, list(inputs.values()))
    result = dict(zip(("rgb", "alpha", "depth"), (o.detach() for o in outputs), strict=True))
    return result | {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}


def assert_matches_twin(scene, cameras, size, background, colors=None, scale_modifier=1.0, **options):
    fast, slow = (
        run(backend, scene, cameras, size, background, colors, dtype, scale_modifier=scale_modifier, **options)
        for backend, dtype in ((backend_cpu, torch.float32), (backend_torch, torch.float64))
    )
    for name, expected in slow.items():
        assert fast[name].shape == expected.shape and fast[name].dtype == torch.float32
        error = float((fast[name].double() - expected).norm() / expected.norm().clamp_min(1e-12))
        # Worst seen over these tests: 1.1e-6 for images, 1.1e-5 for gradients.
        assert error < (2e-4 if name in GRADIENTS else 2e-5), f"{name}: {error:.1e}"


@pytest.mark.parametrize("low_pass", [0.02, 1.5])
def test_other_low_passes_match_the_twin(low_pass):
    scene, cameras = make_scene(2, 60, 0.02, 3), make_cameras(2, 2, 4)
    assert_matches_twin(scene, cameras, (40, 56), uniform(2, 2, 3), low_pass=low_pass)


def uniform(*shape, seed=5):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (64, 64), (5, 100)])
@pytest.mark.parametrize("seed", range(3))
def test_matches_twin_over_sizes(size, seed):
    scene, cameras = make_scene(2, 200, 0.05, seed), make_cameras(2, 2, seed, cx=0.5 + 0.1 * seed, cy=0.45)
    assert_matches_twin(scene, cameras, size, uniform(2, 2, 3))


@pytest.mark.parametrize("seed", range(4))
def test_matches_twin_with_needles_and_opaque_splats(seed):
    """Covers axes up to 100:1, some alphas at the cap, and pixels that stop early."""
    scene = make_scene(1, 150, 0.03, seed)
    stretch = torch.tensor([math.log(10.0), -math.log(10.0), 0.0], dtype=torch.float64)
    scene = Gaussians(scene.means, scene.log_scales + stretch, scene.quats, 4 * scene.opacity_logits + 3, scene.sh)
    assert_matches_twin(scene, make_cameras(1, 2, seed), (48, 48), uniform(1, 2, 3))


def test_matches_twin_in_and_behind_the_camera():
    """The cameras stand inside the cloud: near cut, 1.3 limit, splats larger than the image."""
    scene = make_scene(1, 100, 0.1, 0, spread=2.0)
    assert_matches_twin(scene, make_cameras(1, 3, 1, distance=0.8, cx=0.8, cy=0.3), (32, 40), uniform(1, 3, 3))


@pytest.mark.parametrize("channels", [1, 3, 4, 9, 16])
@pytest.mark.parametrize("per_view", [False, True])
def test_matches_twin_for_colors_of_any_width(channels, per_view):
    shape = (2, 2, 120, channels) if per_view else (2, 120, channels)
    scene, cameras = make_scene(2, 120, 0.05, 3), make_cameras(2, 2, 3)
    colors = uniform(*shape, seed=8)
    fast = run(backend_cpu, scene, cameras, (20, 20), uniform(2, 2, channels), colors)
    assert fast["rgb"].shape == (2, 2, channels, 20, 20)
    assert_matches_twin(scene, cameras, (20, 20), uniform(2, 2, channels), colors)


def test_matches_twin_for_view_dependent_sh():
    scene, cameras = make_scene(2, 120, 0.05, 3, coefficients=16), make_cameras(2, 2, 3)
    assert_matches_twin(scene, cameras, (24, 24), uniform(2, 2, 3))


def test_matches_twin_with_a_scale_modifier():
    assert_matches_twin(make_scene(1, 100, 0.05, 1), make_cameras(1, 1, 1), (24, 24), uniform(1, 1, 3), None, 0.4)


def test_comparison_notices_a_wrong_gradient(monkeypatch):
    """A gradient off by 1 % in one field must fail the comparison."""

    class Wrong:
        @staticmethod
        def rasterize(scene, *rest):
            scene = scene.map(lambda t: t * 1.0)
            scene.quats.register_hook(lambda g: 1.01 * g)
            return original(scene, *rest)

    original = backend_cpu.rasterize
    monkeypatch.setattr(backend_cpu, "rasterize", Wrong.rasterize)
    with pytest.raises(AssertionError, match="dquats"):
        assert_matches_twin(make_scene(1, 50, 0.05, 1), make_cameras(1, 1, 1), (24, 24), uniform(1, 1, 3))


def assert_bit_equal(a, b):
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def threads():
    """Sets torch's thread count for a test and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["torch's OpenMP", "own pool"])
def runtime(request):
    """Runs a test on both kinds of threads that the kernel has."""
    library = backend_cpu._library()
    if request.param == "own pool":
        library.splat_use_openmp(None)
    yield
    library.splat_use_openmp(native.torch_openmp())


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(("batch", "views"), [(1, 1), (2, 2), (5, 1)])
def test_thread_count_does_not_change_a_bit(batch, views, threads):
    """Uses more splats than one item of the parallel loops holds, so that threads share them."""
    arguments = (
        make_scene(batch, 5440, 0.02, 4),
        make_cameras(batch, views, 4),
        (40, 72),
        uniform(batch, views, 3),
        None,
    )
    results = []
    for count in (1, 2, 3, 3):
        threads(count)
        results.append(run(backend_cpu, *arguments))
    for other in results[1:]:
        assert_bit_equal(results[0], other)


@pytest.mark.parametrize("channels", [None, 3, 5])
@pytest.mark.parametrize("size", [0.002, 0.05, 0.5])  # splats of one or two tiles each way, of many, of all
def test_images_are_the_same_without_a_backward(size, channels):
    """Nothing is kept then: neither hits nor where the (tile, splat) pairs stand."""
    scene, cameras = make_scene(2, 600, size, 7).map(torch.Tensor.float), make_cameras(2, 2, 7).to(dtype=torch.float32)
    colors = None if channels is None else uniform(2, 600, channels, seed=8).float()
    arguments = (cameras, 70, 52, uniform(2, 2, channels or 3).float(), colors, 1.0)
    plain = backend_cpu.rasterize(scene, *arguments)
    kept = backend_cpu.rasterize(scene.map(torch.Tensor.requires_grad_), *arguments)
    assert kept[0].requires_grad and not plain[0].requires_grad
    for name, a, b in zip(("rgb", "alpha", "depth"), plain, kept, strict=True):
        assert torch.equal(a, b), name


def test_what_an_earlier_call_left_changes_nothing():
    """Working memory is used again: where no splat is visible, there is what the last call left."""
    scene, cameras = make_scene(1, 600, 0.01, 7).map(torch.Tensor.float), make_cameras(1, 1, 7).to(dtype=torch.float32)
    background = torch.zeros(1, 1, 3)
    half = scene.means[..., :1].abs() < 0.15  # the others go behind every camera
    few = Gaussians(
        torch.where(half, scene.means, 100.0), scene.log_scales, scene.quats, scene.opacity_logits, scene.sh
    )
    alone = scene.map(lambda t: t[:, half[0, :, 0]])

    def image(shown):
        return backend_cpu.rasterize(shown, cameras, 70, 52, background, None, 1.0)

    expected = image(alone)
    image(scene)
    for a, b in zip(image(few), expected, strict=True):
        assert torch.equal(a, b)


def test_scene_of_a_batch_is_bit_equal_to_the_scene_alone(threads):
    threads(2)
    scene, cameras, background = make_scene(3, 700, 0.04, 6), make_cameras(3, 2, 6), uniform(3, 2, 3)
    upstream = [torch.randn(3, 2, c, 30, 30, dtype=torch.float64) for c in (3, 1, 1)]
    whole = run(backend_cpu, scene, cameras, (30, 30), background, None, upstream=upstream)
    for b in range(3):
        part = slice(b, b + 1)
        alone = run(
            *(backend_cpu, scene.map(lambda t, part=part: t[part]), cameras[part], (30, 30), background[part], None),
            upstream=[u[part] for u in upstream],
        )
        assert_bit_equal(alone, {name: value[part] for name, value in whole.items()})


def test_no_gradient_leaks_between_scenes():
    scene, cameras, background = make_scene(3, 200, 0.05, 6), make_cameras(3, 2, 6), uniform(3, 2, 3)
    upstream = [torch.randn(3, 2, c, 16, 16, dtype=torch.float64) for c in (3, 1, 1)]
    for u in upstream:
        u[1] = 0
    result = run(backend_cpu, scene, cameras, (16, 16), background, None, upstream=upstream)
    for name, value in result.items():
        if name in GRADIENTS:
            assert not value[1].any() and value[0].any() and value[2].any(), name


def test_gradients_are_finite_for_extreme_splats():
    """Covers zero and tiny quaternions, scales 1e-12 and 1e6, points on the camera plane, opacities of 0 and 1."""
    scene, cameras = make_scene(1, 400, 0.05, 7, spread=3.0), make_cameras(1, 2, 7, distance=1.0)
    pick = torch.Generator().manual_seed(0)

    def choices(values, *shape):
        return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), shape, generator=pick)]

    means = scene.means * choices([1.0, 0.0, 1e6], 1, 400, 1)
    means[:, ::7] = cameras.positions[:, :1] + 1e-7 * means[:, ::7]
    extreme = Gaussians(
        means=means,
        log_scales=choices([math.log(1e-12), math.log(1e6), -3.0, 80.0, -200.0], 1, 400, 3),
        quats=scene.quats * choices([0.0, 1.0, 1e-13, 1e-30, 1e25], 1, 400, 1),
        opacity_logits=choices([-1e4, 1e4, 0.0, -3e38, 3e38], 1, 400, 1),
        sh=scene.sh * 1e3,
    )
    for name, value in run(backend_cpu, extreme, cameras, (20, 20), uniform(1, 2, 3), None).items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("field", [*FIELDS, "sh"])
def test_nan_shows_in_its_own_scene_only(field):
    scene = make_scene(2, 50, 0.05, 8)
    broken = {name: getattr(scene, name).clone() for name in (*FIELDS, "sh")}
    broken[field][1, 20] = math.nan
    result = run(backend_cpu, Gaussians(**broken), make_cameras(2, 1, 8), (8, 8), uniform(2, 1, 3), None)
    for name, value in result.items():
        assert value[0].isfinite().all(), name
        assert value[1].isnan().all(), name


@pytest.mark.parametrize("splats", [0, 30])
def test_empty_scene_shows_the_background(splats):
    scene, background = make_scene(2, splats, 0.05, 9), uniform(2, 1, 3)
    away = Gaussians(scene.means + 100.0, scene.log_scales, scene.quats, scene.opacity_logits, scene.sh)
    result = run(backend_cpu, away, make_cameras(2, 1, 9), (6, 7), background, None)
    torch.testing.assert_close(result["rgb"].double(), background[..., None, None].expand(2, 1, 3, 6, 7))
    assert not result["alpha"].any() and not result["depth"].any() and not result["dmeans"].any()


def test_equal_depths_keep_the_order_of_the_splats():
    """Puts two half-opaque splats at one place: the one that comes first is in front."""
    first, second = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    scene = Gaussians(
        torch.zeros(1, 2, 3),
        torch.full((1, 2, 3), -1.0),
        torch.ones(1, 2, 4),
        torch.zeros(1, 2, 1),
        torch.zeros(1, 2, 1, 3),
    )
    for colors in (torch.stack([first, second])[None], torch.stack([second, first])[None]):
        rgb, _, _ = backend_cpu.rasterize(
            scene, make_cameras(1, 1, 0).to(dtype=torch.float32), 5, 5, torch.zeros(1, 1, 3), colors, 1.0
        )
        torch.testing.assert_close(rgb[0, 0, :, 2, 2], 0.5 * colors[0, 0] + 0.25 * colors[0, 1])


def test_changes_no_argument_and_serves_tensors_of_any_stride():
    scene, cameras, background = make_scene(2, 60, 0.05, 2), make_cameras(2, 1, 2), uniform(2, 1, 3)
    straight = run(backend_cpu, scene, cameras, (9, 9), background, None)
    strided = scene.map(lambda t: t.transpose(0, 1).contiguous().transpose(0, 1))
    before = strided.map(torch.clone)
    assert_bit_equal(straight, run(backend_cpu, strided, cameras, (9, 9), background, None))
    for name in (*FIELDS, "sh"):
        assert torch.equal(getattr(before, name), getattr(strided, name))


def _render_in_child(queue, scene, cameras):
    torch.set_num_threads(2)
    rgb, _, _ = backend_cpu.rasterize(scene, cameras, 16, 16, torch.ones(3, 1, 3), None, 1.0)
    queue.put(rgb.numpy())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_works_in_a_forked_process(threads):
    """The parent's threads do not exist in the child."""
    threads(2)
    scene, cameras = make_scene(3, 100, 0.05, 2).map(torch.Tensor.float), make_cameras(3, 1, 2).to(dtype=torch.float32)
    expected, _, _ = backend_cpu.rasterize(scene, cameras, 16, 16, torch.ones(3, 1, 3), None, 1.0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_render_in_child, args=(queue, scene, cameras))
    child.start()
    got = torch.from_numpy(queue.get(timeout=900))
    child.join(timeout=900)
    assert child.exitcode == 0 and torch.equal(got, expected)


def _state_bytes_in_child(queue, scene, cameras, size):
    _, alpha, _ = backend_cpu.rasterize(
        scene.map(torch.Tensor.requires_grad_), cameras, *size, torch.ones(1, 2, 3), None, 1.0
    )
    queue.put(alpha.grad_fn.state.bytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    ("splats", "deviation", "size"),
    [
        (500, 0.02, (64, 64)),
        (4000, 0.02, (64, 64)),
        (500, 1.0, (64, 64)),
        (500, 1.0, (256, 256)),
        (50, 0.001, (500, 500)),
    ],
)
def test_what_is_kept_for_the_backward(splats, deviation, size):
    """Expects O(splats + tiles + pairs), however many splats cover a pixel; a forked child starts without states."""
    scene = make_scene(1, splats, deviation, 3).to(dtype=torch.float32)
    scene = Gaussians(scene.means, scene.log_scales, scene.quats, scene.opacity_logits - 3, scene.sh)  # all are seen
    cameras = make_cameras(1, 2, 3).to(dtype=torch.float32)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_state_bytes_in_child, args=(queue, scene, cameras, size))
    child.start()
    kept = queue.get(timeout=900)
    child.join(timeout=900)
    settings = backend_torch.Settings(tile=16)
    projection = backend_torch.project(scene, cameras, *size, 1.0, settings)
    pairs = int(backend_torch._tile_boxes(projection, *size, settings)[..., 2:].prod(-1).sum())
    tiles = 2 * math.prod(math.ceil(n / 16) for n in size)
    # Per splat 52 bytes for both views and 81 for each; per pair 8, and 6 for each of the tile's blocks that it hits.
    # Measured: 0.22 to 0.46 of this.
    assert kept <= 1.1 * (splats * (52 + 2 * 81) + pairs * (8 + 16 * 6)) + 512 * tiles + 4096
    if deviation == 1.0:
        assert pairs > 0.9 * splats * tiles and kept < 2 * splats * math.prod(
            size
        )  # bytes, for two views: measured 0.2 of it
