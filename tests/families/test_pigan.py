"""pi-GAN as runs of train.py: stages, a stop and a resume, two ranks, scripts, sets without cameras, refused input."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calc_metrics
import convert_checkpoint
import gen_samples
import gen_videos
import report
import train
from gaussian import Cameras
from tests.families.runs import TRAIN, assert_equal, networks_after, run, snapshots, train_run
from tests.torch_utils.ranks import run_ranks
from training.checkpoint import load_checkpoint, load_generator
from training.config import TrainingConfig
from training.data.poses import PoseLaw, angles_of
from training.dataset import ImageDataset
from training.families import FAMILIES
from training.families.base import Preset, RunFields
from training.families.inspection import Inspection
from training.families.pigan.config import GeneratorConfig
from training.families.pigan.discriminator import Discriminator, DiscriminatorConfig
from training.families.pigan.generator import Generator
from training.families.pigan.siren import inspect_field
from training.presets import resolve
from training.safety.requests import EXIT_STOPPED
from training.samples import SampleStream, Stage
from training.step import GanStep
from training.visualization.camera_paths import breathing, camera_path

TINY = FAMILIES["pigan"].presets["pigan-tiny"]
STAGES = (Stage(0, 8, 8, 4, 0.001, 0.002), Stage(32, 16, 4, 2, 0.001, 0.001))
SMALL = Preset(
    GeneratorConfig(
        32, z_dim=6, width=12, layers=2, map_depth=1, samples=4, fine_samples=4, noise_kimg=0.04,
        unit=TINY.generator.unit, points=10_000,
    ),
    DiscriminatorConfig(widths=(4, 6, 8, 8, 8), latent=6),
    TINY.objective.changed(fade_steps=4, topk_interval=2, latent_weight=0.1),
    RunFields(batch=8, batch_gpu=4, stages=STAGES, g_lr=0.001, d_lr=0.001, background="white"),
)  # fmt: skip
LENGTH = 48


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A preset of two stages, known while these tests run."""
    family = FAMILIES["pigan"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "pigan", dataclasses.replace(family, presets={**family.presets, "pigan-small": SMALL}))
        yield


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return train_run(heads, tmp_path_factory.mktemp("whole"), "--preset=pigan-small", "--kimg=0.048")


@pytest.fixture(scope="module")
def unposed(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a plain folder, without labels and masks."""
    folder = tmp_path_factory.mktemp("unposed") / "pictures"
    shutil.copytree(heads, folder)
    assert not list(folder.glob("*.json"))
    return folder


@pytest.mark.parametrize("stopped_in", [1, 4])
def test_a_stopped_run_goes_on_bit_equal_over_a_change_of_stage(
    stopped_in: int, heads: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first stage, and after the first step of the second."""
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, "--preset=pigan-small", "--kimg=0.048")
    original = GanStep.run

    def stopped(self: GanStep, step: int, *rest: Any) -> Any:
        if step == stopped_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", stopped)
        assert f"stopped after step {stopped_in + 1}" in run(train.main, *arguments, code=EXIT_STOPPED)
    run(train.main, *arguments, "--resume=latest")
    (run_dir,) = tmp_path.iterdir()
    assert_equal(snapshots(run_dir)[LENGTH], snapshots(whole)[LENGTH])


def test_both_stages_learn_what_is_theirs(whole: Path) -> None:
    states = {nimg: load_checkpoint(path) for nimg, path in snapshots(whole).items()}
    first, before, last = states[8], states[24], states[LENGTH]
    for name in ("G", "G_ema", "G_slow"):
        assert not [key for key, value in first[name].items() if torch.equal(value, last[name][key])], name
    idle = {key for key in first["D"] if key.startswith(("fromRGB.0.", "layers.0.", "fromRGB.4."))}  # of 32 and 2 px
    later = {key for key in first["D"] if key.startswith(("fromRGB.1.", "layers.1."))}  # of 16 px
    for old, new, resting in ((first, before, idle | later), (before, last, idle)):
        assert {key for key, value in old["D"].items() if torch.equal(value, new["D"][key])} == resting
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert {"Loss/D/r1_penalty", "Loss/G/pose", "Loss/D/latent", "Field/opacity"} <= set(lines[-1])
    assert all(line["Gradient/G/skipped"] == line["Gradient/D/skipped"] == 0 for line in lines)


