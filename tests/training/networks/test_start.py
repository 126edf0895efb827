"""Tests what hierarchies look like before they have learnt anything."""

import dataclasses

import pytest
import torch

from training.families.cgs.family import FAMILY as CGS
from training.families.gsgan.family import FAMILY as GSGAN
from training.networks.start import STARTS, initial_points

RADIUS = 0.2  # world units
SURFACE = {"micro", "tiny", "small", "cgs-control-tiny", "gsgan-tiny"}
FAMILIES = pytest.mark.parametrize("family", (CGS, GSGAN), ids=lambda family: family.name)


def made(family, start):
    torch.manual_seed(0)
    config = family.presets["tiny" if family is CGS else "gsgan-tiny"].generator
    return family.generator(dataclasses.replace(config, start=start)).eval().requires_grad_(False)


def drawn(G, batch=3):
    """Draws ws [batch, num_ws, w_dim]."""
    return torch.randn(batch, G.num_ws, G.w_dim)


@FAMILIES
def test_small_members_start_from_a_surface_and_published_ones_as_published(family):
    for name, preset in family.presets.items():
        assert preset.generator.start == ("surface" if name in SURFACE else "published")


def test_initial_points_are_spread_evenly_over_a_sphere():
    points = torch.tanh(initial_points("surface", 64, 0.3))
    torch.testing.assert_close(points.norm(dim=-1), torch.full((64,), 0.6))
    assert points.mean(dim=0).norm() < 0.01
    nearest = (torch.cdist(points, points) + 9 * torch.eye(64)).amin(dim=1)
    ideal = 0.6 * (8 * torch.pi / (3**0.5 * 64)) ** 0.5  # spacing of a hexagonal lattice of as many points
    assert nearest.min() > 0.75 * ideal and nearest.max() < ideal


@FAMILIES
def test_a_surface_is_closed_grey_and_half_opaque_at_first(family):
    G = made(family, "surface")
    scene = G.synthesis(drawn(G))
    coarse = scene.anchors.means[:, : G.config.num_points]
    assert (coarse.norm(dim=-1).mean() - RADIUS).abs() < 0.04
    origins = STARTS["surface"].reach * G.initial_points
    displaced = (coarse - origins).square().mean().sqrt()
    assert 0.02 < displaced < 0.08  # each point keeps its place
    opacities = torch.sigmoid(scene.opacity_logits)
    assert (opacities.mean() - 0.5).abs() < 0.05 and opacities.std() < 0.1
    assert scene.sh.std() < 0.4


@FAMILIES
def test_as_published_a_start_is_a_fog_of_confetti(family):
    G = made(family, "published")
    scene = G.synthesis(drawn(G))
    opacities = torch.sigmoid(scene.opacity_logits)
    assert opacities.median() < 0.15
    assert scene.sh.std() > 1


@FAMILIES
def test_scenes_that_differ_lie_around_the_same_points_in_a_batch_as_alone(family):
    G = made(family, "surface")
    for layer in G.point_gen.modulation_layers() if family is GSGAN else G.point_gen.transformer.modulation_layers():
        layer.weight.add_(0.2 * torch.randn_like(layer.weight))
    ws = drawn(G, 4)
    coarse = G.synthesis(ws).anchors.means[:, : G.config.num_points]
    torch.testing.assert_close(G.synthesis(ws[2:3]).anchors.means[0, : G.config.num_points], coarse[2])
    assert (coarse[0] - coarse[1]).norm(dim=-1).mean() > 0.01
    nearest = torch.cdist(coarse, STARTS["surface"].reach * G.initial_points).argmin(dim=2)
    assert (nearest == torch.arange(G.config.num_points)).float().mean() > 0.15  # at random: 1 / 64


@FAMILIES
def test_where_points_are_can_be_learnt(family):
    G = made(family, "surface").requires_grad_(True)
    G.synthesis(drawn(G, 2)).anchors.means.square().sum().backward()
    assert G._xyz.grad.abs().min(dim=0).values.max() > 0


@FAMILIES
def test_a_start_that_does_not_exist_is_refused(family):
    with pytest.raises(ValueError, match="start='cube'; legal are published, surface"):
        made(family, "cube")
