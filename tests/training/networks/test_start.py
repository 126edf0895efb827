"""Tests what a hierarchy looks like before it has learnt anything."""

import dataclasses

import pytest
import torch

from training.families.cgs.generator import Generator
from training.families.cgs.presets import PRESETS
from training.networks.start import STARTS, initial_points

SURFACE = PRESETS["tiny"].generator
RADIUS = 0.2  # world units


def scene_of(start, batch=3):
    torch.manual_seed(0)
    G = Generator(dataclasses.replace(SURFACE, start=start)).eval().requires_grad_(False)
    return G, G.synthesis(G.mapping(torch.randn(batch, G.z_dim)))


def test_small_members_start_from_a_surface_and_published_ones_as_published():
    for name, preset in PRESETS.items():
        assert preset.generator.start == ("published" if name.startswith("cgs") and "tiny" not in name else "surface")


def test_initial_points_are_spread_evenly_over_a_sphere():
    points = torch.tanh(initial_points("surface", 64))
    torch.testing.assert_close(points.norm(dim=-1), torch.full((64,), 0.6))
    assert points.mean(dim=0).norm() < 0.01
    nearest = (torch.cdist(points, points) + 9 * torch.eye(64)).amin(dim=1)
    ideal = 0.6 * (8 * torch.pi / (3**0.5 * 64)) ** 0.5  # spacing of a hexagonal lattice of as many points
    assert nearest.min() > 0.75 * ideal and nearest.max() < ideal


def test_a_surface_is_closed_grey_and_half_opaque_at_first():
    G, scene = scene_of("surface")
    coarse = scene.anchors.means[:, : G.config.num_points]
    assert (coarse.norm(dim=-1).mean() - RADIUS).abs() < 0.03
    origins = STARTS["surface"].reach * G.initial_points
    assert (coarse - origins).norm(dim=-1).mean() < 0.5 * RADIUS  # each point keeps its place
    opacities = torch.sigmoid(scene.opacity_logits)
    assert (opacities.mean() - 0.5).abs() < 0.05 and opacities.std() < 0.1
    assert scene.sh.std() < 0.3


def test_as_published_a_start_is_a_fog_of_confetti():
    _, scene = scene_of("published")
    opacities = torch.sigmoid(scene.opacity_logits)
    assert opacities.median() < 0.15 and opacities.std() > 0.1
    assert scene.sh.std() > 1


def test_a_point_keeps_its_place_in_every_scene_of_a_batch():
    """Scenes that differ lie around the same points, in a batch as alone."""
    G, _ = scene_of("surface")
    for layer in G.point_gen.transformer.modulation_layers():
        layer.weight.add_(0.2 * torch.randn_like(layer.weight))
    ws = G.mapping(torch.randn(4, G.z_dim))
    coarse = G.synthesis(ws).anchors.means[:, : G.config.num_points]
    torch.testing.assert_close(G.synthesis(ws[2:3]).anchors.means[0, : G.config.num_points], coarse[2])
    assert (coarse[0] - coarse[1]).norm(dim=-1).mean() > 0.01
    nearest = torch.cdist(coarse, STARTS["surface"].reach * G.initial_points).argmin(dim=2)
    assert (nearest == torch.arange(G.config.num_points)).float().mean() > 0.15  # at random: 1 / 64


def test_where_points_are_can_be_learnt():
    G, _ = scene_of("surface")
    G.requires_grad_(True)
    G.synthesis(G.mapping(torch.randn(2, G.z_dim))).anchors.means.square().sum().backward()
    assert G._xyz.grad.abs().min(dim=0).values.max() > 0


def test_a_start_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="start='cube'; legal are published, surface"):
        dataclasses.replace(SURFACE, start="cube")