def test_it_is_measured_filmed_drawn_converted_and_reported(whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[LENGTH]
    measured = (f"--network={network}", f"--outdir={tmp_path}", "--metrics=swd16", "--device=cpu", "--no-cache")
    run(calc_metrics.main, *measured)
    film = (f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", "--seeds=0-1", "--w-frames=2", "--grid=2x1")
    assert "orbit" in run(gen_videos.main, *film, "--show=image,alpha,depth,normals")
    assert "no splats to show" in run(gen_videos.main, *film, "--opaque", code=1)
    run(gen_videos.main, *film, "--path=front", "--colors-from=0", "--fov-breathing=5")
    assert "--fov-breathing=200: the field" in run(gen_videos.main, *film, "--fov-breathing=200", code=1)
    run(gen_samples.main, f"--network={network}", f"--outdir={tmp_path}", "--seeds=3", "--trunc=0.7", "--images")
    page = Path(run(report.main, whole, f"--out={tmp_path / 'page.html'}").strip()).read_text()
    assert "Guesses of latent and pose" in page
    run(convert_checkpoint.main, network, tmp_path / "published.pt", "--to=published")
    written = torch.load(tmp_path / "published.pt", weights_only=True)
    assert written["variant"] == "spatial" and torch.equal(
        written["G_ema"]["siren.final_layer.weight"], load_checkpoint(network)["G_ema"]["siren.final_layer.weight"]
    )


def test_locked_colours_follow_no_view(whole: Path) -> None:
    G = load_generator(snapshots(whole)[LENGTH])
    scene = G.synthesis(G.mapping(torch.randn(1, G.z_dim)))
    locked = inspect_field(G, Inspection(colors_from=(0.0,)))(scene)
    points, ways = torch.rand(1, 5, 3) - 0.5, torch.nn.functional.normalize(torch.randn(2, 1, 5, 3), dim=-1)
    assert torch.equal(locked.sample(points, ways[0])[0], locked.sample(points, ways[1])[0])
    assert not torch.equal(scene.sample(points, ways[0])[0], scene.sample(points, ways[1])[0])
    torch.testing.assert_close(scene.sample(points, None)[0], locked.sample(points, ways[0])[0])
    aside = inspect_field(G, Inspection(colors_from=(90.0,)))(scene)
    assert aside.view == pytest.approx((-1, 0, 0), abs=1e-6)  # looks from +x
    with pytest.raises(ValueError, match="--opaque: the scenes of this network have no splats"):
        inspect_field(G, Inspection(opaque=True))


def test_a_breathing_film_widens_by_twice_as_much(geometry: Any) -> None:
    still = camera_path("front", geometry, 4)
    found = breathing(still, 5.0)
    across = [math.degrees(2 * math.atan(0.5 / c.intrinsics[..., 0, 0])) for c in (still, found) for c in c]
    assert across[4:] == pytest.approx([across[0] + a for a in (5, 10, 5, 0)], abs=1e-3)
    assert torch.equal(found.cam2world, still.cam2world)


def test_truncation_pulls_all_seeds_to_one_field(whole: Path) -> None:
    G = load_generator(snapshots(whole)[LENGTH])
    z = torch.randn(3, G.z_dim)
    means, ws = G.mapping(z, psi=0), G.mapping(z)
    assert torch.equal(means[0], means[1]) and not torch.equal(ws[0], ws[1])
    torch.testing.assert_close(G.mapping(z, psi=0.5), (means + ws) / 2)
    with torch.no_grad():
        G.siren.mapping_network.network[0].weight.mul_(1.1)
    assert not torch.equal(G.mapping(z, psi=0), means)  # the mean follows the weights


# ------------------------------------------------------------ ranks


def steps(rank: int, heads: str) -> dict[str, np.ndarray]:
    """Networks after two steps of the first stage and two of the second, with cameras of a law."""
    config = resolve("pigan-small", data="")
    config = dataclasses.replace(config, objective=config.objective.changed(pose="gaussian"))
    dataset = ImageDataset(heads, pose_law=config.objective.pose_law)
    return networks_after(config, dataset, (16, 24, 32, 36))


def test_two_ranks_take_the_steps_of_one_process_to_the_bit(heads: Path) -> None:
    alone = steps(0, str(heads))
    for shared in run_ranks(2, steps, str(heads)):
        assert isinstance(shared, dict), shared
        assert [name for name, value in alone.items() if not np.array_equal(value, shared[name])] == []


# ------------------------------------------------------------ sets without cameras


def test_a_set_without_labels_is_trained_and_measured_by_a_law(unposed: Path, tmp_path: Path) -> None:
    law = ("--pose=uniform", "--h-stddev=0.4", "--v-stddev=0.2")
    run_dir = train_run(unposed, tmp_path, "--preset=pigan-small", "--kimg=0.008", *law)
    network = snapshots(run_dir)[8]
    G = load_generator(network)
    assert G.geometry == SMALL.objective.changed(pose="uniform").pose_law.geometry
    assert -0.4 < G.info.yaw_limits[0] < -0.2 and 0.2 < G.info.yaw_limits[1] < 0.4
    run(calc_metrics.main, f"--network={network}", f"--outdir={tmp_path}", "--metrics=swd16", "--device=cpu",
        "--no-cache")  # fmt: skip
    run(train.main, f"--data={unposed}", f"--outdir={tmp_path}", *TRAIN, "--preset=pigan-small", "--kimg=0.016", *law,
        "--resume=latest")  # fmt: skip
    assert 16 in snapshots(run_dir)
    assert "it must hold the camera labels" in run(
        train.main, f"--data={unposed}", "--preset=pigan-small", "--dry-run", code=1
    )


def test_a_law_may_take_the_place_of_labels_that_agree_with_it(heads: Path) -> None:
    law = SMALL.objective.changed(pose="gaussian").pose_law
    own, drawn = ImageDataset(heads), ImageDataset(heads, pose_law=law)
    assert not np.array_equal(own.labels, drawn.labels) and drawn.geometry == law.geometry
    assert any("cameras are drawn by --pose=gaussian" in note for note in drawn.notes)
    for change, reason in (
        ({"fov": 30.0}, r"field of view is 13.4 degrees, the law's 30"),
        ({"theta_std": 1.5}, r"their spread of theta is"),
        ({"phi_mean": 0.7}, r"their mean phi is"),
    ):
        with pytest.raises(ValueError, match=f"--pose=gaussian contradicts the labels of .*: .*{reason}"):
            ImageDataset(heads, pose_law=SMALL.objective.changed(pose="gaussian", **change).pose_law)


def test_cameras_of_a_run_are_new_draws_of_the_law(heads: Path) -> None:
    config = resolve("pigan-small", data="")
    config = dataclasses.replace(config, objective=config.objective.changed(pose="spherical", theta_std=math.pi))
    stream = SampleStream(config, torch.zeros(3, 25), 6, torch.device("cpu"))
    labels = stream.camera_labels("G", range(100, 2100))
    assert torch.equal(labels[5:7], stream.camera_labels("G", range(105, 107)))
    cameras = Cameras.from_labels(labels)
    theta, _ = angles_of(cameras.positions)
    assert -math.pi / 2 <= float(theta.min()) < -1.4 and 4.5 < float(theta.max()) <= 3 * math.pi / 2
    assert abs(float(theta.mean()) - math.pi / 2) < 0.15
    xy, z = cameras.project(torch.zeros(2000, 1, 3))
    assert (xy - 0.5).abs().max() < 1e-4 and (z - config.objective.pose_law.geometry.radius).abs().max() < 1e-4


def test_a_spherical_law_is_even_over_the_sphere() -> None:
    law = PoseLaw("spherical", (math.pi / 2, math.pi), (math.pi / 2, math.pi / 2), 30.0)
    positions = Cameras.from_labels(law.labels(0, "test", range(4000))).positions
    ways = positions / positions.norm(dim=1, keepdim=True)
    assert ways.mean(0).abs().max() < 0.04
    torch.testing.assert_close(ways.t() @ ways / 4000, torch.eye(3) / 3, rtol=0, atol=0.03)


# ------------------------------------------------------------ presets, and what is refused


@pytest.mark.parametrize("name", FAMILIES["pigan"].presets)
def test_presets_are_built_and_consistent(name: str) -> None:
    config = resolve(name, data="")
    config.check()
    assert TrainingConfig.from_dict(config.to_dict()) == config
    with torch.device("meta"):
        G, D = Generator(config.generator), Discriminator(config.discriminator)
    sizes = {"pigan-celeba": 13_291_075, "pigan-cats": 12_805_489, "pigan-carla": 12_825_523}
    if name in sizes:
        assert sum(p.numel() for p in G.parameters()) == 1_910_788
        assert sum(p.numel() for p in D.parameters()) == sizes[name]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--pose=normal",), "legal are gaussian, uniform, spherical, truncated_gaussian, hybrid, and labels for"),
        (("--pose=gaussian", "--v-mean=4"), "--pose: phi 4 is out of range; legal are 0 to pi radians"),
        (("--pose=gaussian", "--h-mean=90"), "--pose: theta 90 is out of range"),
        (("--pose=gaussian", "--fov=200"), "--fov=200: must be greater than 0 and less than 180 degrees"),
        (("--pose=gaussian", "--fov=30"), "--pose=gaussian contradicts the labels"),
        (("--ray-start=1.3",), "--ray-start=1.3 and --ray-end=1.12: the first must be 0 or more, and be less"),
        (("--num-steps=3", "--fine-steps=-1"), "--fine-steps"),
        (("--set=discriminator.latent=5",), "discriminator.latent=5: with --pos-lambda or --z-lambda it must be the 6"),
        (("--disc-c-noise=0.5",), "--disc-c-noise=0.5: has no effect on pi-GAN"),
        (("--topk-v=0",), "objective.topk_least=0.0: must be greater than 0"),
        (("--set=generator.variant=small",), "generator.variant=small: legal are spatial, tall"),
        (("--set=discriminator.widths=4,8",), "images of 8 px: the discriminator reads powers of two from 4 to 4"),
    ],
)
def test_what_contradicts_is_refused(options: tuple[str, ...], reason: str, heads: Path) -> None:
    code = 2 if any(option.startswith("--fine-steps") for option in options) else 1
    said = run(train.main, f"--data={heads}", "--preset=pigan-small", "--dry-run", *options, code=code)
    assert reason in " ".join(said.split())
