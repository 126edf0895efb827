"""CGOF as runs of train.py: stages, a stop and a resume, two ranks, scripts, and refused input."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import calc_metrics
import gen_videos
import train
from tests.families.runs import TRAIN, assert_equal, networks_after, run, snapshots, train_run
from tests.families.small_cgof import SMALL, STAGES, small_regressor
from tests.torch_utils.ranks import run_ranks
from training.checkpoint import load_checkpoint, load_generator
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.families import FAMILIES
from training.families.cgof.generator import Generator
from training.families.pigan.discriminator import Discriminator
from training.morphable.head import procedural_head
from training.morphable.model import write_model
from training.presets import resolve
from training.safety.requests import EXIT_STOPPED
from training.step import GanStep
from training.visualization.camera_paths import camera_path
from training.visualization.control import Control
from training.visualization.latents import Heads

LENGTH = 48


@pytest.fixture(scope="module", autouse=True)
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A preset of two stages, known while these tests run, with an untrained regressor."""
    path = small_regressor(tmp_path_factory.mktemp("regressor"), procedural_head().key)
    family = FAMILIES["cgof"]
    preset = dataclasses.replace(SMALL, objective=SMALL.objective.changed(regressor=str(path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "cgof", dataclasses.replace(family, presets={**family.presets, "cgof-small": preset}))
        yield path


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_run(heads, tmp_path_factory.mktemp("whole"), "--preset=cgof-small", "--kimg=0.048")


def test_a_stopped_run_goes_on_bit_equal_over_a_change_of_stage(
    heads: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, "--preset=cgof-small", "--kimg=0.048")
    original = GanStep.run

    def stopped(self: GanStep, step: int, *rest: Any) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", stopped)
        assert "stopped after step 3" in run(train.main, *arguments, code=EXIT_STOPPED)
    run(train.main, *arguments, "--resume=latest")
    (run_dir,) = tmp_path.iterdir()
    assert_equal(snapshots(run_dir)[LENGTH], snapshots(whole)[LENGTH])


def test_every_term_is_reported_and_the_networks_learn(whole: Path) -> None:
    states = {nimg: load_checkpoint(path) for nimg, path in snapshots(whole).items()}
    for name in ("G", "G_ema"):
        same = [key for key, value in states[8][name].items() if torch.equal(value, states[LENGTH][name][key])]
        assert same == ["morphable_key"]
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    terms = ("normal", "distance", "background", "depth", "recon", "landmarks", "warp", "photo", "pose", "adversarial")
    assert {f"Loss/G/{name}" for name in terms} <= set(lines[-1])
    assert all(line["Gradient/G/skipped"] == line["Gradient/D/skipped"] == 0 for line in lines)


def test_it_is_measured_and_filmed(whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[LENGTH]
    run(calc_metrics.main, f"--network={network}", f"--outdir={tmp_path}", "--metrics=swd16", "--device=cpu",
        "--no-cache")  # fmt: skip
    film = (f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", "--seeds=0-1", "--w-frames=2", "--grid=2x1")
    assert "orbit" in run(gen_videos.main, *film, "--show=image,alpha,depth,normals", "--resolution=16")


def test_films_change_one_block_alone(whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[LENGTH]
    (tmp_path / "keys.json").write_text(json.dumps([[0.0] * 8, [1.0] * 8, [-1.0] * 8]))
    film = (f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", "--w-frames=2", "--resolution=8")
    asked = ("--seeds=0-1", "--grid=2x1", "--control=expression", f"--key-expressions={tmp_path / 'keys.json'}")
    said = run(gen_videos.main, *film, *asked, "--show=image,depth,normals")
    assert "expression.mp4" in said and "expression-grid.png" in said
    assert Image.open(tmp_path / f"{network.stem}-expression-grid.png").size == (3 * 8 * 3, 2 * 8)
    assert "pose.mp4" in run(gen_videos.main, *film, "--seeds=0", "--control=pose")
    assert "identity.mp4" in run(gen_videos.main, *film, "--seeds=0-1", "--control=identity")
    same = ("--seeds=5", "--grid=2x1", "--control=texture", "--fix-subject")  # one head in two cells
    assert "texture.mp4" in run(gen_videos.main, *film, *same)
    for options, reason in (
        (("--control=mood",), "--control=mood: legal are pose, identity, expression, background, texture"),
        (("--fix-subject",), "--fix-subject goes with --control=BLOCK"),
        (("--control=pose", "--fix-subject"), "--fix-subject means nothing with --control=pose"),
        (("--control=expression", "--interpolate=z"), "so --interpolate=z means nothing"),
        (("--control=texture", f"--key-expressions={tmp_path / 'keys.json'}"), "legal is [[6 numbers], ...]"),
        (("--control=texture", "--key-expressions=none.json"), "--key-expressions=none.json: no such file"),
        (("--control=identity",), "so --seeds must name at least 2, and names 1"),
    ):
        assert reason in " ".join(run(gen_videos.main, *film, "--seeds=0", *options, code=1).split())


def test_controlled_latents_hold_all_other_blocks(whole: Path) -> None:
    G = load_generator(snapshots(whole)[LENGTH])
    heads = Heads(["a", "b"], z=torch.randn(2, G.z_dim))
    blocks, part = G.blocks, G.blocks["expression"]
    rest = [i for i in range(G.z_dim) if not part.start <= i < part.stop]
    z = Control("expression").latents(G, heads, 2, 14)  # 7 keys
    assert torch.equal(z[..., rest], heads.z[:, rest].expand(14, -1, -1)) and torch.equal(z[:, 0, part], z[:, 1, part])
    assert not z[0, :, part].any() and z[2:, :, part].flatten(1).std(1).min() > 0.1
    chain = Control("identity").latents(G, heads, 1, 6)
    assert torch.equal(chain[:, 0, part], heads.z[:1, part].expand(6, -1))
    torch.testing.assert_close(chain[3, 0, rest], heads.z[1, rest])
    one = Control("expression", fix_subject=True).latents(G, heads, 2, 14)
    assert torch.equal(one[:, 0, rest], one[:, 1, rest]) and torch.equal(one[2, 0, part], one[0, 1, part])
    assert blocks.total == G.z_dim


def test_the_surface_follows_its_blocks_and_truncation(whole: Path) -> None:
    G = load_generator(snapshots(whole)[LENGTH])
    assert isinstance(G, Generator)
    z = torch.randn(2, G.z_dim)
    calm = G.blocks.put(z, "expression", torch.zeros(1, 8))
    asked, still = (G.surface.vertices(G.synthesis(G.mapping(values)).shape) for values in (z, calm))
    moved = (asked - still).abs().amax((1, 2))
    assert (moved > 0.003).all()
    mean = G.surface.vertices(G.synthesis(G.mapping(z, psi=0)).shape)
    torch.testing.assert_close(mean, G.surface.morphable.shape.expand(2, -1, -1))


def test_the_ellipse_of_poses_grows_and_shrinks_in_even_steps(geometry: Any) -> None:
    cameras = camera_path("swell", geometry, 60, (-0.5, 0.4))
    yaw, pitch = cameras.yaw_pitch(geometry)
    assert float(yaw.abs().max()) == pytest.approx(0.5, abs=0.06) and abs(float(yaw[0])) < 1e-6
    assert 0.2 < float(pitch.max()) < 0.41
    steps = torch.hypot(yaw.diff(), pitch.diff())
    assert float(steps.std() / steps.mean()) < 0.05
    assert torch.equal(*camera_path("still", geometry, 2).cam2world)


# ------------------------------------------------------------ ranks


def steps(rank: int, heads: str, regressor: str) -> dict[str, np.ndarray]:
    """Networks after a step of the first stage and two of the second."""
    config = resolve("cgof-tiny", data="")
    config = dataclasses.replace(
        config, generator=SMALL.generator, discriminator=SMALL.discriminator, stages=STAGES,
        objective=SMALL.objective.changed(regressor=regressor),
    )  # fmt: skip
    return networks_after(config, ImageDataset(heads), (24, 32, 36))


def test_two_ranks_take_the_steps_of_one_process_to_the_bit(heads: Path, regressor: Path) -> None:
    alone = steps(0, str(heads), str(regressor))
    for shared in run_ranks(2, steps, str(heads), str(regressor)):
        assert isinstance(shared, dict), shared
        assert [name for name, value in alone.items() if not np.array_equal(value, shared[name])] == []


# ------------------------------------------------------------ presets, and what is refused


@pytest.mark.parametrize("name", ["cgof", "cgof-tiny"])
def test_presets_are_built_and_consistent(name: str, regressor: Path) -> None:
    config = resolve(name, data="")
    config = dataclasses.replace(config, objective=config.objective.changed(regressor=str(regressor)))
    config.check()
    assert TrainingConfig.from_dict(config.to_dict()) == config
    with torch.device("meta"):
        D, G = Discriminator(config.discriminator), Generator(config.generator)
    assert G.blocks.total == G.z_dim and G.surface.morphable.shape.device.type == "cpu"
    assert D.config.latent == config.generator.z_dim == config.generator.blocks().total


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--morphable=nothing.npz",), "--morphable=nothing.npz: no such file"),
        (("--regressor=nothing.pt",), "--regressor=nothing.pt: no such file; fit_regressor.py makes one"),
        (("--recon=-1",), "--recon=-1.0: must be finite and 0 or greater"),
        (("--set=generator.z_dim=5",), "generator.z_dim=5: the blocks of the latent have 53 numbers together"),
        (
            ("--set=generator.background=3",),
            "discriminator.latent=53: with --pos-lambda or --z-lambda it must be the 54",
        ),
        (("--set=objective.warp_every=3",), "is not a multiple of objective.warp_every=3"),
        (("--set=generator.guided=false",), "generator.guided=False: --dist-depr and --bg-depr need the surface"),
    ],
)
def test_what_contradicts_is_refused(options: tuple[str, ...], reason: str, heads: Path) -> None:
    said = run(train.main, f"--data={heads}", "--preset=cgof-small", "--dry-run", *options, code=1)
    assert reason in " ".join(said.split())


def test_what_was_made_with_another_model_is_refused(heads: Path, whole: Path, tmp_path: Path) -> None:
    other = small_regressor(tmp_path, "0" * 16)
    said = run(train.main, f"--data={heads}", "--preset=cgof-small", "--dry-run", f"--regressor={other}", code=1)
    assert "reads the coefficients of the morphable model 0000000000000000" in " ".join(said.split())
    model = procedural_head()
    write_model(tmp_path / "wide.npz", dataclasses.replace(model, shape=1.1 * model.shape))
    G = Generator(SMALL.generator.changed(morphable=str(tmp_path / "wide.npz")))
    with pytest.raises(ValueError, match=r"were trained with the morphable model .* the one at hand is"):
        G.load_state_dict(load_checkpoint(snapshots(whole)[LENGTH])["G"])
