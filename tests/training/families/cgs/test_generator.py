"""The generator: structure, purity, gradients, truncation, and the hierarchy against a plain twin."""

import json
import math

import pytest
import torch
from torch import Tensor

from gaussian import Cameras, Gaussians
from training.checkpoint import load_generator
from training.families.cgs import hierarchy
from training.families.cgs.generator import Generator, GeneratorConfig
from training.families.cgs.hierarchy import Attributes

TINY = GeneratorConfig(
    resolution=32,
    z_dim=24,
    w_dim=16,
    num_points=12,
    ratios=(1, 4, 2),
    widths=(32, 16, 8),
    first_blocks=2,
    num_heads=4,
    point_encoding="fourier+code",
    coarse_log_scale=-2.5,
    camera_embedding=False,
    published_keys=False,
)
# The same size with everything the published members have.
TINY_PUBLISHED = GeneratorConfig(
    **{
        **TINY.to_dict(),
        "ratios": TINY.ratios,
        "widths": TINY.widths,
        "point_encoding": "fourier+table",
        "camera_embedding": True,
        "published_keys": True,
    }
)


def awake(config: GeneratorConfig = TINY, dtype: torch.dtype = torch.float32) -> Generator:
    """A generator whose layer scales are not 0, so that the latent matters."""
    torch.manual_seed(0)
    G = Generator(config).to(dtype)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if ".ls_" in name or name.endswith("embed.bias"):
                parameter.copy_(torch.randn_like(parameter))
    return G


