"""Tests extract_mesh.py: meshes of splats and of densities in the labels' units, volumes, and what has no surface."""

import dataclasses

import mrcfile
import numpy as np
import plyfile
import pytest
from click.testing import CliRunner

import extract_mesh
from extract_mesh import main
from tests.training.meshes.shapes import BallGenerator
from tests.training.visualization import toys
from training.checkpoint import load_generator
from training.families import FAMILIES

STEM = "network-snapshot-000000"
SMALL = ("--resolution=24", "--views=8")


def run(network, outdir, *options):
    return CliRunner().invoke(main, [f"--network={network}", f"--outdir={outdir}", "--device=cpu", *options])


def corners(path):
    vertex = plyfile.PlyData.read(path)["vertex"]
    return np.stack([vertex[axis] for axis in "xyz"], axis=1)


@pytest.fixture
def ball(monkeypatch, geometry):
    """Lets the script load a network of balls, whose second, fourth, ... heads are balls and whose others are empty."""
    monkeypatch.setitem(FAMILIES, toys.NAME, toys.FAMILY)
    G = BallGenerator(geometry)
    monkeypatch.setattr(extract_mesh, "load_generator", lambda path, device: G)
    return G


def test_splats_have_a_mesh_per_seed_and_format(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=5,2", "--format=ply,obj,glb", *SMALL)
    assert result.exit_code == 0, result.output
    names = [f"{STEM}-seed{seed}-mesh.{suffix}" for seed in ("0005", "0002") for suffix in ("ply", "obj", "glb")]
    assert result.stdout.split() == [str(tmp_path / name) for name in names]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    first, second = (corners(tmp_path / names[k]) for k in (0, 3))
    assert first.shape != second.shape or (first != second).any()


def test_a_mesh_is_in_the_labels_own_units(checkpoint_path, tmp_path, monkeypatch):
    assert run(checkpoint_path, tmp_path / "a", "--seeds=0", "--format=ply", *SMALL).exit_code == 0
    G = load_generator(checkpoint_path)
    scaled = dataclasses.replace(G.geometry, world_scale=3.0, origin=(1.0, -2.0, 0.5))
    G.info = dataclasses.replace(G.info, geometry=scaled)
    monkeypatch.setattr(extract_mesh, "load_generator", lambda path, device: G)
    assert run(checkpoint_path, tmp_path / "b", "--seeds=0", "--format=ply", *SMALL).exit_code == 0
    plain, moved = (corners(tmp_path / place / f"{STEM}-seed0000-mesh.ply") for place in "ab")
    np.testing.assert_allclose(moved, 3 * plain + np.array([1.0, -2.0, 0.5]), atol=1e-5)


def test_ws_of_a_file_are_the_heads(checkpoint_path, tmp_path):
    G = load_generator(checkpoint_path)
    ws = extract_mesh.HeadChoice("3", None, 0.7, None, frozenset()).heads(G)[1]
    extract_mesh.latents.save_ws(tmp_path / "heads.npz", ws)
    assert run(checkpoint_path, tmp_path / "a", "--seeds=3", "--format=ply", *SMALL).exit_code == 0
    assert run(checkpoint_path, tmp_path / "b", f"--w-file={tmp_path}/heads.npz", "--format=ply", *SMALL).exit_code == 0
    names = (f"a/{STEM}-seed0003-mesh.ply", f"b/{STEM}-w0000-mesh.ply")
    assert np.array_equal(*(corners(tmp_path / name) for name in names))


def test_a_density_has_a_mesh_and_volumes_in_the_labels_own_units(ball, geometry, tmp_path):
    ball.info = dataclasses.replace(
        ball.info, geometry=dataclasses.replace(geometry, world_scale=2.0, origin=(1, 0, 0))
    )
    result = run("net.pkl", tmp_path, "--seeds=7", "--resolution=32", "--format=ply,mrc,npz", "--level=25")
    assert result.exit_code == 0, result.output
    assert sorted(p.name.removeprefix("net-seed0007-") for p in tmp_path.iterdir()) == [
        "density.mrc", "density.npz", "mesh.ply",
    ]  # fmt: skip
    away = np.linalg.norm(corners(tmp_path / "net-seed0007-mesh.ply") - np.array([1.2, 0, 0]), axis=1)
    assert abs(away.mean() / 0.6 - 1) < 0.01  # the level is half of the density, 50 per label unit
    with (
        mrcfile.open(tmp_path / "net-seed0007-density.mrc") as file,
        np.load(tmp_path / "net-seed0007-density.npz") as z,
    ):
        np.testing.assert_array_equal(file.data, z["density"])
        assert z["density"].max() == pytest.approx(50) and z["origin"].tolist() == [0, -1, -1]
        assert z["spacing"] == pytest.approx(2 / 31)
        i, j, k = np.unravel_index(z["density"].argmax(), z["density"].shape)
        assert z["origin"][0] + i * z["spacing"] > 0.6 and 4 < j < 27 and 4 < k < 27


def test_the_level_that_is_found_is_said_and_gives_the_same_mesh(ball, tmp_path):
    options = ("--seeds=0", "--resolution=24", "--format=ply")
    first = run("net.pkl", tmp_path / "a", *options)
    assert first.exit_code == 0, first.output
    (level,) = (line for line in first.stderr.splitlines() if line.startswith("--level="))
    ball.batches.clear()
    assert run("net.pkl", tmp_path / "b", *options, level).exit_code == 0
    a, b = (corners(tmp_path / place / "net-seed0000-mesh.ply") for place in "ab")
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_heads_without_a_surface_are_counted_and_the_others_kept(ball, tmp_path):
    result = run("net.pkl", tmp_path, "--seeds=0-3", "--resolution=24", "--format=ply,npz", "--level=20")
    assert result.exit_code == 1 and result.stderr.count("Error") == 1
    said = "2 of 4 heads have no surface at --level=20, the first is seed0001: values are 0 to 0"
    assert result.stderr.splitlines()[-1] == f"Error: {said}"
    kept = sorted(p.name.removeprefix("net-") for p in tmp_path.iterdir())
    meshes = ["seed0000-mesh.ply", "seed0002-mesh.ply"]
    assert kept == sorted([*meshes, *(f"seed000{k}-density.npz" for k in range(4))])


def test_a_level_above_all_densities_says_what_there_is(ball, tmp_path):
    result = run("net.pkl", tmp_path, "--seeds=0", "--resolution=24", "--level=1000")
    assert result.exit_code == 1 and list(tmp_path.iterdir()) == []
    assert "1 of 1 heads have no surface at --level=1000, the first is seed0000: values are" in result.stderr


def test_pieces_that_are_left_out_are_counted(checkpoint_path, tmp_path):
    result = run(checkpoint_path, tmp_path, "--seeds=0", "--format=ply", "--pieces=1", *SMALL)
    assert result.exit_code == 0, result.output
    whole = run(checkpoint_path, tmp_path / "all", "--seeds=0", "--format=ply", *SMALL)
    assert whole.exit_code == 0 and "left out" not in whole.stderr
    few, many = (len(corners(tmp_path / place / f"{STEM}-seed0000-mesh.ply")) for place in ("", "all"))
    assert few == many or ("left out" in result.stderr and few < many)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--views=8",), "--views=8: this network has a density, which is looked at directly; leave it out"),
        (("--format=mrc", "--pieces=1"), "--pieces says which part of a mesh is written"),
        (("--resolution=100000",), "--resolution=100000: 1,000,000,000,000,000 points take"),
    ],
)
def test_options_that_say_nothing_of_a_density_are_refused(ball, tmp_path, options, said):
    result = run("net.pkl", tmp_path / "out", *options)
    assert result.exit_code == 1 and said in result.stderr and not (tmp_path / "out").exists()


def test_scenes_that_are_neither_splats_nor_densities_are_refused(monkeypatch, geometry, tmp_path):
    monkeypatch.setitem(FAMILIES, toys.NAME, toys.FAMILY)
    monkeypatch.setattr(extract_mesh, "load_generator", lambda path, device: toys.FogGenerator(geometry))
    result = run("net.pkl", tmp_path / "out")
    assert result.exit_code == 1 and "neither splats nor a density" in result.stderr


def test_a_missing_library_is_one_line(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setitem(extract_mesh.files.LIBRARIES, "no_such_module", "its-name")
    result = run(checkpoint_path, tmp_path / "out")
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert result.output == "Error: extract_mesh.py needs its-name: pip install its-name\n"
