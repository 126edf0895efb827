"""Cameras, colours that follow them, and a background that comes later."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gaussian import Cameras, Gaussians, render
from tests.training.families.gsgan.small import FFHQ, awaken, generator_config
from training.families.base import CheckpointInfo, StepContext
from training.families.gsgan.config import PUBLISHED_CONVENTIONS, GeneratorConfig
from training.families.gsgan.generator import Generator, seen_by
from training.families.gsgan.presets import PRESETS
from training.families.gsgan.scene import ViewedGaussians
from training.families.inspection import LEVEL_COLORS, Inspection, inspect_hierarchy


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    found = awaken(Generator(generator_config())).eval().requires_grad_(False)
    assert isinstance(found, Generator)
    return found


@pytest.fixture(scope="module")
def scene(G: Generator) -> ViewedGaussians:
    return G.synthesis(G.mapping(torch.randn(2, 16), FFHQ.orbit(torch.tensor([0.3, -0.4]))))


def test_mapping_follows_the_camera_and_wants_one(G: Generator) -> None:
    z = torch.randn(1, 16).expand(3, -1)
    ws = G.mapping(z, FFHQ.orbit(torch.tensor([0.0, 0.5, 0.5])))
    assert torch.equal(ws[1], ws[2]) and not torch.allclose(ws[0], ws[1]) and ws.shape == (3, 9, 24)
    with pytest.raises(ValueError, match="follows a camera"):
        G.mapping(z)
    blind = Generator(generator_config(pose_conditioned=False))
    assert torch.equal(blind.mapping(z), blind.mapping(z, FFHQ.orbit(torch.rand(3))))
    with pytest.raises(ValueError, match=r"ws must have shape \[B, 9, 24\]"):
        G.synthesis(ws[:, :3])


def test_each_part_follows_its_own_ws(G: Generator) -> None:
    """w 0 to 3 the transformer's blocks, 4 to 7 two modulated levels, 8 the background."""
    ws = torch.randn(1, 9, 24)
    before = G.synthesis(ws)
    for i in range(9):
        after = G.synthesis(ws.index_add(1, torch.tensor([i]), torch.ones(1, 1, 24)))
        changed = [
            not torch.equal(a, b)
            for a, b in zip(before.sh.split(before.level_sizes, 1), after.sh.split(before.level_sizes, 1), strict=True)
        ]
        first = 0 if i < 4 else 1 if i < 6 else 2
        expected = [i < 8 and level >= first for level in range(4)] + [i == 8] * 2
        assert changed == expected, i


def test_no_background_in_the_first_images(G: Generator) -> None:
    ws = torch.randn(1, 9, 24)
    whole, early, late = G.synthesis(ws), G.synthesis(ws, StepContext(23)), G.synthesis(ws, StepContext(24))
    assert whole.level_sizes == late.level_sizes == (12, 48, 192, 768, 10, 40)
    assert early.level_sizes == (12, 48, 192, 768) and torch.equal(early.means, late.means[:, :1020])
    sphere = whole.means[:, 1020:]
    torch.testing.assert_close(sphere.norm(dim=-1), torch.full((1, 50), 3.0))
    assert GeneratorConfig.published(512).background_nimg == 50_000


def test_colours_follow_each_view(G: Generator, scene: ViewedGaussians) -> None:
    """[B, V, N, C] in one call equals one frozen scene per view."""
    cameras = FFHQ.orbit(torch.tensor([[0.0, 0.7, -0.5], [0.2, 0.1, 0.4]]))
    together = G.render(scene, cameras)
    looking = cameras.cam2world[..., :3, 2]
    assert scene.viewed_colors(looking).shape == (2, 3, 1070, 3)
    for v in range(3):
        sh = scene.viewed_sh(looking[:, v, None])[:, 0, :, None]
        frozen = dataclasses.replace(scene.as_gaussians(), sh=sh)
        alone = render(frozen, cameras[:, v, None], 32)
        torch.testing.assert_close(together.rgb[:, v], alone.rgb[:, 0], rtol=0, atol=1e-5)
    assert (scene.viewed_sh(looking[:, :1]) - scene.viewed_sh(looking[:, 1:2])).abs().max() > 0.01
    front = scene.as_gaussians()
    assert torch.equal(front.sh, scene.as_gaussians(torch.tensor([[0.0, 0.0, 2.7]]).expand(2, 3)).sh)
    assert torch.equal(front.sh[:, 1020:], scene.sh[:, 1020:])  # the background's stay


