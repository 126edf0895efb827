"""GGHead as runs of train.py: stages that grow, a stop and a resume, two ranks, scripts, and input that is refused."""

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

import convert_checkpoint
import gen_samples
import gen_videos
import train
from gaussian import load_ply
from tests.families.runs import TRAIN, assert_equal, networks_after, run, snapshots, train_run
from tests.torch_utils.ranks import run_ranks
from torch_utils import ops
from training.checkpoint import load_checkpoint, load_discriminator, load_generator
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.families import FAMILIES
from training.families.base import Preset, RunFields
from training.families.gghead.discriminator import Discriminator, DiscriminatorConfig
from training.families.gghead.generator import Generator, GeneratorConfig
from training.families.gghead.objective import GgHeadObjectiveConfig
from training.networks.base import Conditioning
from training.presets import resolve
from training.safety.requests import EXIT_STOPPED
from training.samples import Stage
from training.step import GanStep

STAGES = (Stage(0, 16, 8, 4, 0.002, 0.002), Stage(32, 32, 8, 4, 0.002, 0.001))
GROWN = Preset(
    GeneratorConfig(
        32, z_dim=16, w_dim=16, plane_resolution=16, channel_base=256, channel_max=16, samples=20, first_samples=12,
        refined_nimg=32, published_keys=False,
    ),
    DiscriminatorConfig(
        32, (4, 8, 8, 8), embedding_dim=8, mapping_depth=2, published_keys=False, first_resolution=16
    ),
    GgHeadObjectiveConfig(
        r1_interval=2, blur_fade_kimg=0.04, blur_sigma=1.0, swap_fade_kimg=0.04, beta_weight=0.1, tv_weight=1.0,
        scale_std_weight=0.01, surface_from_kimg=0.032, grow_kimg=0.012,
    ),
    RunFields(batch=8, batch_gpu=4, stages=STAGES),
)  # fmt: skip
LENGTH = 48


@pytest.fixture(scope="module", autouse=True)
def grown() -> Iterator[None]:
    """A preset of two stages, known while these tests run."""
    family = FAMILIES["gghead"]
    with pytest.MonkeyPatch.context() as patch:
        presets = {**family.presets, "gghead-grown": GROWN}
        patch.setitem(FAMILIES, "gghead", dataclasses.replace(family, presets=presets))
        yield


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_run(heads, tmp_path_factory.mktemp("whole"), "--preset=gghead-grown", "--kimg=0.048")


def test_a_stopped_run_goes_on_bit_equal_over_a_change_of_stage(
    heads: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, "--preset=gghead-grown", "--kimg=0.048")
    original = GanStep.run

    def stopped(self: GanStep, step: int, *rest: Any) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", stopped)
        assert "stopped after step 2" in run(train.main, *arguments, code=EXIT_STOPPED)
    assert "at 0.016 kimg, step 2" in run(train.main, *arguments, "--resume=latest")
    (run_dir,) = tmp_path.iterdir()
    assert_equal(snapshots(run_dir)[LENGTH], snapshots(whole)[LENGTH])


def test_both_stages_learn_what_is_theirs(whole: Path) -> None:
    first, before, last = (load_checkpoint(snapshots(whole)[n]) for n in (8, 24, LENGTH))
    new = {key for key in last["D"] if key.startswith("b32.")}
    for key in new:
        assert torch.equal(first["D"][key], before["D"][key]), key
    # Of two steps the first has the fade 0; in the second one only those learn that are not behind weights of 0.
    learnt = {key for key in new if not torch.equal(first["D"][key], last["D"][key])}
    assert learnt == {"b32.conv1.weight", "b32.conv1.bias"}
    learnt = {key for key, value in first["D"].items() if not torch.equal(value, before["D"][key])}
    assert learnt == set(first["D"]) - new
    constant = {key for key in first["G"] if "anchors" in key or "_uv" in key or "vertices" in key or "noise_c" in key}
    unmoved = {key for key, value in first["G"].items() if torch.equal(value, last["G"][key])}
    assert unmoved == constant and not before["G"]["_refined"] and last["G"]["_refined"]
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert "Loss/G/tv_uv" not in lines[1] and {"Loss/G/tv_uv", "Loss/G/beta", "Loss/G/scale_std"} <= set(lines[-1])
    assert all(line["Gradient/G/skipped"] == 0 for line in lines)