def latents(batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, TINY.z_dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


def fields(scene: Gaussians) -> list[Tensor]:
    return [scene.means, scene.log_scales, scene.quats, scene.opacity_logits, scene.sh]


def cameras(batch: int, views: int) -> Cameras:
    label = torch.tensor([1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.3, 0, 0.5, 0, 4.3, 0.5, 0, 0, 1])
    return Cameras.from_labels(label.expand(batch, views, 25))


@pytest.mark.parametrize(
    ("resolution", "keys", "parameters", "splats", "anchors"),
    [
        (256, 335, 54_774_508, 109_056, 43_520),
        (512, 379, 61_610_712, 240_128, 109_056),
        (1024, 423, 70_548_164, 502_272, 240_128),
        (2048, 467, 79_481_288, 1_026_560, 502_272),
    ],
)
def test_published_members_have_the_published_sizes(resolution, keys, parameters, splats, anchors):
    config = GeneratorConfig.published(resolution)
    with torch.device("meta"):
        G = Generator(config)
        scene = G.synthesis(torch.empty(1, 1, 512))
    assert len(G.state_dict()) == keys
    assert sum(p.numel() for p in G.parameters()) == parameters
    assert (
        (scene.num_splats, scene.anchors.num_splats)
        == (splats, anchors)
        == (
            sum(config.level_sizes),
            sum(config.level_sizes[:-1]),
        )
    )
    rule = config.scale_rule
    ratios = {256: 1.834008, 512: 1.866066, 1024: 1.887749, 2048: 1.903390}
    assert math.exp(rule.split) == pytest.approx(ratios[resolution], abs=1e-6)
    assert rule.largest == pytest.approx(-3.8123095) and rule.smallest == pytest.approx(math.log(0.5 / resolution))


def test_config_round_trip_is_strict():
    values = json.loads(json.dumps(TINY.to_dict()))
    assert GeneratorConfig.from_dict(values) == TINY
    with pytest.raises(ValueError, match="does not know colour"):
        GeneratorConfig.from_dict(values | {"colour": 1})
    with pytest.raises(ValueError, match="lacks resolution"):
        GeneratorConfig.from_dict({k: v for k, v in values.items() if k != "resolution"})
    for bad in ({"ratios": (1, 4)}, {"num_heads": 5}, {"point_encoding": "none"}, {"ratios": (2, 4, 2)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GeneratorConfig(**{**TINY.to_dict(), "widths": TINY.widths, "ratios": TINY.ratios, **bad})
    with pytest.raises(ValueError, match="256, 512, 1024, 2048"):
        GeneratorConfig.published(64)


@pytest.mark.parametrize("config", [TINY, TINY_PUBLISHED], ids=["small", "published"])
def test_scene_has_the_levels_of_the_config(config):
    scene = awake(config).synthesis(torch.randn(3, 1, config.w_dim))
    assert scene.level_sizes == config.level_sizes == (12, 48, 96)
    assert scene.anchors.level_sizes == (12, 48)
    assert scene.means.shape == (3, 156, 3) and scene.sh.shape == (3, 156, 1, 3)
    assert scene.means.abs().max() <= 0.5
    assert scene.detach().anchors.means.requires_grad is False


def test_forward_is_pure():
    G = awake().train()
    G.rasterizer = "torch"
    z, views = latents(), cameras(3, 2)
    before = [t.clone() for t in (z, views.labels, *G.state_dict().values())]
    with torch.no_grad():
        first, second = G(z, views), G(z, views)
    assert torch.equal(first.rgb, second.rgb) and first.rgb.shape == (3, 2, 3, 32, 32)
    assert first.rgb.std() > 0.01
    for old, new in zip(before, (z, views.labels, *G.state_dict().values()), strict=True):
        assert torch.equal(old, new)


def test_a_scene_does_not_depend_on_its_batch():
    G, z = awake(dtype=torch.float64), latents(4, torch.float64)
    whole, part = G.synthesis(G.mapping(z)), G.synthesis(G.mapping(z[1:2]))
    for a, b in zip(fields(whole.scene(1)), fields(part), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)  # worst seen 1.5e-14


@pytest.mark.parametrize("config", [TINY, TINY_PUBLISHED], ids=["small", "published"])
def test_every_parameter_that_should_learn_receives_a_gradient(config):
    G = awake(config)
    scene = G.synthesis(G.mapping(latents()))
    sum((field * torch.randn_like(field)).sum() for field in fields(scene)).backward()
    exceptions = set()
    if config.published_keys:
        # Heads of the last level's anchors, which do not exist; and a layer whose input is always 0.
        exceptions = {n for n, _ in G.named_parameters() if n.startswith("point_gen.anchors.") and ".2." in n}
        exceptions.add("mapping_network.embed.weight")
        assert len(exceptions) == 11
    without = {n for n, p in G.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert without == exceptions
    assert all(p.grad is None or p.grad.isfinite().all() for p in G.parameters())


def test_at_first_all_latents_give_one_scene():
    """Layer scales start at exactly 0, as published."""
    torch.manual_seed(0)
    G = Generator(TINY)
    scene = G.synthesis(G.mapping(latents()))
    assert torch.equal(scene.means[0], scene.means[1])
    assert not torch.equal(awake().synthesis(G.mapping(latents())).means[0], scene.means[1])


def test_truncation_ends_in_w_avg_and_in_w():
    G, z = awake(), latents()
    G.update_average(torch.randn(1, G.w_dim), batch=4000)
    w = G.mapping(z)
    assert torch.equal(G.mapping(z, psi=0.0), G.w_avg.expand(3, 1, -1))
    assert torch.equal(G.mapping(z, psi=1.0), w)
    torch.testing.assert_close(G.mapping(z, psi=0.3), G.w_avg + 0.3 * (w - G.w_avg))
    assert torch.equal(G.mapping(z, cameras(3, 1)), w)
    assert torch.equal(G.mapping(z.double()), w)


def test_w_avg_decays_by_the_images_seen():
    G = awake()
    mean = torch.randn(G.w_dim)
    G.update_average(mean[None], batch=8)
    torch.testing.assert_close(G.w_avg, 0.002 * mean)
    G.update_average(mean[None], batch=8)
    torch.testing.assert_close(G.w_avg, (1 - 0.998**2) * mean)
    H = awake()
    H.update_average(mean[None], batch=16)
    torch.testing.assert_close(H.w_avg, G.w_avg)


def test_a_scene_says_how_large_it_is():
    G = awake()
    assert (G.scene_numbers, G.scene_size(), G.makes_splats) == (156, "156 splats", True)
    with pytest.raises(ValueError, match="no geometry"):
        _ = G.geometry


@pytest.mark.parametrize("shape", [(3, TINY.w_dim), (3, 2, TINY.w_dim), (3, 1, TINY.z_dim)])
def test_synthesis_refuses_what_is_not_a_ws(shape):
    with pytest.raises(ValueError, match=r"ws must have shape \[B, 1, 16\]"):
        awake().synthesis(torch.randn(shape))
    with pytest.raises(ValueError, match=r"z must have shape \[B, 24\]"):
        awake().mapping(torch.randn(3, 1, 24))


def test_without_layers_a_w_is_the_latent_at_unit_mean_square():
    G, z = awake(TINY.changed(w_dim=TINY.z_dim, map_depth=0)), latents()
    torch.testing.assert_close(G.mapping(z)[:, 0], z / z.square().mean(1, keepdim=True).sqrt())
    scene = G.synthesis(G.mapping(z))
    assert not torch.equal(scene.means[0], scene.means[1])
    with pytest.raises(ValueError, match="map_depth=0: a w is the latent, so w_dim=16 must be z_dim=24"):
        TINY.changed(map_depth=0)
    with pytest.raises(ValueError, match=r"map_depth=-1 must be 0 or more"):
        TINY.changed(map_depth=-1)


def test_bfloat16_is_close_to_float32():
    G, z = awake(), latents()
    exact = fields(G.synthesis(G.mapping(z)))
    G.low_dtype = torch.bfloat16
    for low, value in zip(fields(G.synthesis(G.mapping(z))), exact, strict=True):
        assert low.dtype == torch.float32
        assert (low - value).norm() < 0.05 * value.norm()  # worst seen 0.019 (layer scales of 1)
        assert not torch.equal(low, value)


def test_the_table_encoding_equals_bilinear_sampling():
    """Spec of the published layer: a grid sample whose two axes are swapped."""
    G = awake(TINY_PUBLISHED)
    points = torch.tanh(G._xyz)
    table = G.point_gen.conv_in.const_pe.const_pe
    grid = torch.stack([torch.zeros_like(points.T), points.T], dim=-1)[:, :, None]  # [3, P, 1, 2]
    sampled = torch.nn.functional.grid_sample(table, grid, align_corners=False)[..., 0].sum(dim=0).T / math.sqrt(3)
    torch.testing.assert_close(G.point_gen.conv_in.const_pe(points), sampled, rtol=0, atol=1e-6)  # worst seen 2e-7


def children_reference(raw: Tensor, parent: Tensor, rule: hierarchy.ScaleRule) -> Tensor:
    """One child, number by number: raw and parent are 14 values."""
    w, x, y, z = (parent[6:10] / (parent[6:10].norm() + 1e-3)).tolist()
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=raw.dtype,
    )
    xyz = rotation @ (parent[3:6].exp() * raw[:3].tanh()) + parent[:3]
    bound = (parent[3:6] - rule.split).clamp(-100, 0)
    if parent[3:6].exp().max() <= math.exp(rule.smallest):
        bound = parent[3:6]
    scale = 20 * torch.tanh((bound - torch.log1p(torch.exp(-raw[3:6]))) / 20)
    return torch.cat([xyz, scale, 20 * torch.tanh((parent[6:] + raw[6:]) / 20)])


def test_children_match_the_formula_one_by_one():
    torch.manual_seed(0)
    rule = hierarchy.ScaleRule(coarse=-3.0, largest=-2.0, smallest=-4.0, split=0.7)
    parents = torch.randn(2, 14, 5, dtype=torch.float64)
    parents[:, 3:6] -= 4  # around the smallest scale
    raw = torch.randn(8, 14, 5, dtype=torch.float64)  # four children each

    def split(x: Tensor) -> Attributes:
        return Attributes(*x.split(hierarchy.ATTRIBUTE_ROWS, dim=1))

    result = torch.cat(hierarchy.children(split(raw), hierarchy.frame_of(split(parents), rule)), dim=1)
    smallest = 0
    for child in range(8):
        for point in range(5):
            parent = parents[child // 4, :, point]
            smallest += int(parent[3:6].max() <= rule.smallest)
            expected = children_reference(raw[child, :, point], parent, rule)
            torch.testing.assert_close(result[child, :, point], expected, rtol=0, atol=1e-13)  # worst seen 4e-16
    assert 0 < smallest < 40  # both branches were seen


def test_coarse_anchors_match_the_formula():
    torch.manual_seed(0)
    rule = hierarchy.ScaleRule(coarse=-5.0, largest=-3.8, smallest=-6.0, split=0.7)
    raw = Attributes(*torch.randn(1, 14, 7, dtype=torch.float64).split(hierarchy.ATTRIBUTE_ROWS, dim=1))
    anchors = hierarchy.coarse_anchors(raw, rule)
    bounded = rule.largest - torch.log1p(torch.exp(rule.largest - (raw.log_scales - 5)))
    torch.testing.assert_close(anchors.log_scales, 20 * torch.tanh(bounded / 20))
    torch.testing.assert_close(anchors.xyz, 0.2 * raw.xyz)
    assert (anchors.log_scales < rule.largest).all()
    start = torch.tensor([1, 0, 0, 0, 0, 0, 0, math.log(1 / 9)]).double()[:, None]
    torch.testing.assert_close(anchors.appearance, 20 * torch.tanh((raw.appearance + start) / 20))


def test_rotations_by_threes_match_the_twin():
    quats = torch.randn(2, 4, 6, dtype=torch.float64)
    quats[0, :, 0] = 0
    quats.requires_grad_()
    results = []
    for make in (hierarchy.rotation_matrices_by_threes, hierarchy.rotation_matrices_reference):
        rotations = make(quats)
        results.append((rotations, *torch.autograd.grad(rotations.cos().sum(), quats)))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-14)


def test_squash_matches_its_twin():
    x = torch.linspace(-60, 60, 41, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(hierarchy.squash(x), hierarchy.squash_reference(x))
    assert torch.autograd.gradcheck(hierarchy.squash, x)


def test_degenerate_anchors_give_finite_gradients():
    """A zero quaternion, and features that are equal in all points."""
    quats = torch.zeros(1, 4, 1, requires_grad=True)
    hierarchy.rotation_matrices(quats).sum().backward()
    assert quats.grad.isfinite().all()
    G = awake()
    x = torch.ones(2, 5, TINY.widths[0], requires_grad=True)
    norm = G.point_gen.transformer.first_layers[0].ln_1
    norm(x, torch.ones(2, 1, 32), torch.ones(2, 1, 32)).square().sum().backward()
    assert x.grad.isfinite().all()


def test_depth_is_for_those_who_look():
    """No loss reads it, and gsplat is spared a channel in training."""
    G = awake()
    scene, views = G.synthesis(G.mapping(latents(1))).detach(), cameras(1, 1)
    assert G.train().render(scene, views, 8).depth.shape == (1, 1, 0, 8, 8)
    assert G.eval().render(scene, views, 8).depth.shape == (1, 1, 1, 8, 8)


def test_truncation_and_seed_of_a_picture(checkpoint_path):
    """psi 0 gives one picture whatever the latent, psi 1 is no truncation, and a latent gives its picture again."""
    G = load_generator(checkpoint_path)
    G.rasterizer = "torch"
    cameras = G.geometry.orbit(torch.zeros(3, 1))
    z = torch.randn(3, G.z_dim, generator=torch.Generator().manual_seed(0))

    def picture(**options):
        return G.render(G.synthesis(G.mapping(z, **options)), cameras).image[:, 0]

    free, mean = picture(), picture(psi=0.0)
    assert (free[0] - free[1]).abs().max() > 0.01
    torch.testing.assert_close(mean, mean[:1].expand_as(mean), rtol=0, atol=1e-6)  # worst seen 0
    assert torch.equal(picture(psi=1.0), free) and torch.equal(picture(), free)