def test_scenes_do_not_depend_on_their_neighbours(G: Generator) -> None:
    ws = torch.randn(5, 9, 24)
    together = G.synthesis(ws)
    for b in range(5):
        alone = G.synthesis(ws[b : b + 1])
        torch.testing.assert_close(alone.means[0], together.means[b], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.sh[0], together.sh[b], rtol=0, atol=1e-4)


def test_a_turned_world_looks_the_same_to_turned_cameras(G: Generator, scene: ViewedGaussians) -> None:
    angle = torch.tensor(0.6)
    rotation = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    cameras = FFHQ.orbit(torch.tensor([[0.3], [-0.2]]))
    pose = cameras.cam2world.clone()
    pose[..., :3, :] = rotation @ pose[..., :3, :]
    turned = G.render(scene.transformed(rotation), Cameras(pose, cameras.intrinsics))
    torch.testing.assert_close(turned.rgb, G.render(scene, cameras).rgb, rtol=0, atol=2e-4)


def test_parts_of_a_scene_keep_their_colours(G: Generator, scene: ViewedGaussians) -> None:
    looking = F.normalize(torch.tensor([[[0.3, 0.1, -1.0]]]), dim=-1).expand(2, 1, 3)
    whole = scene.viewed_sh(looking)
    assert torch.equal(scene.select(2).viewed_sh(looking), whole[:, :, 60:252])
    rows = torch.tensor([3, 20, 100, 1019, 1069])
    assert torch.equal(scene.select(rows).viewed_sh(looking), whole[:, :, rows])
    with pytest.raises(ValueError, match="level by level"):
        scene.select(rows.flip(0))
    shown = inspect_hierarchy(G, Inspection(levels=(1,), point=(3,), nearest=1))(scene)
    assert shown.num_splats == 8 and isinstance(shown, ViewedGaussians)
    assert inspect_hierarchy(G, Inspection(anchors=True))(scene).num_splats == 252


def test_looks_leave_the_background_alone(G: Generator, scene: ViewedGaussians) -> None:
    shown = inspect_hierarchy(G, Inspection(opaque=True, scale=2.0, color_levels=True))(scene)
    behind, as_it_was = shown.select(slice(1020, None)), scene.as_gaussians().select(slice(1020, None))
    for name in ("means", "log_scales", "opacity_logits", "sh"):
        assert torch.equal(getattr(behind, name), getattr(as_it_was, name)), name
    torch.testing.assert_close(shown.scales()[:, :1020], 2 * scene.scales()[:, :1020])
    assert (shown.opacities()[:, :1020] == 1).all()


def test_colours_of_levels_do_not_change_with_the_view(G: Generator, scene: ViewedGaussians) -> None:
    """They replace what the direction adds, too."""
    shown = inspect_hierarchy(G, Inspection(color_levels=True))(scene)
    for level in range(4):
        seen = shown.select(level).colors(torch.tensor([[[0.0, 0.0, 2.7], [2.0, 1.0, 1.0]]]).expand(2, 2, 3))
        torch.testing.assert_close(seen, seen.new_tensor(LEVEL_COLORS[level]).expand_as(seen), rtol=0, atol=1e-6)


def test_without_the_background(G: Generator, scene: ViewedGaussians) -> None:
    shown = inspect_hierarchy(G, Inspection(disable_background=True))(scene)
    assert shown.level_sizes == (12, 48, 192, 768)
    cameras = FFHQ.orbit(torch.tensor([[0.4], [0.0]]))
    alone = G.synthesis(torch.randn(2, 9, 24), StepContext(0))
    assert alone.foreground().num_splats == alone.num_splats == shown.num_splats
    looking = cameras.cam2world[..., :3, 2]
    assert torch.equal(shown.viewed_colors(looking), scene.viewed_colors(looking)[:, :, :1020])
    bare = Generator(generator_config(background_points=0))
    with pytest.raises(ValueError, match="--disable-background: the scenes of this network have no background"):
        inspect_hierarchy(bare, Inspection(disable_background=True))


