"""Tests the camera code of the discriminator: the features of a direction, and what they change."""

import dataclasses
import math

import pytest
import torch

from gaussian import Geometry
from training import presets
from training.families.gghead import discriminator as gghead
from training.families.gsgan import discriminator as gsgan
from training.networks.base import Conditioning
from training.networks.camera_code import LENGTH, code_dim, with_direction
from training.networks.discriminator import Discriminator, DiscriminatorConfig
from training.networks.layers import CAMERA_DIM, MappingNetwork

CONFIG = DiscriminatorConfig.sized(16, channel_base=128, channel_max=16, mapping_depth=2)


def labels_at(geometry: Geometry, *degrees: float) -> torch.Tensor:
    return geometry.orbit(torch.tensor(degrees).deg2rad()).labels


def test_the_code_is_the_label_and_sines_and_cosines_of_where_the_camera_looks(geometry):
    labels = labels_at(dataclasses.replace(geometry, pivot=geometry.centre), 0.0, 30.0, -90.0)
    code = with_direction(labels, 2)
    assert code.shape == (3, code_dim(2)) == (3, CAMERA_DIM + 12)
    torch.testing.assert_close(code[:, :CAMERA_DIM], labels, rtol=0, atol=0)
    for row, degrees in zip(code, (0.0, 30.0, -90.0), strict=True):
        yaw = math.radians(degrees)
        axis = torch.tensor([-math.sin(yaw), 0.0, -math.cos(yaw)])  # from the camera to the middle
        angles = torch.cat([math.pi / 2 * axis, math.pi * axis])
        torch.testing.assert_close(
            row[CAMERA_DIM:] / LENGTH, torch.cat([angles.sin(), angles.cos()]), rtol=0, atol=1e-6
        )
    assert with_direction(labels, 0) is labels


@pytest.mark.parametrize("degrees", [10.0, 30.0])
def test_directions_tell_cameras_apart_from_the_first_step(geometry, degrees):
    labels = labels_at(geometry, -degrees, degrees)
    similar = []
    for octaves in (0, 4):
        torch.manual_seed(0)
        code = with_direction(labels, octaves)
        mapped = MappingNetwork(0, code_dim(octaves), 128, 4)(camera=code)
        similar.append(torch.cosine_similarity(*mapped, dim=0).item())
    assert similar[1] < similar[0] - 0.1
    if degrees == 30:  # what camera_code.py states
        assert torch.cosine_similarity(*labels, dim=0).item() == pytest.approx(0.90, abs=0.01)


def test_a_discriminator_reads_the_code(geometry):
    """Its mapping has inputs for the features, and its logits are those of the mapping of the code."""
    torch.manual_seed(0)
    D = Discriminator(dataclasses.replace(CONFIG, direction_octaves=3))
    assert D.mapping.embed.weight.shape[1] == code_dim(3)
    x, labels = torch.randn(4, CONFIG.channels[-1], 4, 4), labels_at(geometry, -40.0, 0.0, 15.0, 200.0)
    scaled = D.scaled_layers(CONFIG.block_resolutions)
    expected = D.b4(x, D.mapping(camera=with_direction(labels, 3)), 1, scaled)
    torch.testing.assert_close(D.logits(x, labels, 1, scaled), expected, rtol=0, atol=0)


@pytest.mark.parametrize("octaves", [-1, 17])
def test_octaves_have_bounds(octaves):
    with pytest.raises(ValueError, match=rf"discriminator\.direction_octaves={octaves} must be 0 or more, at most 16"):
        dataclasses.replace(CONFIG, direction_octaves=octaves)


def test_directions_that_nothing_reads_are_refused():
    with pytest.raises(ValueError, match=r"direction_octaves=4: nothing reads the camera; must be 0"):
        dataclasses.replace(CONFIG, direction_octaves=4, mapping_depth=0, embedding_dim=1)
    with pytest.raises(ValueError, match=r"direction_octaves=4: nothing reads the camera; must be 0"):
        presets.resolve("gghead-tiny", data="").discriminator.changed(direction_octaves=4, pose_conditioning=False)


def test_gghead_reads_directions_too(geometry):
    torch.manual_seed(0)
    config = presets.resolve("gghead-tiny", data="").discriminator.changed(direction_octaves=2)
    D, labels = gghead.Discriminator(config), labels_at(geometry, 10.0)
    assert D.mapping.embed.weight.shape[1] == code_dim(2)
    images = torch.randn(1, config.image_channels, config.resolution, config.resolution)
    turned = labels_at(geometry, 40.0)
    logits = [D.outputs(images, Conditioning(some)).logits for some in (labels, turned)]
    assert not torch.equal(*logits)


def test_gsgan_s_embedding_of_cameras_reads_directions_too(geometry):
    torch.manual_seed(0)
    config = presets.resolve("gsgan-tiny", data="").discriminator.changed(direction_octaves=2)
    D, labels = gsgan.Discriminator(config), labels_at(geometry, 10.0, 40.0)
    expected = D.aux_branch_camera(with_direction(labels, 2))
    torch.testing.assert_close(D.embed_cameras(labels), expected, rtol=0, atol=0)
