"""Tests what a viewer shows, without one."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.gaussian import splat_files
from tests.training.viewer.balls import make_studio, psnr
from tests.training.visualization import toys
from training.control.blocks import Blocks
from training.families.inspection import Inspection
from training.images import quantize
from training.viewer.networks import find_networks
from training.viewer.studio import HeadChoice, Shown, as_data_camera, viewing_camera
from training.visualization import directions, latents

SIZE = (40, 60)


@pytest.fixture
def studio(monkeypatch, geometry):
    return make_studio(monkeypatch, geometry)


def test_a_picture_is_the_generators_own(studio, geometry):
    camera = viewing_camera(np.array([0.0, 1.0, 0.0, 0.0]), np.array([0.1, 0.2, 2.7]), 0.3, 1.5)
    shown = Shown(background=(0.2, 0.4, 0.6))
    picture = studio.picture(HeadChoice("a", 5, psi=0.6), shown, camera, SIZE)
    G = studio.generator("a")
    scene = G.synthesis(latents.frontal_ws(G, latents.seed_latents([5], G.z_dim), 0.6))
    out = G.render(scene, camera.to(dtype=torch.float32).reshape(1, 1), SIZE, torch.tensor([0.2, 0.4, 0.6]))
    np.testing.assert_array_equal(picture, quantize(out.image)[0, 0].permute(1, 2, 0).numpy())
    assert picture.shape == (*SIZE, 3) and picture.std() > 5


def test_a_page_camera_is_ours(geometry):
    """OpenCV axes; the angle runs from top to bottom."""
    frontal = geometry.frontal()
    camera = viewing_camera(np.array([0.0, 1.0, 0.0, 0.0]), np.array([0, 0, 2.7]), 1.0, 2.0)
    torch.testing.assert_close(camera.cam2world[:3, 2], torch.tensor([0.0, 0.0, -1.0]).double())
    ends = torch.tensor([[0.0, 2.7 * math.tan(0.5), 0.0], [5.4 * math.tan(0.5), 0.0, 0.0]], dtype=torch.float64)
    places, _ = camera.project(ends)
    torch.testing.assert_close(places, torch.tensor([[0.5, 0.0], [1.0, 0.5]], dtype=torch.float64))  # top, right
    like = as_data_camera(camera, frontal)
    torch.testing.assert_close(like.intrinsics.float(), frontal.intrinsics.float())
    assert torch.equal(like.cam2world, camera.cam2world)


def test_heads_change_from_one_seed_to_the_other(studio):
    ends = [studio.ws(HeadChoice("a", seed)) for seed in (3, 8)]
    between = studio.ws(HeadChoice("a", 3, 8, mix=0.25))
    torch.testing.assert_close(between, torch.lerp(*ends, 0.25))
    assert torch.equal(studio.ws(HeadChoice("a", 3, 8, mix=1.0)), ends[1])


def test_heads_of_a_file_stand_in_for_seeds(studio, tmp_path):
    G = studio.generator("a")
    rows = torch.rand(2, G.num_ws, G.w_dim)
    studio.w_file = str(tmp_path / "w.npz")
    latents.save_ws(studio.w_file, rows)
    assert torch.equal(studio.ws(HeadChoice("a", 0, 1)), rows[:1])
    assert torch.equal(studio.ws(HeadChoice("a", 3, 0)), rows[1:])
    torch.testing.assert_close(studio.ws(HeadChoice("a", 0, 1, mix=0.5)), rows.mean(0, keepdim=True))
    latents.save_ws(studio.w_file, rows[..., 1:])
    with pytest.raises(ValueError, match="ws must have shape"):
        studio.ws(HeadChoice("a", 0, 1))


def test_a_block_of_the_latent_moves_alone(studio):
    G = studio.generator("a")
    G.blocks = Blocks({"shape": slice(0, 1), "colour": slice(1, 4)})
    z = latents.seed_latents([3, 8], G.z_dim)
    z[0, 1:] += 0.25 * (z[1, 1:] - z[0, 1:])
    ws = studio.ws(HeadChoice("a", 3, 8, mix=0.25, part="colour"))
    torch.testing.assert_close(ws, latents.frontal_ws(G, z[:1], 0.7))
    with pytest.raises(ValueError, match="no block 'hair'"):
        studio.ws(HeadChoice("a", part="hair"))


def test_a_mapping_is_told_the_camera_asked_for(studio, geometry):
    studio.ws(HeadChoice("a", told_yaw=30.0))
    (told,) = studio.generator("a").told
    torch.testing.assert_close(told.labels[0], geometry.orbit(math.radians(30)).labels)


def test_directions_are_the_principal_ones(studio):
    """A toy's w has 3 numbers, and so many directions."""
    assert studio.direction_names("a") == ("pca1", "pca2", "pca3")
    found = studio.directions("a")
    assert found.names == studio.direction_names("a")
    moved = studio.ws(HeadChoice("a", direction="pca2", amount=2.0)) - studio.ws(HeadChoice("a"))
    torch.testing.assert_close(moved[0, 0], 2 * found.deviations[1] * found.axes[1], rtol=1e-4, atol=1e-6)