def test_colours_as_one_camera_sees_them(G: Generator, scene: ViewedGaussians, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(G, "info", CheckpointInfo({}, FFHQ, (-0.5, 0.5), "black"))
    shown = inspect_hierarchy(G, Inspection(colors_from=(30.0, 10.0)))(scene)
    place = FFHQ.orbit(math.radians(30), math.radians(10)).positions
    expected = scene.colors(place.expand(2, 1, 3))[:, 0]
    torch.testing.assert_close(shown.colors(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(shown.colors(torch.randn(2, 1, 3))[:, 0], expected, rtol=0, atol=1e-5)
    assert (scene.colors(torch.tensor([[[0.0, 0.0, 2.7]]]).expand(2, 1, 3))[:, 0] - expected).abs().max() > 0.01


def test_statistics_are_of_the_foreground(scene: ViewedGaussians) -> None:
    found = scene.statistics(FFHQ.orbit(torch.zeros(2, 1)), 64)
    assert "Gaussians/level3/opacity" in found and "Gaussians/level4/opacity" not in found
    assert found["Gaussians/visible"].shape == (2, 1020)


def test_conventions_are_off_for_new_training_and_move_the_picture() -> None:
    for name, preset in PRESETS.items():
        assert isinstance(preset.generator, GeneratorConfig)
        conventions = preset.generator.conventions
        assert conventions.tan_half_fov is None, name
        assert not conventions.flip_view_x and not conventions.half_rounding, name
    origin = FFHQ.orbit(torch.tensor([0.4]))
    # Only a camera that does not look at the origin sees the wrong sign: this one looks at the pivot in front of it.
    seen = seen_by(origin, dataclasses.replace(PUBLISHED_CONVENTIONS, tan_half_fov=None))
    local = torch.tensor([[-1.0, 1.0, 1.0]]) * origin.world2cam[:, :3, 3]
    torch.testing.assert_close(seen.world2cam[:, :3, 3], local)
    assert local[0, 0].abs() > 0.05
    assert seen_by(origin, PUBLISHED_CONVENTIONS).intrinsics[0, 0, 0].item() == pytest.approx(0.5 / 0.1993960, rel=1e-6)


def test_half_rounding_keeps_the_gradient_and_16_bits() -> None:
    torch.manual_seed(0)
    plain = Generator(generator_config())
    rounding = Generator(generator_config(conventions=dataclasses.replace(PUBLISHED_CONVENTIONS)))
    rounding.load_state_dict(awaken(plain).state_dict())
    ws = torch.randn(1, 9, 24, requires_grad=True)
    exact, rounded = plain.synthesis(ws).sh, rounding.synthesis(ws).sh
    assert 0 < (exact - rounded).abs().max() < 0.05
    (gradient,) = torch.autograd.grad(rounded.square().sum(), ws)
    (expected,) = torch.autograd.grad(exact.square().sum(), ws)
    assert (gradient - expected).norm() < 0.05 * expected.norm()


def test_the_low_type_computes_nearly_the_same() -> None:
    torch.manual_seed(0)
    G = awaken(Generator(generator_config()))
    assert isinstance(G, Generator)
    ws = torch.randn(2, 9, 24)
    exact = G.synthesis(ws)
    G.low_dtype = torch.bfloat16
    low = G.synthesis(ws)
    assert low.means.dtype == low.sh.dtype == torch.float32
    assert 0 < (low.means - exact.means).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (32,)}, "two or more even numbers"),
        ({"widths": (31, 8)}, "two or more even numbers"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"neighbours": 12}, "fewer than num_points"),
        ({"background_points": -1}, "0 or more"),
        ({"blocks": 0}, "1 or more"),
        ({"point_encoding": "none"}, "legal are"),
        ({"color_rule": "none"}, "legal are"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator_config(**change)


def test_the_record_is_written_read_and_changed_by_dotted_names() -> None:
    config = GeneratorConfig.published(512, PUBLISHED_CONVENTIONS)
    assert GeneratorConfig.from_dict(config.to_dict()) == config and config.num_ws == 17
    assert sum(config.level_sizes) + sum(config.background_sizes) == 359_440
    assert "conventions.flip_view_x" in GeneratorConfig.field_types()
    changed = config.changed(**{"conventions.tan_half_fov": None, "map_depth": 3})
    assert changed.conventions.tan_half_fov is None and changed.conventions.flip_view_x and changed.map_depth == 3
    with pytest.raises(ValueError, match="tan_half_fov"):
        config.changed(**{"conventions.tan_half_fov": -1.0})
    assert isinstance(Generator(generator_config()).synthesis(torch.randn(1, 9, 24)), Gaussians)
