"""The generator of EpiGRAF: published numbers of latents, planes, fields and images, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussian import Cameras, Rendering
from gaussian.scene import Density
from tests.training.families.epigraf.golden import (
    CAMERAS,
    CLOSE,
    EXACT,
    WINDOWS,
    cameras,
    check,
    entry,
    generator,
    published_names,
)  # fmt: skip
from tests.training.families.hashes import noise, uniform
from torch_utils.random import Draws
from training.families.base import StepContext
from training.families.epigraf import backdrop, patches, poses
from training.families.epigraf.config import reach
from training.families.epigraf.generator import Generator, GeneratorConfig
from training.fields.marching import RayDraws
from training.fields.rays import camera_rays, importance, stratified
from training.fields.triplanes import EG3D, PROPER, plane_features, plane_features_reference
from training.fields.volume import absorption, composite
from training.images import quantize
from training.visualization.latents import seed_latents

Z = noise((2, 512), 1000)
GREY = torch.tensor(0.5)  # what published images without a white background show where there is nothing
IMAGES = 3e-5  # of an image of the field, whose densities have a gain of 40


def spread(rays: int, samples: int = 12) -> Tensor:
    return torch.linspace(0, 1, samples).expand(2, rays, samples)


def traced(G: Generator, seen: Cameras, size: int = 64, draws: RayDraws | None = None, **more: Any) -> Rendering:
    with torch.no_grad():
        scene = G.scene(G.network.tri_plane_decoder(G.mapping(Z, seen)[:, :8], "none"), G.mapping(Z, seen))
        draws = draws or RayDraws(fine=spread(size * size))
        return G.trace(scene, seen[:, None], (size, size), GREY, draws, **more)


def distance(rendering: Rendering, seen: Cameras) -> Tensor:
    """The published depth: along the ray."""
    cosines = camera_rays(seen[:, None], rendering.depth.shape[-1]).cosines
    return rendering.depth[:, 0] / cosines.view_as(rendering.depth[:, 0])


@torch.no_grad()
def test_published_latents_and_planes() -> None:
    G = generator()
    assert len(G.state_dict()) == 80 and sum(p.numel() for p in G.parameters()) == 114491 and G.num_ws == 8
    ws = G.mapping(Z)
    check(ws, "member/mapping/ws")
    check(ws[0, 0], "member/mapping/ws_row0")
    check(G.mapping(Z, psi=0.7), "member/mapping/ws_psi07")
    check(G.network.tri_plane_decoder(ws, "none"), "member/planes/noise_none", 5e-5)
    check(G.planes(ws), "member/planes/noise_const", 5e-5)


@torch.no_grad()
def test_published_field() -> None:
    G = generator()
    scene = G.scene(G.network.tri_plane_decoder(G.mapping(Z), "none"), G.mapping(Z))
    points = torch.tensor(entry("member/field/points/all")).view(2, 14, 3)
    ours = torch.stack([-points[..., 2], points[..., 1], points[..., 0]], dim=-1)
    assert torch.equal(poses.to_field(ours), points)
    check(scene.features(ours), "member/field/plane_mean_features")
    rgb, sigma = scene.sample(ours, None)
    values = torch.cat([2 * rgb - 1, sigma[..., None]], dim=-1)
    golden = torch.tensor(entry("member/field/rgb_sigma/all")).view(2, 14, 4)
    torch.testing.assert_close(values[..., :3], golden[..., :3], rtol=0, atol=CLOSE)
    torch.testing.assert_close(values[..., 3], golden[..., 3], rtol=0, atol=40 * CLOSE)
    check(sigma, "member/field/compute_densities", 40 * CLOSE)
    assert isinstance(scene, Density) and bool((scene.density(ours) >= 0).all())


@torch.no_grad()
def test_published_rays() -> None:
    for windows, name in (
        (torch.tensor([[1.0, 0, 0]] * 2), "full"),
        (WINDOWS[[0, 0]], "window0"),
        (WINDOWS[[1, 1]], "window1"),
    ):
        seen = patches.crop(cameras(), windows, 4, 64)
        rays = camera_rays(seen[:, None], 4)
        check(poses.to_field(rays.directions), f"member/rays/{name}/directions_world", EXACT)
        check(poses.to_field(rays.origins[:, 0]), "member/rays/origins_world", EXACT)
    t = stratified(0.88, 1.12, 12, like=rays.cosines)
    check(t, "member/rays/depths_unjittered", EXACT)
    jittered = stratified(0.88, 1.12, 12, uniform((2, 16, 12, 1), 1010)[..., 0], "inside")
    check(jittered[..., None], "member/rays/jitter/depths", EXACT)


@pytest.mark.parametrize(
    ("name", "activation", "last", "back", "shift"),
    [
        ("softplus_inf", "softplus", 1e10, False, 0.0),
        ("relu_inf", "relu", 1e10, False, 0.0),
        ("softplus_1e3", "softplus", 1e-3, False, 0.0),
        ("white", "softplus", 1e10, False, 0.0),
        ("white_1e3", "softplus", 1e-3, False, 0.0),
        ("last_back_1e3", "softplus", 1e-3, True, 0.0),
        ("shift_m1", "softplus", 1e10, False, -1.0),
    ],
)
def test_published_sums_along_rays(name: str, activation: str, last: float, back: bool, shift: float) -> None:
    t, colors, sigma = golden_rays()
    sums = composite(colors, absorption(sigma, activation, shift), t, last, back)
    rgb = sums.features + ((1 - sums.alpha)[..., None] if "white" in name else 0)
    check(rgb, f"member/composite/{name}/rgb")
    check(sums.distance[..., None], f"member/composite/{name}/depth")
    check(sums.through, f"member/composite/{name}/T_last")
    if "weights_ray0" in entry(f"member/composite/{name}"):
        check(sums.weights[0, 0], f"member/composite/{name}/weights_ray0")


def test_published_second_samples() -> None:
    t, colors, sigma = golden_rays()
    weights = composite(colors, absorption(sigma, "softplus"), t).weights
    for name, u in (("random_u1014", uniform((6, 12), 1014)), ("det_linspace", torch.linspace(0, 1, 12).expand(6, 12))):
        check(importance(t.flatten(0, 1), weights.flatten(0, 1), u), f"member/sample_pdf/{name}")


def golden_rays() -> tuple[Tensor, Tensor, Tensor]:
    """Distances, colours and raw densities of six rays."""
    values = noise((2, 3, 12, 4), 1012)
    values[..., 3] *= 8
    values[0, 1, 11, 3] = -30
    t = (0.88 + 0.24 * uniform((2, 3, 12, 1), 1013))[..., 0].sort(dim=-1).values
    return t, values[..., :3], values[..., 3]


def test_published_pixels_and_latents() -> None:
    """What metrics see of an image, and the latent of a seed."""
    for value, expected in entry("schedules_and_laws/metric_quantisation").items():
        assert int(quantize(torch.tensor([[[[float(value)]]]]))) == expected
    golden = torch.tensor(entry("schedules_and_laws/z_of_seed_3_first_4"))
    torch.testing.assert_close(seed_latents([3], 512)[0, :4].float(), golden, rtol=0, atol=EXACT)


def test_published_images() -> None:
    G, seen = generator(), cameras()
    image = traced(G, seen)
    check(image.image[:, 0], "member/render/two_pass_det/rgb", IMAGES)
    check(image.image[0, 0, :, 4::8, 4::8], "member/render/two_pass_det/rgb_8x8_cam0", IMAGES)
    check(distance(image, seen), "member/render/two_pass_det/depth", IMAGES)
    other = torch.stack([cameras().intrinsics[0], cameras(focal=0.5 / math.tan(math.radians(6.5))).intrinsics[1]])
    check(traced(G, Cameras(seen.cam2world, other)).image[:, 0], "member/render/two_pass_det/rgb_fov_12_13", IMAGES)
    draws = RayDraws(uniform((2, 4096, 12, 1), 1010)[..., 0], uniform((8192, 12), 1011).view(2, 4096, 12))
    image = traced(G, seen, draws=draws)
    check(image.image[:, 0], "member/render/two_pass_random/rgb", IMAGES)
    check(image.image[0, 0, :, 4::8, 4::8], "member/render/two_pass_random/rgb_8x8_cam0", IMAGES)


def test_published_patches() -> None:
    G = generator()
    for window in (0, 1):
        seen = patches.crop(cameras(), WINDOWS[[window] * 2], 16, 64)
        image = traced(G, seen, 16).image[:, 0]
        check(image, f"member/render/two_pass_det/patch_window{window}", IMAGES)
    first = traced(G, patches.crop(cameras(), WINDOWS[[0, 0]], 16, 64), 16).image[0, 0]
    check(first[:, 2::4, 2::4], "member/render/two_pass_det/patch_window0_4x4_cam0", IMAGES)
    draws = RayDraws(
        uniform((2, 256, 12, 1), 1010)[..., 0],
        uniform((512, 12), 1011).view(2, 256, 12),
        0.5 * noise((2, 256, 12, 1), 1015)[..., 0],
        0.5 * noise((2, 256, 24, 1), 1016)[..., 0],
    )
    image = traced(G, patches.crop(cameras(), WINDOWS, 16, 64), 16, draws).image[:, 0]
    check(image, "member/render/train_patch_random_densitynoise05/rgb", IMAGES)
    check(image[:, :, 2::4, 2::4], "member/render/train_patch_random_densitynoise05/rgb_4x4", IMAGES)


@torch.no_grad()
def test_published_classes() -> None:
    G = generator(num_classes=10, cube_scale=0.475, ray_start=0.75, ray_end=1.25)
    seen = cameras(torch.tensor([[2.2, 0.9], [-2.9, 2.4]]), focal=0.5 / math.tan(math.radians(15)))
    ws = G.mapping(Z, seen, classes=torch.tensor([3, 7]))
    check(ws, "member/food/ws")
    scene = G.scene(G.network.tri_plane_decoder(ws, "none"), ws)
    image = G.trace(scene, seen[:, None], (64, 64), None, RayDraws(fine=spread(4096)))
    check(image.image[:, 0], "member/food/two_pass_det/rgb", 1e-4)
    many = G.classes_of(torch.randn(20_000, 512))
    assert many.bincount(minlength=10).sub(2000).abs().max() < 250
    pulled = G.mapping(Z, psi=0.0, classes=torch.tensor([3, 7]))
    assert not torch.allclose(pulled[0], pulled[1])
    assert torch.equal(pulled[:1], G.mapping(Z[1:], psi=0.0, classes=torch.tensor([3])))


@torch.no_grad()
def test_published_camera_conditioning() -> None:
    G = generator(camera_conditioning=True)
    ws = G.mapping(Z, cameras())
    check(ws, "member/gpc/ws")
    check(ws[0, 0, :16], "member/gpc/ws_row0")
    check(G.mapping(Z), "member/gpc/ws_mean_pose")


def test_published_painted_backdrop() -> None:
    G, seen = generator(backdrop="plane"), cameras()
    check(traced(G, seen).image[:, 0], "member/bg_plane/two_pass_det/rgb", IMAGES)
    with torch.no_grad():
        image = G.network.tri_plane_decoder(G.mapping(Z), "none")[:, 24:]
        painted = G._painted(image, 1, (64, 64), None)
    check((2 * painted - 1).transpose(1, 2).unflatten(2, (64, 64)), "member/bg_plane/two_pass_det/bg_only", 5e-5)
    seen = patches.crop(seen, WINDOWS, 16, 64)
    check(traced(G, seen, 16, windows=WINDOWS).image[:, 0], "member/bg_plane/two_pass_det/patch", IMAGES)


@torch.no_grad()
def test_published_sphere() -> None:
    G, seen = generator(backdrop="sphere"), cameras()
    assert G.num_ws == 12
    rendering = traced(G, seen)
    check(rendering.image[:, 0], "member/bg_sphere/two_pass_det/rgb", 1e-4)
    assert bool((rendering.alpha == 1).all())
    ws = G.mapping(Z)[:, -4:]
    behind = 2 * G._sphere(camera_rays(seen[:, None], 64), ws, None) - 1
    check(behind.transpose(1, 2).unflatten(2, (64, 64)), "member/bg_sphere/two_pass_det/bg_only", 1e-4)
    four = camera_rays(patches.crop(seen, torch.tensor([[1.0, 0, 0]] * 2), 2, 64)[:, None], 2)
    origins, directions = poses.to_field(four.origins), poses.to_field(four.directions)
    points = backdrop.outside(origins, directions, torch.linspace(1, 0, 4))
    check(points[0], "member/bg_sphere/points4_cam0", CLOSE)
    values = G.network.bg_model(points.flatten(1, 2), ws).unflatten(1, (4, 4))
    check(values[0], "member/bg_sphere/inr_rgb_sigma_cam0", 5e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ffhq512", {}),
        ("ffhq512_dcam_raw_gcam", {"camera_conditioning": True}),
        ("ffhq512_sphere", {"backdrop": "sphere"}),
        ("ffhq512_plane", {"backdrop": "plane"}),
        ("plants256_labels", {"num_classes": 198}),
    ],
)
def test_published_sizes(name: str, config: dict) -> None:
    with torch.device("meta"):
        G = Generator(GeneratorConfig(512, **config))
    golden = entry(f"parameter_counts/{name}")
    assert sum(p.numel() for p in G.parameters()) == golden["G"] and G.num_ws == golden["num_ws"]
    parts = {"mapping": G.mapper, "tri_plane_decoder": G.network.tri_plane_decoder, "mlp": G.network.tri_plane_mlp}
    assert {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()} == {
        part: golden[part] for part in parts
    }


# ---------------------------------------------------------------- what holds for any weights


@torch.no_grad()
def test_a_patch_is_the_same_window_of_the_whole_image() -> None:
    """Of 31 points across the image, 8 in a row; with a painted backdrop too."""
    full = torch.tensor([[1.0, 0, 0]] * 2)
    windows = torch.tensor([[7 / 30, 5 / 30, 20 / 30], [7 / 30, 22 / 30, 0.0]])
    for kind in ("none", "plane", "sphere"):
        G = generator(backdrop=kind)
        scene, seen = G.synthesis(G.mapping(Z)), cameras()[:, None]
        whole, part = (
            G.render(scene, patches.crop(seen, shown, size, 64), size, windows=shown)
            for shown, size in ((full, 31), (windows, 8))
        )
        for i, (row, column) in enumerate(((3, 5), (23, 22))):
            expected = whole.rgb[i, 0, :, row : row + 8, column : column + 8]
            torch.testing.assert_close(part.rgb[i, 0], expected, rtol=0, atol=2e-4)


@torch.no_grad()
def test_units_of_the_world_change_nothing_but_depth() -> None:
    G, far = generator(), generator(unit=1 / 3)
    scenes = [g.synthesis(g.mapping(Z)) for g in (G, far)]
    seen = cameras(pixels=16)
    moved = seen.cam2world.clone()
    moved[:, :3, 3] *= 3
    one = G.render(scenes[0], seen[:, None], 16)
    other = far.render(scenes[1], Cameras(moved, seen.intrinsics)[:, None], 16)
    torch.testing.assert_close(other.rgb, one.rgb, rtol=0, atol=1e-3)
    torch.testing.assert_close(other.depth, 3 * one.depth, rtol=0, atol=3e-3)
    assert scenes[1].half_width == pytest.approx(0.6)


@torch.no_grad()
def test_planes_match_their_twin() -> None:
    planes, points = torch.randn(2, 3, 5, 7, 7).double(), torch.randn(2, 40, 3).double()
    for axes in (PROPER, EG3D):
        for corners in (True, False):
            fast, slow = (f(planes, points, axes, corners) for f in (plane_features, plane_features_reference))
            torch.testing.assert_close(fast, slow)


def test_gradients_of_the_field() -> None:
    planes, points = torch.randn(1, 3, 2, 4, 4).double(), (torch.rand(1, 3, 3) * 1.5 - 0.75).double()
    inputs = planes.requires_grad_(), points.requires_grad_()
    assert torch.autograd.gradcheck(plane_features, inputs)


def training_image(G: Generator, rows: range, nimg: int, size: int = 8) -> Tensor:
    draws = Draws(3, rows)
    at = StepContext(nimg, draws)
    z = draws.normal("z", (G.z_dim,))
    seen = cameras(CAMERAS[:1].expand(len(rows), 2), size)
    with torch.no_grad():
        return G.render(G.synthesis(G.mapping(z), at), seen[:, None], size, at=at).rgb


@pytest.mark.parametrize("kind", ["none", "sphere"])
def test_random_numbers_belong_to_samples(kind: str) -> None:
    G = generator(backdrop=kind)
    whole, first, rest = (training_image(G, rows, 0) for rows in (range(4), range(1), range(1, 4)))
    torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=0, atol=2e-4)
    late = training_image(G, range(4), 5_000_000)
    assert (late - whole).abs().mean() > 1e-3  # the noise on the densities has faded
    assert torch.equal(late, training_image(G, range(4), 9_000_000))


def test_frusta() -> None:
    """Published distances: the corners of an image, at the far end."""
    ffhq, food = GeneratorConfig(64), GeneratorConfig(64, cube_scale=0.475, ray_start=0.75, ray_end=1.25)
    wide = cameras(focal=0.5 / math.tan(math.radians(15)))
    assert reach(ffhq, cameras()) == pytest.approx(0.19683, abs=1e-5)
    assert reach(food, wide) == pytest.approx(0.47404, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"samples": 3}, "--num-ray-steps=3: must be 4 or more"),
        ({"cube_scale": 0.1}, "the frustum lies outside of the cube, which reaches from 0.9 to 1.1"),
        ({"ray_start": 1.2}, "--ray-start=1.2: must be 0 or more, and less than --ray-end=1.12"),
        ({"backdrop": "cylinder"}, "--bg-model=cylinder: legal are none, plane, sphere"),
        ({"density": "elu"}, "--clamp-mode=elu: legal are softplus, relu"),
        ({"unit": 0.0}, "generator.unit=0.0: must be finite and greater than 0"),
        ({"density_gain": 0.0}, "generator.density_gain=0.0"),
        ({"density_noise": -1.0}, "generator.density_noise=-1.0"),
        ({"camera_dropout": 1.0}, "generator.camera_dropout=1.0"),
        ({"plane_resolution": 48}, "not of 48"),
    ],
)
def test_what_cannot_be_built_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(64, **config)


def test_wrong_inputs_are_refused() -> None:
    G = generator()
    with pytest.raises(ValueError, match=r"z must have shape \[B, 512\]"):
        G.mapping(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"ws must have shape \[B, 8, 64\]"):
        G.synthesis(torch.zeros(2, 64))
    assert set(published_names(G.state_dict()).values()) >= {
        "mapping.fc0.weight",
        "synthesis.tri_plane_mlp.model.0.bias",
    }
