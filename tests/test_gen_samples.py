"""Tests gen_samples.py: the grids, the exported splats, the ws, and the published flags."""

import dataclasses
import math

import numpy as np
import plyfile
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import gen_samples
from gaussian import load_ply, render
from gaussian.export import FORMATS
from gen_samples import SplatChoice, main
from tests.gaussian import splat_files
from tests.training.visualization import toys
from training.checkpoint import load_generator
from training.families import FAMILIES
from training.images import quantize

STEM = "network-snapshot-000000"


def run(checkpoint_path, outdir, *options):
    return CliRunner().invoke(main, [f"--network={checkpoint_path}", f"--outdir={outdir}", "--device=cpu", *options])


def latents(seeds, z_dim):
    return torch.from_numpy(np.stack([np.random.RandomState(s).randn(z_dim) for s in seeds])).float()


def test_grid_has_identities_in_rows_and_yaws_in_columns(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=5,2", "--yaws=-40,0,90", "--trunc=0.5")
    assert result.exit_code == 0, result.output
    picture = np.asarray(Image.open(tmp_path / f"{STEM}-samples.png"))
    G = load_generator(checkpoint_path)
    scene = G.synthesis(G.mapping(latents([5, 2], G.z_dim), psi=0.5))
    cameras = G.geometry.orbit(torch.tensor([-40.0, 0.0, 90.0]).deg2rad())
    images = quantize(G.render(scene, cameras.reshape(1, -1).expand(2, -1)).image)  # [2, 3, 3, 32, 32]
    expected = images.permute(0, 3, 1, 4, 2).reshape(2 * 32, 3 * 32, 3).numpy()
    np.testing.assert_array_equal(picture, expected)
    assert (picture[:32] != picture[32:]).any()


def test_every_identity_has_a_ply_that_an_independent_reader_opens(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=0-1", "--trunc=0.8", "--show=image,depth")
    assert result.exit_code == 0, result.output
    names = [f"{STEM}-samples.png", f"{STEM}-depth.png", f"{STEM}-seed0000.ply", f"{STEM}-seed0001.ply"]
    assert result.output.split() == [str(tmp_path / name) for name in names]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    G = load_generator(checkpoint_path)
    scene = G.synthesis(G.mapping(latents([0, 1], G.z_dim), psi=0.8))
    for row, name in enumerate(names[2:]):
        vertex = plyfile.PlyData.read(tmp_path / name)["vertex"]
        means = np.stack([vertex[axis] for axis in "xyz"], axis=1)
        np.testing.assert_array_equal(means, scene.means[row].numpy())
        camera = G.geometry.frontal().reshape(1, 1)
        ours, theirs = (G.render(s, camera).rgb for s in (scene.scene(row), load_ply(tmp_path / name)))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert (scene.means[0] != scene.means[1]).any()


def test_truncation_by_0_leaves_one_head(checkpoint_path, tmp_path):
    def spread(trunc):
        outdir = tmp_path / str(trunc)
        assert run(checkpoint_path, outdir, "--seeds=0-1", "--yaws=0", f"--trunc={trunc}").exit_code == 0
        picture = np.asarray(Image.open(outdir / f"{STEM}-samples.png")).astype(float)
        return np.abs(picture[:32] - picture[32:]).mean()

    assert spread(0) == 0 < spread(1)


def test_default_yaws_span_the_data(checkpoint_path, tmp_path):
    assert run(checkpoint_path, tmp_path / "a", "--seeds=0", "--resolution=16").exit_code == 0
    assert Image.open(tmp_path / "a" / f"{STEM}-samples.png").size == (7 * 16, 16)
    yaws = ",".join(str(y) for y in torch.linspace(-0.6, 0.5, 7).rad2deg().tolist())
    assert run(checkpoint_path, tmp_path / "b", "--seeds=0", "--resolution=16", f"--yaws={yaws}").exit_code == 0
    a, b = (np.asarray(Image.open(tmp_path / x / f"{STEM}-samples.png")).astype(int) for x in "ab")
    assert np.abs(a - b).max() <= 1


def test_export_is_in_the_labels_own_units(checkpoint_path, geometry):
    """Sees the same exported head under a data set's cameras as the model's own under ours, at another world scale."""
    G = load_generator(checkpoint_path)
    scaled = type(geometry)(**{**vars(geometry), "world_scale": 3.0, "origin": (1.0, -2.0, 0.5)})
    scene = G.synthesis(G.mapping(latents([0], G.z_dim)))
    camera = scaled.orbit(0.3).reshape(1, 1)
    ours = G.render(scene, camera).rgb
    G.info = dataclasses.replace(G.info, geometry=scaled)
    exported = SplatChoice("scene").splats(G, scene)
    theirs = G.render(exported, scaled.denormalize(camera)).rgb
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-4)
    G.info = dataclasses.replace(G.info, geometry=geometry)
    same = SplatChoice("scene").splats(G, scene)
    assert torch.equal(same.means, scene.means) and torch.equal(same.log_scales, scene.log_scales)


def test_published_flags_draw_the_published_latents(checkpoint_path, tmp_path):
    flags = ["--pkl", str(checkpoint_path), "--truncation_psi=0.6", "--num_ids=2", "--seed=7", f"--save_dir={tmp_path}"]
    result = CliRunner().invoke(main, [*flags, "--device=cpu", "--radius=3.5", "--pitch=20"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / f"{STEM}-seed0007-1.ply").exists()
    G = load_generator(checkpoint_path)
    z = torch.from_numpy(np.random.RandomState(7).randn(2, G.z_dim)).float()
    scene = G.synthesis(G.mapping(z, psi=0.6))
    torch.testing.assert_close(load_ply(tmp_path / f"{STEM}-seed0007-1.ply").means[0], scene.means[1])
    farther = type(G.geometry)(**{**vars(G.geometry), "radius": 3.5})
    camera = farther.orbit(torch.tensor([-0.6]), math.radians(20)).reshape(1, 1)
    expected = quantize(G.render(scene.scene(0), camera).image)[0, 0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{STEM}-samples.png"))[:32, :32], expected)


def test_ws_go_out_and_come_back_in(checkpoint_path, tmp_path):
    first = run(checkpoint_path, tmp_path / "a", "--seeds=3,1", f"--w-out={tmp_path / 'heads'}", "--splats=none")
    assert first.exit_code == 0, first.output
    second = run(checkpoint_path, tmp_path / "b", f"--w-file={tmp_path / 'heads'}", "--splats=none")
    assert second.exit_code == 0, second.output
    a, b = (np.asarray(Image.open(tmp_path / x / f"{STEM}-samples.png")) for x in "ab")
    np.testing.assert_array_equal(a, b)
    assert [p.name for p in (tmp_path / "b").iterdir()] == [f"{STEM}-samples.png"]


def test_levels_and_single_images(checkpoint_path, tmp_path):
    result = run(
        checkpoint_path, tmp_path, "--seeds=4", "--splats=levels", "--images", "--yaws=-20,0", "--show=image,normals"
    )
    assert result.exit_code == 0, result.output
    G = load_generator(checkpoint_path)
    scene = G.synthesis(G.mapping(latents([4], G.z_dim), psi=0.8))
    parts = [load_ply(tmp_path / f"{STEM}-seed0004-level{k}.ply").means for k in range(len(scene.level_sizes))]
    torch.testing.assert_close(torch.cat(parts, dim=1), scene.means)
    for kind, suffix in (("samples", ""), ("normals", "-normals")):
        grid = np.asarray(Image.open(tmp_path / f"{STEM}-{kind}.png"))
        views = [np.asarray(Image.open(tmp_path / f"{STEM}-seed0004-view{k}{suffix}.png")) for k in (0, 1)]
        np.testing.assert_array_equal(grid, np.concatenate(views, axis=1))


@pytest.fixture
def toy(monkeypatch, geometry, request):
    """Lets the script load a network of a family of its own: the class that the test names."""
    monkeypatch.setitem(FAMILIES, toys.NAME, toys.FAMILY)
    G = request.param(geometry)
    monkeypatch.setattr(gen_samples, "load_generator", lambda path, device: G)
    return G


@pytest.mark.parametrize("toy", [toys.FogGenerator], indirect=True)
def test_scenes_that_are_no_splats_have_pictures_and_no_ply(toy, geometry, tmp_path):
    result = run("net.pkl", tmp_path, "--seeds=0-1", "--show=image,normals", "--radius=3")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net-normals.png", "net-samples.png"]
    (told,) = toy.told  # the data's camera, whatever --radius the pictures have
    torch.testing.assert_close(told.labels, geometry.frontal().labels.expand(2, -1), rtol=0, atol=0)
    assert run("net.pkl", tmp_path, "--seeds=0", "--splats=none").exit_code == 0


@pytest.mark.parametrize("which", ["scene", "levels", "both"])
@pytest.mark.parametrize("toy", [toys.FogGenerator], indirect=True)
def test_a_ply_of_no_splats_is_refused(toy, tmp_path, which):
    result = run("net.pkl", tmp_path / "out", f"--splats={which}")
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert result.output == f"Error: --splats={which}: the scenes of this network are no splats; leave --splats out\n"


@pytest.mark.parametrize("toy", [toys.ChameleonGenerator], indirect=True)
def test_a_ply_has_the_colours_that_the_frontal_camera_sees(toy, geometry, tmp_path):
    toy.info = dataclasses.replace(toy.info, geometry=dataclasses.replace(geometry, world_scale=2.0, origin=(1, 0, 0)))
    result = run("net.pkl", tmp_path, "--seeds=0", "--radius=3")
    assert result.exit_code == 0, result.output
    splat = load_ply(tmp_path / "net-seed0000.ply")
    torch.testing.assert_close(splat.sh[0, 0, 0], geometry.frontal().positions, rtol=0, atol=0)
    torch.testing.assert_close(splat.means[0, 0], torch.tensor([1.2, 0.0, 0.0]))  # in label units


@pytest.mark.parametrize("toy", [toys.ChameleonGenerator], indirect=True)
def test_a_ply_per_level_needs_levels(toy, tmp_path):
    result = run("net.pkl", tmp_path / "out", "--splats=both")
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert "--splats=both: the scenes of this network have no levels; give --splats=scene" in result.output


def test_the_checkpoint_is_read_once(checkpoint_path, tmp_path, monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(path) or load(path, **options))
    assert run(checkpoint_path, tmp_path, "--seeds=0").exit_code == 0
    assert len(read) == 1


def test_a_ply_may_be_turned_for_viewers_of_splats_from_photographs(checkpoint_path, tmp_path):
    """Half a turn about z; one option more than the file that keeps y up."""
    run(checkpoint_path, tmp_path / "a", "--seeds=0", "--yaws=0")
    run(checkpoint_path, tmp_path / "b", "--seeds=0", "--yaws=0", "--up=-y")
    plain, turned = (load_ply(tmp_path / place / f"{STEM}-seed0000.ply") for place in "ab")
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    assert torch.equal(turned.means, plain.means @ half) and torch.equal(turned.sh, plain.sh)
    assert b"comment up is -y\n" in (tmp_path / "b" / f"{STEM}-seed0000.ply").read_bytes()[:200]
    assert (turned.transformed(rotation=half).means - plain.means).abs().max() < 1e-6


def test_every_format_shows_the_head(checkpoint_path, tmp_path):
    """In colours and sizes that the untrained network does not give its splats."""
    options = ("--seeds=0", "--yaws=0", "--scale=50", "--color-levels", f"--formats={','.join(FORMATS)}")
    result = run(checkpoint_path, tmp_path, *options)
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 1 + len(FORMATS)
    plain, camera = load_ply(tmp_path / f"{STEM}-seed0000.ply"), load_generator(checkpoint_path).geometry.frontal()
    picture = render(plain, camera.reshape(1, 1), 64).rgb
    assert picture.std() > 0.05
    for kind in set(FORMATS) - {"ply"}:
        again = render(splat_files.read(tmp_path / f"{STEM}-seed0000.{kind}"), camera.reshape(1, 1), 64).rgb
        assert ((again - picture) ** 2).mean() < 1e-4, kind  # 40 dB


@pytest.mark.parametrize("toy", [toys.FogGenerator], indirect=True)
def test_formats_of_no_splats_are_refused(toy, tmp_path):
    result = run("net.pkl", tmp_path / "out", "--formats=spz")
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert result.output == "Error: --formats: the scenes of this network are no splats; leave it out\n"


def test_heads_that_do_not_fit_in_memory_are_refused_before_any_is_made(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr("gen_samples.BYTES_A_PIXEL", 1 << 50)
    arguments = [f"--network={checkpoint_path}", f"--outdir={tmp_path}", "--seeds=0-9", "--yaws=0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "--seeds: 10 heads from 1 sides" in result.output
    assert "of memory are free; give fewer" in result.output and list(tmp_path.iterdir()) == []


def test_what_is_written_is_what_is_shown(checkpoint_path, tmp_path):
    options = ("--seeds=0", "--yaws=0", "--trunc=0.5", "--levels=1", "--scale=2", "--opaque", "--splats=both")
    result = run(checkpoint_path, tmp_path, *options)
    assert result.exit_code == 0, result.output
    names = sorted(p.name for p in tmp_path.glob("*.ply"))
    assert names == [f"{STEM}-seed0000-level1.ply", f"{STEM}-seed0000.ply"]  # the other levels are left out
    G = load_generator(checkpoint_path)
    scene = G.synthesis(G.mapping(latents([0], G.z_dim), psi=0.5)).select(1)
    for name in names:
        written = load_ply(tmp_path / name)
        torch.testing.assert_close(written.means, scene.means)
        torch.testing.assert_close(written.scales(), 2 * scene.scales())
        assert (written.opacities() == 1).all()
    picture = np.asarray(Image.open(tmp_path / f"{STEM}-samples.png")).astype(int)
    expected = quantize(G.render(load_ply(tmp_path / names[0]), G.geometry.frontal().reshape(1, 1)).image)
    assert np.abs(picture - expected[0, 0].permute(1, 2, 0).numpy()).max() <= 1
