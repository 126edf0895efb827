"""Tests find_directions.py, and that films, pictures and the viewer read what it writes."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import find_directions
import gen_samples
import gen_videos
from training.checkpoint import load_generator
from training.visualization import latents
from training.visualization.directions import read_directions

STEM = "network-snapshot-000000"


def run(main, *options):
    return CliRunner().invoke(main, [*map(str, options), "--device=cpu"])


@pytest.fixture(scope="module")
def found(checkpoint_path, tmp_path_factory):
    """A file with directions of every method."""
    folder = tmp_path_factory.mktemp("directions")
    G = load_generator(checkpoint_path)
    w = latents.frontal_ws(G, latents.seed_latents(list(range(40)), G.z_dim), 1.0)[:, 0]
    np.savez(folder / "scores.npz", seed=np.arange(40), first=w[:, 0].numpy())
    result = run(
        find_directions.main, f"--network={checkpoint_path}", f"--dest={folder}/d.npz", f"--scores={folder}/scores.npz",
        "--method=pca,layers", "--count=2", "--samples=200",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "d.npz", result.stdout


def test_each_method_has_its_directions(found, checkpoint_path):
    path, said = found
    directions = read_directions(path, load_generator(checkpoint_path))
    assert directions.names == ("pca1", "pca2", "layers1", "layers2", "first")
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(directions.names) and lines[-1] == str(path)
    assert "of the variance of w" in lines[0] and "of what the layers heed" in lines[2] and "told by w" in lines[4]
    assert directions.shares[4] > 0.9  # the score is a number of w
    assert directions.axes[4, 0] > 0


def test_the_file_lies_beside_the_network_where_no_other_place_is_named(checkpoint_path, tmp_path):
    network = tmp_path / "net.pkl"
    network.write_bytes(checkpoint_path.read_bytes())
    result = run(find_directions.main, f"--network={network}", "--count=1", "--samples=50")
    assert result.exit_code == 0 and (tmp_path / "net-directions.npz").is_file(), result.output


def test_a_film_and_its_grid_show_a_direction(found, checkpoint_path, tmp_path):
    result = run(
        gen_videos.main, f"--network={checkpoint_path}", f"--outdir={tmp_path}", f"--direction={found[0]}:pca1:3",
        "--seeds=0-1", "--grid=2x1", "--w-frames=4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{STEM}-pca1-grid.png", f"{STEM}-pca1.mp4"]


def test_pictures_and_ws_are_moved(found, checkpoint_path, tmp_path):
    common = (f"--network={checkpoint_path}", f"--outdir={tmp_path}", "--seeds=3", "--yaws=0", "--splats=none")
    for name, options in (("plain", ()), ("moved", (f"--direction={found[0]}:layers2:-2",))):
        result = run(gen_samples.main, *common, f"--w-out={tmp_path}/{name}.npz", *options)
        assert result.exit_code == 0, result.output
    G = load_generator(checkpoint_path)
    plain, moved = (latents.load_ws(tmp_path / f"{name}.npz", G) for name in ("plain", "moved"))
    step = read_directions(found[0]).step("layers2")
    torch.testing.assert_close(moved - plain, (-2 * step).expand_as(plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--control=pose", "--direction=d.npz:1"), "--control=pose and --direction=d.npz:1 both say how heads change"),
        (("--direction=d.npz:1", "--interpolate=z"), "--direction=d.npz:1 says how heads change, so --interpolate=z"),
        (("--direction=d.npz:1", "--mapping-camera=film"), "--direction moves the heads of one camera"),
        (("--direction=d.npz",), "--direction=d.npz: legal is FILE:AMOUNT or FILE:NAME:AMOUNT"),
        (("--direction=none.npz:1",), "none.npz: no such file of directions"),
    ],
)
def test_films_refuse(checkpoint_path, tmp_path, options, message):
    result = run(gen_videos.main, f"--network={checkpoint_path}", f"--outdir={tmp_path}", "--seeds=0", *options)
    assert result.exit_code != 0 and message in result.output