def test_the_grid_of_its_stage_is_seen_in_every_script(whole: Path, tmp_path: Path) -> None:
    counts = []
    for nimg in (24, LENGTH):
        network = snapshots(whole)[nimg]
        arguments = (f"--network={network}", f"--outdir={tmp_path}", "--seeds=3", "--splats=scene")
        run(gen_samples.main, *arguments)
        counts.append(load_ply(tmp_path / f"{network.stem}-seed0003.ply").num_splats)
        G = load_generator(network)
        assert counts[-1] == G.scene_numbers and f"{counts[-1]:,} splats" == G.scene_size()
    assert counts[0] < 12 * 12 < counts[1] < 20 * 20


def test_films_and_conversion(whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[LENGTH]
    run(gen_videos.main, f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", "--seeds=0", "--w-frames=2",
        "--grid=1x1", "--show=image,depth", "--opaque", "--scale=0.5")  # fmt: skip
    refusal = run(convert_checkpoint.main, network, tmp_path / "other.pkl", "--to=published", code=1)
    assert "no room for published_keys = False" in refusal
    G, D = load_generator(network), load_discriminator(network)
    image = G(torch.randn(4, G.z_dim), G.geometry.orbit(torch.zeros(4, 1))).image[:, 0]
    assert D(image, G.geometry.frontal().labels.expand(4, 25)).shape == (4, 1)


# ------------------------------------------------------------ ranks


def steps(rank: int, heads: str) -> dict[str, np.ndarray]:
    """Networks after two steps of the first stage and two of the second."""
    config = dataclasses.replace(resolve("gghead-grown", data=""), background="random")
    return networks_after(config, ImageDataset(heads), (16, 24, 32, 40))


def test_two_ranks_take_the_steps_of_one_process_to_the_bit(heads: Path) -> None:
    alone = steps(0, str(heads))
    for shared in run_ranks(2, steps, str(heads)):
        assert isinstance(shared, dict), shared
        assert [name for name, value in alone.items() if not np.array_equal(value, shared[name])] == []


# ------------------------------------------------------------ growth


def test_a_grown_discriminator_starts_as_the_old_one() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(GROWN.discriminator, resolution=64, channels=(4, 4, 8, 8, 8))
    D = Discriminator(config)
    images, labels = torch.rand(4, 3, 64, 64) * 2 - 1, torch.randn(4, 25)
    small = torch.nn.functional.avg_pool2d(images, 2)
    with torch.no_grad():
        for image, start in ((images, ops.downsample(ops.downsample(images))), (small, ops.downsample(small))):
            expected = D(start, labels)
            assert torch.equal(D.outputs(image, Conditioning(labels, fade=1.0)).logits, expected)  # weights of 0
        for block in (D.b64, D.b32):
            block.conv1.weight.normal_()
        old = D(ops.downsample(images), labels)
        faded = [D.outputs(images, Conditioning(labels, fade=a)).logits for a in (0.0, 0.5, 1.0)]
        assert torch.equal(faded[0], old) and not torch.equal(faded[1], old) and not torch.equal(faded[1], faded[2])


@pytest.mark.parametrize(
    ("name", "stages"),
    [("gghead-ffhq256", 0), ("gghead-ffhq512", 2), ("gghead-ffhq1024", 3), ("gghead-afhq512", 0)],
)
def test_published_presets_are_built_and_consistent(name: str, stages: int) -> None:
    config = resolve(name, data="")
    config.check()
    assert len(config.stages) == stages and TrainingConfig.from_dict(config.to_dict()) == config
    with torch.device("meta"):
        G, D = Generator(config.generator), Discriminator(config.discriminator)
    assert sum(p.numel() for p in G.parameters()) == 28_789_939
    sizes = {256: 31_240_832, 512: 31_351_872, 1024: 31_379_744}
    assert sum(p.numel() for p in D.parameters()) == sizes[config.resolution]


# ------------------------------------------------------------ templates, and what is refused

OBJ = """v -0.1 0 0
v 0.1 0 0
v 0 0.1 0.02
v 0 -0.1 0.02
vt 0 0.5
vt 1 0.5
vt 0.5 1
vt 0.5 0
f 1/1 2/2 3/3
f 1/1 4/4 2/2
"""


def test_a_mesh_of_the_user_trains_and_goes_on_without_its_file(heads: Path, tmp_path: Path) -> None:
    mesh = tmp_path / "mine.obj"
    mesh.write_text(OBJ)
    given = ("--preset=gghead-grown", f"--gghead-template={mesh}")
    run_dir = train_run(heads, tmp_path / "runs", *given, "--kimg=0.008")
    network = snapshots(run_dir)[8]
    before = load_generator(network)
    mesh.unlink()
    G = load_generator(network)
    assert torch.equal(G.grid()[0], before.grid()[0]) and 20 < len(G.grid()[0]) < 144
    run(train.main, f"--data={heads}", f"--outdir={tmp_path / 'more'}", *TRAIN, "--kimg=0.016", f"--resume={network}")
    assert "none" in run(train.main, f"--data={heads}", *TRAIN, f"--outdir={tmp_path / 'x'}", "--kimg=0.008",
                         "--preset=gghead-grown", f"--gghead-template={tmp_path / 'none.obj'}", code=1)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "line 4: a face without (u, v)"),
        ("v 0 0 0\nf 1/1 2/1 3/1\n", "line 2: 1 is none of the 0 entries so far"),
        ("v 0 0\n", "line 1: 3 finite numbers are wanted"),
        ("", "holds no faces"),
        (OBJ.replace("vt 1 0.5", "vt 2 0.5"), "has (u, v) outside of 0..1"),
        (OBJ.replace("vt 0.5 1", "vt 0 0.5").replace("vt 0.5 0", "vt 0 0.5"), "covers none of"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(text: str, reason: str, heads: Path, tmp_path: Path) -> None:
    mesh = tmp_path / "mine.obj"
    mesh.write_text(text)
    arguments = (f"--data={heads}", f"--outdir={tmp_path / 'runs'}", *TRAIN, "--preset=gghead-grown", "--kimg=0.008")
    said = run(train.main, *arguments, f"--gghead-template={mesh}", code=1)
    assert "--gghead-template" in said and reason in said and len(said.splitlines()) < 4, said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--gghead-template=moon",), "--gghead-template=moon: legal are head, sphere, plane, and a mesh *.obj"),
        (("--gghead-template=stored",), "--gghead-template=stored is for checkpoints"),
        (("--plane-resolution=24",), "a synthesis network makes images of 4, 8, 16, ... px, not of 24"),
        (("--gpc-reg-prob=1.5",), "--gpc-reg-prob=1.5: legal are 0 to 1"),
        (("--lambda-beta=-1",), "--lambda-beta=-1.0: must be finite and 0 or greater"),
        (("--lambda-tv-uv=nan",), "--lambda-tv-uv=nan: must be finite and 0 or greater"),
        (("--position-range=0",), "generator.position_range=0.0 must be greater than 0"),
        (("--set=generator.splats=-1,9",), "generator.splats=(-1, 9): legal is a number of 1 or more for each of"),
        (("--set=generator.background_channels=2",), "generator.background_channels=2: legal are 0 and 3"),
        (("--set=discriminator.image_channels=4",), "discriminator.image_channels=4: training shows it RGB alone"),
        (
            ("--set=discriminator.first_resolution=32",),
            "discriminator.first_resolution=32: a stage has images of 16 px",
        ),
    ],
)
def test_illegal_values_are_refused_by_name(options: tuple[str, ...], reason: str, heads: Path, tmp_path: Path) -> None:
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, "--preset=gghead-grown", "--kimg=0.008")
    assert reason in run(train.main, *arguments, *options, code=1)


def test_a_cfg_without_presets_and_another_size_are_refused(heads: Path, tmp_path: Path) -> None:
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, "--kimg=0.008")
    assert "unknown preset 'gghead-cats512'; legal are" in run(
        train.main, *arguments, "--preset=gghead-cats512", code=1
    )
    assert "is for 256 px, the images in" in run(train.main, *arguments, "--preset=gghead-ffhq256", code=1)
    said = run(train.main, *arguments, "--preset=ball", "--lambda-beta=1", code=2)
    assert "--lambda-beta is an option of the family gghead" in said
