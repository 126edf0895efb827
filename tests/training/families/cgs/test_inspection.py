"""Looking into the hierarchy: which splats stay, and what becomes of them."""

import pytest
import torch

from gaussian.ply import MAX_LOGIT
from training.checkpoint import load_generator
from training.families.inspection import LEVEL_COLORS, Inspection, _kept, inspect_hierarchy, nearest_points
from training.visualization.latents import seed_latents


@pytest.fixture(scope="module")
def G(checkpoint_path):
    return load_generator(checkpoint_path)


@pytest.fixture(scope="module")
def scene(G):
    return G.synthesis(G.mapping(seed_latents([0, 1], G.z_dim)))


def test_by_default_nothing_changes(G, scene):
    assert inspect_hierarchy(G, Inspection())(scene) is scene


def test_levels_in_their_order(G, scene):
    shown = inspect_hierarchy(G, Inspection(levels=(0, 2)))(scene)
    expected = torch.cat([scene.select(0).means, scene.select(2).means], dim=1)
    torch.testing.assert_close(shown.means, expected, rtol=0, atol=0)


def test_anchors_in_place_of_splats(G, scene):
    shown = inspect_hierarchy(G, Inspection(anchors=True, levels=(1,)))(scene)
    torch.testing.assert_close(shown.means, scene.anchors.select(1).means, rtol=0, atol=0)
    assert shown.num_splats == scene.level_sizes[1]


def test_descendants_are_what_moves_with_the_point(G, scene):
    """Change what one point says to the heads: its descendants change, and nothing else does."""
    point = 5
    features = []

    def shift(module, args):
        x, *rest = args
        x = x.unflatten(0, (2, -1)).clone()  # [B, P, C]
        x[:, point] += 1
        features.append(x.shape)
        return (x.flatten(0, 1), *rest)

    hooks = [layer.register_forward_pre_hook(shift) for layer in G.point_gen.upsample_layers]
    try:
        moved = G.synthesis(G.mapping(seed_latents([0, 1], G.z_dim)))
    finally:
        for hook in hooks:
            hook.remove()
    changed = (moved.log_scales != scene.log_scales).any(-1)[0]
    kept = torch.cat(_kept(scene.level_sizes, G, Inspection(point=(point,))))
    assert features[0][1] == G.config.num_points
    assert torch.equal(changed, kept)
    assert kept.sum() == sum(G.config.children_per_point)


def test_nearest_points_by_brute_force(G):
    found = nearest_points(G, 3, 4)
    positions = G.initial_points.tolist()
    distances = sorted(
        (sum((a - b) ** 2 for a, b in zip(p, positions[3], strict=True)), i) for i, p in enumerate(positions)
    )
    assert found.tolist() == [i for _, i in distances[:5]]
    assert found[0] == 3


def test_nearest_adds_their_descendants(G, scene):
    alone, more = (inspect_hierarchy(G, Inspection(point=(3,), nearest=k))(scene).num_splats for k in (0, 4))
    assert more == 5 * alone


def test_several_points_and_their_neighbours(G, scene):
    one, other, both = (
        inspect_hierarchy(G, Inspection(point=points, nearest=2))(scene).means[0].tolist()
        for points in ((3,), (9,), (9, 3))
    )
    assert {tuple(m) for m in both} == {tuple(m) for m in one} | {tuple(m) for m in other}


def test_what_stays_keeps_its_level(G, scene):
    shown = inspect_hierarchy(G, Inspection(levels=(1,), point=(3,)))(scene)
    sizes = scene.level_sizes
    assert shown.level_sizes == (0, sizes[1] // sizes[0], *(0 for _ in sizes[2:]))


def test_descendants_of_a_point_have_its_colour(G, scene):
    shown = inspect_hierarchy(G, Inspection(color_points=True))(scene)
    colors = [inspect_hierarchy(G, Inspection(point=(p,)))(shown).colors() for p in (2, 3)]
    for own in colors:
        torch.testing.assert_close(own, own[:1, :1].expand_as(own), rtol=0, atol=1e-6)
    assert (colors[0][0, 0] - colors[1][0, 0]).abs().max() > 0.2
    assert len(shown.select(0).colors()[0].unique(dim=0)) == G.config.num_points


def test_opacity_size_and_colour(G, scene):
    shown = inspect_hierarchy(G, Inspection(opaque=True, scale=0.5, color_levels=True))(scene)
    assert (shown.opacity_logits == MAX_LOGIT).all() and (shown.opacities() == 1).all()
    torch.testing.assert_close(shown.scales(), scene.scales() / 2)
    torch.testing.assert_close(shown.means, scene.means, rtol=0, atol=0)
    for level in range(len(scene.level_sizes)):
        colors = shown.select(level).colors()
        torch.testing.assert_close(colors, colors.new_tensor(LEVEL_COLORS[level]).expand_as(colors), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("inspection", "message"),
    [
        (Inspection(levels=(9,)), "level 9 does not exist; the splats have levels 0 to"),
        (Inspection(levels=(2,), anchors=True), "the anchors have levels 0 to 1"),
        (Inspection(point=(1, 10**6)), "the initial points are 0 to"),
        (Inspection(nearest=2), "needs a --point"),
        (Inspection(disable_background=True), "--disable-background: .* no background of their own"),
        (Inspection(colors_from=(0.0,)), "--colors-from: .* the same from everywhere"),
        (Inspection(point=(0,), nearest=10**6), "other initial points"),
    ],
)
def test_what_is_not_there_is_refused(G, inspection, message):
    with pytest.raises(ValueError, match=message):
        inspect_hierarchy(G, inspection)


def test_two_ways_to_colour_are_refused():
    with pytest.raises(ValueError, match="--color-levels and --color-points both say"):
        Inspection(color_levels=True, color_points=True)
