"""Classes of images: what belongs to a sample, what both networks are told, and a run from data to pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import calc_metrics
import extract_mesh
import gen_samples
import gen_videos
import train
from tests.families.runs import TRAIN, assert_equal, run, snapshots, train_run
from tests.torch_utils.ranks import run_ranks
from tests.training.families.epigraf.golden import entry
from tests.training.families.epigraf.small import (
    classes_of,
    discriminator_config,
    generator_config,
    make_step,
    poses,
    run_config,
)
from torch_utils import distributed
from training import presets
from training.checkpoint import load_checkpoint, load_generator
from training.config import TrainingConfig
from training.dataset import Batch
from training.families import FAMILIES
from training.families.base import Preset, RunFields, StepContext
from training.families.epigraf.presets import ANYWHERE, unit
from training.networks.base import Conditioning
from training.samples import SampleStream
from training.visualization import latents

COUNT = 3  # classes


def config_of(batch_gpu: int = 4, **changes: Any) -> TrainingConfig:
    """A run of networks of three classes."""
    G = generator_config(noise_fade_kimg=0.2, num_classes=COUNT)
    D = discriminator_config(num_classes=COUNT, minibatch_std_group=1)
    return run_config(batch_gpu, **{"generator": G, "discriminator": D, **changes})


# ---------------------------------------------------------------- steps


def test_published_classes_of_seeds() -> None:
    expected = entry("schedules_and_laws/class_of_seeds_0_to_9_of_10")
    assert latents.seed_classes(list(range(10)), 10).tolist() == expected


def test_generated_images_have_class_and_camera_of_one_item() -> None:
    """Classes are drawn as the data have them, with their cameras."""
    config = config_of(mirror=False)
    labels, classes = poses(24).labels, classes_of(config)
    assert classes is not None
    counts, drawn = torch.bincount(classes), torch.zeros(COUNT)
    stream = SampleStream(config, labels, 16, torch.device("cpu"), classes)
    for nimg in range(0, 1200, 8):
        batch = Batch(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), None, labels[stream.items(nimg)])
        for part in stream.micro_batches(nimg, batch):
            for whose, seen in (("G", part.g_labels[:, 0]), ("fake", part.d_labels), ("real", part.real_labels)):
                items = (seen[:, None] == labels).all(-1).int().argmax(1)
                assert torch.equal(part.classes[whose], classes[items]), whose
            drawn += torch.bincount(part.classes["fake"], minlength=COUNT)
    share = drawn / drawn.sum()
    assert (share - counts / counts.sum()).abs().max() < 0.05  # of 1200 draws; a standard deviation is 0.014


def test_networks_are_told_them() -> None:
    step, micro = make_step(config_of(), nimg=96)
    game, told_d, told_g = step.objective, [], []
    judge, mapped = game.D.outputs, game.G.mapped

    def outputs(images: Tensor, told: Conditioning, groups: int | None = None) -> Any:
        told_d.append(told.classes)
        return judge(images, told, groups)

    def mapping(z: Tensor, code: Any, psi: float = 1.0, classes: Tensor | None = None) -> Tensor:
        told_g.append(classes)
        return mapped(z, code, psi, classes)

    game.D.outputs, game.G.mapped = outputs, mapping
    part = micro[0]
    at = StepContext(96, part.draws, part.classes)
    for losses in (game.generator_losses, game.discriminator_losses, game.r1_losses):
        list(losses(part, at))
    g, both, penalised = told_d
    assert torch.equal(g, part.classes["G"]) and torch.equal(penalised, part.classes["real"])
    assert torch.equal(both[0::2], part.classes["fake"]) and torch.equal(both[1::2], part.classes["real"])
    assert [torch.equal(a, part.classes[b]) for a, b in zip(told_g, ("G", "fake"), strict=True)] == [True, True]
    images, others = torch.randn(4, 3, 8, 8), {name: (c + 1) % COUNT for name, c in part.classes.items()}
    game.D.outputs = judge
    one, two = (
        game.judge(images, part.d_labels, StepContext(96, part.draws, c), "fake") for c in (part.classes, others)
    )
    assert (one - two).abs().min() > 1e-6


def gradients(batch_gpu: int) -> dict[str, Tensor]:
    step, micro = make_step(config_of(batch_gpu), nimg=96)
    found = {}
    for phase in step.phases:
        step.accumulate(phase, 96, micro)
        found |= {f"{phase.name}/{n}": p.grad for n, p in phase.module.named_parameters() if p.grad is not None}
    return found


def test_gradients_do_not_depend_on_the_split() -> None:
    whole, parts = gradients(8), gradients(4)
    for name, value in whole.items():
        if value.norm() > 1e-9:
            assert (parts[name] - value).norm() / value.norm() < 2e-3, name


def three_steps(rank: int) -> dict[str, Any]:
    step, micro = make_step(config_of())
    for number in range(3):
        step.run(number, 96 + 8 * number, micro)
    networks = {"G": step.G, "D": step.objective.D}
    return {f"{key}.{n}": t.numpy() for key, net in networks.items() for n, t in net.state_dict().items()}


def test_steps_of_two_ranks_are_those_of_one_process_to_the_bit() -> None:
    alone = three_steps(0)
    for shared in run_ranks(2, three_steps):
        assert all(np.array_equal(shared[name], value) for name, value in alone.items())


def test_real_and_generated_images_of_a_pair_have_one_class() -> None:
    step, micro = make_step(config_of(objective={"loss": "relativistic"}), nimg=96)
    for part in micro:
        assert torch.equal(part.classes["G"], part.classes["real"])
        assert torch.equal(part.classes["fake"], part.classes["real"])
    assert step.objective.settings.paired


def test_published_presets_of_things() -> None:
    """The law of the cameras, and what networks are with the classes that their data have."""
    for preset, count, G_size, D_size in (
        ("epigraf-plants256", 198, 29_347_539, 27_545_856), ("epigraf-food256", 10, 29_251_283, 27_449_600),
    ):  # fmt: skip
        config = presets.resolve(preset, data="")
        law = config.objective.pose_law
        assert (law.name, law.theta, law.phi) == ("spherical", (np.pi / 2, np.pi), (np.pi / 2,) * 2)
        assert law.fov == pytest.approx(30 * 256 / 255, abs=0.01)  # between the outermost pixels' middles: 30
        G = dataclasses.replace(config.generator, num_classes=count)
        D = dataclasses.replace(config.discriminator, num_classes=count)
        with torch.device("meta"):
            networks = FAMILIES["epigraf"].generator(G), FAMILIES["epigraf"].discriminator(D)
        assert [sum(p.numel() for p in n.parameters()) for n in networks] == [G_size, D_size]
        heights = law.cameras(*(2 * torch.rand(2, 4000, dtype=torch.float64) - 1)).positions[:, 1] / law.geometry.radius
        assert abs(float(heights.mean())) < 0.03 and abs(float(heights.std()) - 1 / np.sqrt(3)) < 0.02


# ---------------------------------------------------------------- a run

ARGUMENTS = ("--preset=epigraf-things", "--kimg=0.024", "--tick=0.008")


@pytest.fixture(scope="module", autouse=True)
def preset() -> Iterator[None]:
    """Makes a member of 16 px known while the tests run, for things seen from everywhere."""
    fields = RunFields(batch=8, batch_gpu=4, background="white")
    G = generator_config(
        unit=unit(30.0), cube_scale=0.475, ray_start=0.75, ray_end=1.25, noise_fade_kimg=0.03, published_keys=False
    )
    D = discriminator_config(published_keys=False)
    objective = run_config().objective.changed(anneal_kimg=0.03, fov=30.0, **ANYWHERE)
    known, small = FAMILIES["epigraf"], Preset(G, D, objective, fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "usable_cores", lambda: 1)
        patch.setitem(
            FAMILIES, "epigraf", dataclasses.replace(known, presets={**known.presets, "epigraf-things": small})
        )
        yield


def write_things(folder: Path, count: int, classes: Any, **more: Any) -> Path:
    """Pictures of 16 px of discs on white: a colour for each class."""
    folder.mkdir()
    rows, columns = np.mgrid[:16, :16]
    for i in range(count):
        picture = np.full((16, 16, 3), 255, np.uint8)
        picture[(rows - 8) ** 2 + (columns - 8) ** 2 < 20 + i] = [(200, 40, 40), (40, 200, 40), (40, 40, 200)][i % 3]
        Image.fromarray(picture).save(folder / f"{i:05d}.png")
    labels = None if classes is None else {f"{i:05d}.png": c for i, c in enumerate(classes)}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **more}))
    return folder


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("things") / "set", 12, [i % 3 for i in range(12)])


@pytest.fixture(scope="module")
def whole(things: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(things, tmp_path_factory.mktemp("whole"), *ARGUMENTS)


def test_a_run_takes_its_classes_from_the_data_and_goes_on_bit_equal(things: Path, whole: Path, tmp_path: Path) -> None:
    state = load_checkpoint(snapshots(whole)[24])
    assert state["config"]["generator"]["num_classes"] == state["config"]["discriminator"]["num_classes"] == 3
    assert state["grid"]["classes"].shape == (6,)
    part = train_run(things, tmp_path, *ARGUMENTS, "--minutes=0.0001")
    assert max(snapshots(part)) < 24
    run(train.main, f"--data={things}", f"--outdir={tmp_path}", *TRAIN, *ARGUMENTS, "--resume=latest")
    assert_equal(snapshots(part)[24], snapshots(whole)[24])
    G, one_hot = load_generator(snapshots(whole)[24]), torch.arange(3)
    ws = G.mapping(torch.ones(3, G.z_dim), psi=0.7, classes=one_hot)[:, 0]
    assert (ws[0] - ws[1]).norm() > 1e-3 and (ws[1] - ws[2]).norm() > 1e-3


def test_it_is_measured_drawn_and_filmed_by_class(things: Path, whole: Path, tmp_path: Path) -> None:
    network, common = f"--network={snapshots(whole)[24]}", (f"--outdir={tmp_path}", "--device=cpu")
    printed = run(calc_metrics.main, network, *common, "--metrics=swd16", "--no-cache")
    assert '"cameras": "of random data items, with their classes"' in printed
    drawn = run(gen_samples.main, network, *common, "--seeds=4,5", "--class=0-2", "--yaws=0", "--images")
    assert "seed0004-class000" in drawn and "seed0005-class002" in drawn
    run(gen_videos.main, network, *common, "--seeds=4", "--class=1,2", "--w-frames=2")
    run(
        extract_mesh.main, network, *common, "--seeds=4", "--class=1", "--resolution=8", "--level=0.001", "--format=npz"
    )
    assert any("seed0004-class001" in path.name for path in tmp_path.iterdir())
    G = load_generator(snapshots(whole)[24])
    heads = latents.seed_heads(G, [4, 5], 0.7, "0-2")
    assert heads.classes is not None and heads.classes.tolist() == [0, 1, 2, 0, 1, 2]
    ws = latents.still_ws(G, heads)
    film = latents.film_ws(G, heads, cells=2, num_frames=3, told=G.geometry.orbit(torch.zeros(3)))
    torch.testing.assert_close(
        film[:, 0], ws[:3], rtol=0, atol=1e-4
    )  # keyframes in turn; their mapping heeds no camera
    torch.testing.assert_close(film[:, 1], ws[3:], rtol=0, atol=1e-4)


def refused(things: Path, tmp_path: Path, *options: str) -> str:
    return run(train.main, f"--data={things}", f"--outdir={tmp_path}", *TRAIN, *ARGUMENTS, *options, code=1)


def test_what_does_not_fit_is_refused(things: Path, whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[24]
    plain = write_things(tmp_path / "plain", 4, None)
    four = write_things(tmp_path / "four", 12, [i % 4 for i in range(12)])
    torn = write_things(tmp_path / "torn", 4, [0, 1, 2])
    runs, resume = tmp_path / "runs", f"--resume={network}"
    assert "generator.num_classes=3: the images in" in refused(plain, runs, resume)
    assert "have 4 classes; networks keep the classes that they were made for" in refused(four, runs, resume)
    assert "--use-labels=False leaves no classes" in refused(things, runs, resume, "--use-labels=False")
    assert "00003.png: every image needs a class" in refused(torn, runs)
    assert "discriminator.num_classes=0: the images in" in refused(things, runs, "--set=generator.num_classes=3")
    assert "--disc-camera=raw: with --pose=spherical nobody knows" in refused(things, runs, "--disc-camera=raw")
    command = (f"--network={network}", f"--outdir={tmp_path}", "--device=cpu")
    unmeasured = run(calc_metrics.main, *command, f"--data={plain}", "--metrics=swd4", code=1)
    assert "the network knows 3 classes, and the images of plain have none" in unmeasured
    for script in (gen_samples, gen_videos, extract_mesh):
        assert "--class=3: 3 is out of range; this network has 0 to 2" in run(
            script.main, *command, "--class=3", code=1
        )


def test_a_run_without_them_says_so_once(things: Path, tmp_path: Path) -> None:
    command = (f"--data={things}", f"--outdir={tmp_path}", *TRAIN, *ARGUMENTS, "--use-labels=False", "--kimg=0.008")
    said = run(train.main, *command)
    assert said.count("3 classes in the labels are not used as --use-labels=False says") == 1
    (run_dir,) = tmp_path.iterdir()
    assert load_generator(max(snapshots(run_dir).values())).num_classes == 0