def test_directions_of_a_file_take_their_place_for_the_network_that_they_are_of(monkeypatch, geometry):
    plain = make_studio(monkeypatch, geometry)
    G = plain.generator("b")
    G.scale.data.fill_(2.0)  # another network than a
    own = directions.Directions(
        directions.network_key(G), ("smile",), torch.eye(3)[:1], torch.tensor([0.5]), torch.ones(1)
    )
    studio = make_studio(monkeypatch, geometry, found=[own])
    studio.generator("b").scale.data.fill_(2.0)
    assert studio.direction_names("b") == ("smile",) and studio.direction_names("a")[0] == "pca1"
    moved = studio.ws(HeadChoice("b", direction="smile", amount=-2.0)) - studio.ws(HeadChoice("b"))
    torch.testing.assert_close(moved[0, 0], torch.tensor([-1.0, 0.0, 0.0]))


def test_a_head_is_made_once_and_a_network_read_once(studio, geometry):
    for yaw in (0.0, 0.1):
        studio.picture(HeadChoice("a", 1), Shown(), geometry.orbit(yaw), SIZE)
    assert studio.generator("a").batches == [1] and len(studio.read) == 1
    studio.networks["c"] = "unused.pkl"
    for name in "bcacb":
        studio.generator(name)
    assert len(studio.read) == 5  # two are kept, so only the second c is at hand


def test_networks_say_what_they_can_show(studio, monkeypatch, geometry):
    assert studio.supported("a") == {"opaque", "scale"}
    assert make_studio(monkeypatch, geometry, toys.FogGenerator).supported("a") == set()


def test_files_hold_what_is_shown(studio, geometry, tmp_path):
    """In the data's units; 50 dB for a .spz."""
    shown = Shown(inspection=Inspection(scale=1.5))
    G = studio.generator("a")
    scaled = dataclasses.replace(geometry, world_scale=2.0, origin=(1.0, 0.0, 0.0))
    G.info = dataclasses.replace(G.info, geometry=scaled)
    path = tmp_path / "head.spz"
    path.write_bytes(studio.file(HeadChoice("a", 2), shown, "spz"))
    found = splat_files.read(path).transformed(translation=(-0.5, 0.0, 0.0), scale=0.5)
    camera = geometry.orbit(0.4)
    again = quantize(G.render(found, camera.reshape(1, 1), SIZE).image)[0, 0].permute(1, 2, 0).numpy()
    assert psnr(again, studio.picture(HeadChoice("a", 2), shown, camera, SIZE)) > 40


def test_scenes_that_are_no_splats_have_no_files(monkeypatch, geometry):
    studio = make_studio(monkeypatch, geometry, toys.FogGenerator)
    with pytest.raises(ValueError, match="no splats"):
        studio.file(HeadChoice("a"), Shown(), "ply")


def test_networks_are_named_by_as_much_of_their_place_as_tells_them_apart(tmp_path):
    for run, snapshots in (("one", (0, 10)), ("two", (10,))):
        (tmp_path / run).mkdir()
        for kimg in snapshots:
            (tmp_path / run / f"network-snapshot-{kimg:06d}.pkl").touch()
    found = find_networks([str(tmp_path / "one"), str(tmp_path / "two")])
    assert list(found) == [
        "network-snapshot-000000.pkl", "one/network-snapshot-000010.pkl", "two/network-snapshot-000010.pkl"
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder without a network-snapshot"):
        find_networks([str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="no such file or folder"):
        find_networks([str(tmp_path / "none.pkl")])
