"""Tests invert.py: its files, and what reads them. What it finds: tests/training/inversion/."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import extract_mesh
import gen_samples
from gaussian import load_ply
from invert import main
from tests.training.inversion.heads import write_network
from training.checkpoint import load_discriminator, load_generator
from training.images import quantize
from training.inversion import encoder
from training.visualization.camera_paths import read_cameras, write_cameras
from training.visualization.latents import frontal_ws, load_ws

QUICK = ("--heads=4", "--starts=2", "--steps=8", "--part-steps=4", "--tune-steps=4", "--splat-steps=4", "--device=cpu")
FILES = {"w.npz", "cameras.json", "network-tuned.pkl", "head.ply", "fit.png", "views.png", "film.mp4",
         "inversion.json", "inversion.html"}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory, geometry):
    return write_network(tmp_path_factory.mktemp("network"), geometry)


@pytest.fixture(scope="module")
def pictures(checkpoint_path, tmp_path_factory):
    """Two views of a head of the network, with alpha, and their cameras."""
    G, folder = load_generator(checkpoint_path), tmp_path_factory.mktemp("pictures")
    cameras = G.geometry.orbit(torch.tensor([0.3, -0.2]))
    ws = frontal_ws(G, torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(3)), psi=1.0)
    with torch.no_grad():
        out = G.render(G.synthesis(ws), cameras.reshape(1, 2), 64)
    rgba = torch.cat([quantize(out.image[0]), quantize(2 * out.alpha[0] - 1)], 1)
    paths = [folder / f"{i}.png" for i in range(2)]
    for path, values in zip(paths, rgba, strict=True):
        Image.fromarray(values.permute(1, 2, 0).numpy()).save(path)
    write_cameras(folder / "cameras.json", cameras, G.geometry)
    return [str(path) for path in paths], str(folder / "cameras.json")


def run(*options, code=0):
    result = CliRunner().invoke(main, [*map(str, options), *QUICK])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def found(checkpoint_path, pictures, tmp_path_factory):
    outdir = tmp_path_factory.mktemp("found")
    return outdir, run(f"--network={checkpoint_path}", f"--image={pictures[0][0]}", f"--outdir={outdir}")


def test_all_files_are_there_and_named(found):
    outdir, result = found
    assert {path.name for path in outdir.iterdir()} == FILES
    assert result.stdout.splitlines()[0] == str(outdir / "w.npz")
    assert {line.rsplit("/", 1)[-1] for line in result.stdout.splitlines()} == FILES
    assert "model: the network as it is meets the pictures to" in result.stderr
    record = json.loads((outdir / "inversion.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["search", "latent", "parts", "weights", "splats"]
    assert Image.open(outdir / "fit.png").size == (3 * 192, 192)


def test_the_page_needs_nothing_else_and_says_why(found):
    text = (found[0] / "inversion.html").read_text()
    assert text.startswith("<!doctype html>") and text.count("data:image/png;base64,") == 2
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "How good it is, and why not better" in text and "deviations from the mean head" in text


def test_other_scripts_read_what_was_found(found, checkpoint_path, tmp_path):
    outdir, _ = found
    network = outdir / "network-tuned.pkl"
    G = load_generator(network)
    ws, camera = load_ws(outdir / "w.npz", G), read_cameras(outdir / "cameras.json", G.geometry)
    assert ws.shape == (1, G.block_ws, G.w_dim) and len(camera) == 1
    assert load_discriminator(network).state_dict().keys() == load_discriminator(checkpoint_path).state_dict().keys()
    arguments = [f"--network={network}", f"--w-file={outdir / 'w.npz'}", f"--outdir={tmp_path}", "--device=cpu"]
    for script, more in ((gen_samples, ("--yaws=0",)), (extract_mesh, ("--resolution=16", "--views=4"))):
        result = CliRunner().invoke(script.main, [*arguments, *more])
        assert result.exit_code == 0, result.output
    assert load_ply(outdir / "head.ply").num_splats == G.scene_numbers


def test_several_pictures_with_given_cameras(checkpoint_path, pictures, tmp_path):
    images, cameras = pictures
    options = (f"--network={checkpoint_path}", f"--image={','.join(images)}", f"--camera={cameras}")
    run(*options, f"--outdir={tmp_path}", "--no-features")
    record = json.loads((tmp_path / "inversion.json").read_text())
    assert record["pictures"] == images and len(record["psnr_db"]) == 2
    assert record["yaw_deg"] == pytest.approx([np.rad2deg(0.3), np.rad2deg(-0.2)], abs=0.01)
    assert Image.open(tmp_path / "fit.png").size == (3 * 192, 2 * 192)


def load_cameras(path, names, G):
    """The yaws of the pictures, in radians."""
    return read_cameras(path, G.geometry, names).yaw_pitch(G.geometry)[0].tolist()


def test_a_dataset_json_gives_the_cameras_of_the_pictures_that_it_names(checkpoint_path, pictures, tmp_path):
    (first, second), cameras = pictures
    labels = json.loads(Path(cameras).read_text())
    named = [["other.png", labels[0]], [Path(second).name, labels[1]], [Path(first).name, labels[0]]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": named}))
    options = (f"--network={checkpoint_path}", f"--camera={tmp_path / 'dataset.json'}", f"--outdir={tmp_path / 'out'}")
    run(*options, f"--image={second}", "--formats=spz,ply")
    record = json.loads((tmp_path / "out" / "inversion.json").read_text())
    assert record["yaw_deg"] == pytest.approx([np.rad2deg(-0.2)], abs=0.01)
    assert {path.name for path in (tmp_path / "out").glob("head.*")} == {"head.spz", "head.ply"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": named[1:]}))  # as many as pictures, in another order
    both = load_cameras(tmp_path / "dataset.json", [first, second], load_generator(checkpoint_path))
    assert both == pytest.approx([0.3, -0.2], abs=1e-4)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": named[:1] * 2}))
    result = run(*options, f"--image={second}", code=1)
    hint = f"the name {Path(second).name} would be legal, its first label is called other.png"
    assert f"has 0 label(s) for {second}; {hint}" in result.output


@pytest.mark.parametrize("folder", ["", "32/"])  # of dataset.json: beside the folder of the pictures, or in it
@pytest.mark.parametrize(
    "name",
    ["{}.png", "./{}.png", "32/{}.png", "32\\{}.png", ".\\{}", "32/./{}.JPG", "{root}/32/{}.png", "../32/{}.png"],
)
def test_labels_are_found_as_the_reader_of_sets_finds_them(geometry, tmp_path, monkeypatch, name, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    source, wanted = tmp_path / folder / "dataset.json", geometry.orbit(torch.tensor([0.3, -0.2]))
    write_cameras(source, wanted, geometry)
    labels = json.loads(source.read_text())
    names = [name.replace("{root}", str(tmp_path)).replace("{}", f"0000{i}") for i in range(2)]
    named = [[n, label] for n, label in zip(names, labels, strict=True)]
    monkeypatch.chdir(tmp_path)
    for content in (named, dict(named)):
        source.write_text(json.dumps({"labels": content}))
        for pictures in ([str(tmp_path / "32" / "00001.png")], ["32/00001.png"]):
            found = read_cameras(source, geometry, pictures)
            torch.testing.assert_close(found.labels, wanted[1:].labels, rtol=0, atol=2e-6)
        with pytest.raises(ValueError, match=r"has 0 label\(s\) for 32/10000.png; the name 10000.png would be legal"):
            read_cameras(source, geometry, ["32/10000.png"])
    source.write_text(json.dumps({"labels": [*named, ["00001.png", labels[0]], ["10000.png", labels[0]]]}))
    assert len(read_cameras(source, geometry, ["32/10000.png"])) == 1  # so the hint is true
    with pytest.raises(ValueError, match=r"has 2 label\(s\) for 32/00001.png; only one is legal of .* and 00001.png"):
        read_cameras(source, geometry, ["32/00001.png"])


def test_splats_are_refused_where_there_are_none(checkpoint_path, pictures, tmp_path, monkeypatch):
    G = load_generator(checkpoint_path)
    G.makes_splats = False
    monkeypatch.setattr("invert.load_generator", lambda path, device: G)
    result = run(f"--network={checkpoint_path}", f"--image={pictures[0][0]}", f"--outdir={tmp_path}", code=1)
    assert "--splat-steps=4: the scenes of this network are no splats" in result.output


def test_an_encoder_is_trained_kept_beside_the_network_and_used(checkpoint_path, pictures, tmp_path, monkeypatch):
    network = tmp_path / "net.pkl"
    network.write_bytes(checkpoint_path.read_bytes())
    short = encoder.EncoderConfig.__init__.__defaults__
    monkeypatch.setattr(encoder.EncoderConfig.__init__, "__defaults__", tuple(64 if v == 6000 else v for v in short))
    result = run(f"--network={network}", "--train-encoder", "--encoder-steps=60")
    assert result.stdout == f"{tmp_path / 'net-encoder.pt'}\n" and "The encoder is off by" in result.stderr
    assert re.search(r"^Training an encoder on \d+ heads, in 60 steps\n", result.stderr)
    options = (f"--network={network}", f"--image={pictures[0][0]}")
    result = run(*options, f"--outdir={tmp_path / 'a'}")
    assert f"Begins where {tmp_path / 'net-encoder.pt'} says" in result.stderr
    assert "camera: held where the encoder saw it" in result.stderr
    result = run(*options, f"--outdir={tmp_path / 'b'}", "--encoder=none")
    assert "Begins where" not in result.stderr and "camera: the encoder" not in result.stderr
