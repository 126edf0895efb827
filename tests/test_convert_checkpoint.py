"""convert_checkpoint.py, and published files through every script, as a user would."""

import dataclasses
import hashlib
import json

import pytest
import torch
from click.testing import CliRunner

import calc_metrics
import convert_checkpoint
import gen_samples
import gen_videos
import train
from tests.training.published import file_writer as writer
from training import checkpoint
from training.data.synthetic.synthesize import synthesize_heads
from training.families import FAMILIES
from training.published import gallery


def run(script, *argv) -> str:
    result = CliRunner().invoke(script.main, [str(a) for a in argv])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def modules():
    return writer.networks()


@pytest.fixture(scope="module")
def published(tmp_path_factory, modules):
    return writer.write(tmp_path_factory.mktemp("published") / "network-snapshot-000002.pkl", modules)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("heads") / "heads", 24, 32, seed=0, workers=1).images


def test_published_to_ours_and_back(published, modules, tmp_path):
    said = run(convert_checkpoint, published, tmp_path / "ours.pkl")
    assert "2 kimg (from the file name)" in said and "geometry: published cameras" in said and "Dreg_opt" in said
    ours = torch.load(tmp_path / "ours.pkl", weights_only=True)
    assert ours["format"] == 2 and ours["opt"]["G"] and ours["checksum"]
    said = run(convert_checkpoint, tmp_path / "ours.pkl", tmp_path / "tensors.pt", "--to=published")
    assert "Dropped best, config, geometry, grid, opt, progress, revision" in said
    tensors = torch.load(tmp_path / "tensors.pt", weights_only=True)
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(tensors[name][key], value)
    assert tensors["coarse_log_scale"] == -5.0 and tensors["resolution"] == 32


def test_the_list_and_a_file_of_it(published, tmp_path, monkeypatch):
    assert "| CGS-GAN | FFHQC 512 |" in run(convert_checkpoint, "--list")
    assert "not among those" in run(convert_checkpoint, published, tmp_path / "a.pkl", "--ema-only")
    sha256 = hashlib.sha256(published.read_bytes()).hexdigest()
    known = gallery.PublishedNetwork("CGS-GAN", "cats", "cgs", "micro", "https://example.org", sha256=sha256)
    monkeypatch.setattr(gallery, "GALLERY", (known,))
    assert f"sha256  {sha256}: CGS-GAN, cats" in run(convert_checkpoint, published, tmp_path / "b.pkl", "--ema-only")


def test_ema_only(published, modules, images, tmp_path):
    said = run(convert_checkpoint, published, tmp_path / "ema.pkl", "--ema-only", f"--data={images}")
    assert "Gboth_opt" in said and f"measured in {images}" in said
    numbers = sum(value.numel() for value in modules["G_ema"].state_dict().values())
    size = (tmp_path / "ema.pkl").stat().st_size
    assert 4 * numbers < size < 4 * numbers + 150_000 < published.stat().st_size / 3
    run(convert_checkpoint, tmp_path / "ema.pkl", tmp_path / "again.pkl", "--ema-only")
    z = torch.randn(1, 32)
    scenes = [G.synthesis(G.mapping(z)) for G in map(checkpoint.load_generator, (published, tmp_path / "again.pkl"))]
    assert torch.equal(scenes[0].means, scenes[1].means)
    with pytest.raises(checkpoint.CheckpointError, match="holds no discriminator"):
        checkpoint.load_discriminator(tmp_path / "again.pkl")


def test_refusals(published, checkpoint_path, tmp_path):
    (tmp_path / "there.pkl").write_text("precious")
    for argv, message in (
        ((published, tmp_path / "there.pkl"), "there.pkl exists already"),
        ((checkpoint_path, tmp_path / "new.pkl", "--to=official"), "point_encoding = fourier+code (legal"),
        ((checkpoint_path, tmp_path / "new.pkl", "--coarse-scale=-5"), "is ours and has it on record"),
    ):
        result = CliRunner().invoke(convert_checkpoint.main, [str(a) for a in argv])
        assert result.exit_code == 1 and message in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["there.pkl"] and (tmp_path / "there.pkl").read_text() == "precious"


def test_a_family_without_a_published_layout_is_refused(checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "cgs", dataclasses.replace(FAMILIES["cgs"], published=None))
    argv = [str(checkpoint_path), str(tmp_path / "new.pkl"), "--to=published"]
    result = CliRunner().invoke(convert_checkpoint.main, argv)
    assert result.exit_code == 1 and "the family 'cgs' has no published layout" in result.output
    assert not list(tmp_path.iterdir())


def test_a_published_file_in_every_script_that_shows(published, images, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    run(gen_samples, f"--network={published}", f"--outdir={tmp_path}", "--seeds=0", "--device=cpu")
    assert (tmp_path / f"{published.stem}-samples.png").is_file()
    run(gen_videos, f"--network={published}", f"--outdir={tmp_path}", "--seeds=0", "--w-frames=2", "--device=cpu")
    said = run(
        calc_metrics,
        f"--network={published}",
        f"--data={images}",
        "--metrics=fid16_full",
        "--detector=tiny",
        "--device=cpu",
        f"--outdir={tmp_path}",
    )
    assert "fid16_full" in said


def test_the_published_resume_command(published, images, tmp_path):
    """With its --kimg cut short nothing is left to do after 5000 kimg, and a line says so."""
    argv = f"--data={images} --resume={published} --resume_kimg=5000 --kimg=0.064 --metrics=none --outdir={tmp_path}"
    assert run(train, *argv.split()) == f"Nothing to do: {published} has seen 5000 kimg, and --kimg is 0.064\n"
    assert not list(tmp_path.iterdir())


def test_a_published_file_goes_on_training(published, modules, images, tmp_path):
    run(
        train,
        f"--data={images}",
        f"--outdir={tmp_path}",
        f"--resume={published}",
        "--batch=8",
        "--batch-gpu=4",
        "--resume_kimg=5000",
        "--kimg=5000.016",
        "--metrics=none",
        "--device=cpu",
        "--workers=0",
    )
    *_, last = sorted(tmp_path.glob("*/network-snapshot-*.pkl"))
    state = checkpoint.load_checkpoint(last)
    assert state["progress"]["nimg"] == 5_000_016 and state["config"]["generator"] == modules["G"].config.to_dict()
    moments = state["opt"]["G"]["_xyz"]
    assert moments["step"].item() == 3  # one in the file, two here
    assert json.loads((last.parent / "training_options.json").read_text())["batch"] == 8


def test_a_published_file_gives_a_run_its_first_weights(published, images, tmp_path):
    said = run(
        train,
        f"--data={images}",
        f"--outdir={tmp_path}",
        f"--init-from={published}",
        "--init-share=0",
        "--preset=micro",
        "--kimg=0.016",
        "--metrics=none",
        "--device=cpu",
        "--workers=0",
    )
    assert "G_ema" in said
