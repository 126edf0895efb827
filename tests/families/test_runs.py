"""Families that only these tests know: each trains, goes on bit-equal, and is measured, filmed, drawn and reported."""

from __future__ import annotations

import json
import os
import signal
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
from gaussian import Gaussians, load_ply
from metrics.measuring import measure_metrics
from tests.families import told
from tests.families.runs import TRAIN, assert_equal, run, snapshots, train_run
from training import checkpoint, measure, presets
from training.checkpoint import load_checkpoint, load_discriminator, load_generator
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.runs import launch, monitor
from training.runs.transfer import init_from, read_weights
from training.safety.requests import EXIT_STOPPED
from training.step import GanStep

PRESETS = ("ball", "speck", "grown")
LENGTH = 48  # images; ticks end after 8, 24, 40 and 48 of them
STOPPED_IN_STEP = 1  # in the middle of a tick, and of the first stage of two


@pytest.fixture(scope="module")
def whole(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of one uninterrupted run of each preset."""
    outdir = tmp_path_factory.mktemp("whole")
    return {name: train_run(heads, outdir / name, f"--preset={name}", "--kimg=0.048") for name in PRESETS}


@pytest.fixture(scope="module")
def trained(whole: dict[str, Path]) -> dict[str, Path]:
    """The last checkpoint of each."""
    return {name: snapshots(run_dir)[LENGTH] for name, run_dir in whole.items()}


def statistics(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert all(line.pop("timing") for line in lines)
    return lines


# ------------------------------------------------------------ training


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stopped_run_goes_on_bit_equal(
    preset: str, heads: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, all averages, optimisers and every line of statistics; "grown" changes its stage after the stop."""
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, f"--preset={preset}", "--kimg=0.048")
    original = GanStep.run

    def stopped(self: GanStep, step: int, *rest: Any) -> Any:
        if step == STOPPED_IN_STEP:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(GanStep, "run", stopped)
        assert "stopped after step 2" in run(train.main, *arguments, code=EXIT_STOPPED)
    assert "at 0.016 kimg, step 2" in run(train.main, *arguments, "--resume=latest")
    (run_dir,) = tmp_path.iterdir()
    assert_equal(snapshots(run_dir)[LENGTH], snapshots(whole[preset])[LENGTH])
    assert statistics(run_dir) == statistics(whole[preset])
    assert (run_dir / "fakes000000.png").read_bytes() == (whole[preset] / "fakes000000.png").read_bytes()


def test_the_networks_learn_and_say_so(whole: dict[str, Path], trained: dict[str, Path]) -> None:
    for name in PRESETS:
        first, last = (load_checkpoint(snapshots(whole[name])[n]) for n in (8, LENGTH))
        for network in ("G", "D", "G_ema"):
            unchanged = {key for key, value in first[network].items() if torch.equal(value, last[network][key])}
            # What all logits share has no gradient where a real and a generated one are compared.
            assert unchanged == ({"b4.out.bias"} if (name, network) == ("speck", "D") else set()), (name, network)
    lines = statistics(whole["ball"])
    assert {"Loss/G/adversarial", "Loss/D/real", "Loss/D/fake", "Balls/radius", "Gradient/G/norm"} <= set(lines[-1])
    assert not any(name.startswith("Gaussians/") for name in lines[-1])


def test_two_averages_are_kept(heads: Path, tmp_path: Path) -> None:
    """Each moves by its own decay; --init-from starts both."""
    run_dir = train_run(heads, tmp_path / "first", "--preset=told", "--kimg=0.016", "--tick=0.008", "--img-snap=9")
    before, state = (load_checkpoint(path) for path in snapshots(run_dir).values())  # a step apart
    for name, decay in (("G_ema", 0.9), ("G_slow", 0.99)):
        for key, value in state[name].items():
            torch.testing.assert_close(value, before[name][key].lerp(state["G"][key], 1 - decay), rtol=1e-5, atol=1e-7)
    source = snapshots(run_dir)[16]
    averages = torch.nn.ModuleDict({name: load_generator(source) for name in ("G_ema", "G_slow")})
    init_from(read_weights(str(source), TrainingConfig.from_dict(state["config"]), 1.0), dict(averages.items()), 1.0)
    for name, average in averages.items():
        assert all(torch.equal(value, state[name][key]) for key, value in average.state_dict().items()), name
    new = train_run(heads, tmp_path / "new", "--preset=told", "--kimg=0.008", f"--init-from={source}", "--img-snap=9")
    started = load_checkpoint(snapshots(new)[8])
    for name in ("G", "G_ema", "G_slow"):
        for key, value in started[name].items():
            torch.testing.assert_close(value, state[name][key], rtol=0, atol=0.01)  # after a step of --glr=0.0025
    assert not torch.equal(started["G_ema"]["to_w.weight"], started["G_slow"]["to_w.weight"])


def test_a_truncation_centre_moves_where_the_objective_says_so(trained: dict[str, Path]) -> None:
    G, state = load_generator(trained["speck"]), load_checkpoint(trained["speck"])
    z = torch.randn(3, G.z_dim)
    assert state["G"]["w_avg"].abs().max() > 0 and torch.equal(state["G"]["w_avg"], state["G_ema"]["w_avg"])
    assert torch.equal(G.mapping(z, psi=0), state["G"]["w_avg"].expand(3, 1, -1))
    ball_G = load_generator(trained["ball"])  # whose losses have no ws
    assert not ball_G.mapping(torch.randn(3, ball_G.z_dim), psi=0).any()


def test_stages_have_resolutions_batches_and_rates_of_their_own(whole: dict[str, Path]) -> None:
    config = TrainingConfig.from_dict(json.loads((whole["grown"] / "training_options.json").read_text()))
    assert config.stages == told.STAGES and config.resolution == 32
    steps = {nimg: load_checkpoint(path)["progress"]["step"] for nimg, path in snapshots(whole["grown"]).items()}
    assert steps == {8: 1, 24: 3, 40: 6, 48: 8}  # of 8 images up to 32, then of 4
    log = (whole["grown"] / "log.txt").read_text()
    assert "from 0.032 kimg: 32 px, batch 4, 2 at once, learning rates 0.001 and 0.0005" in " ".join(log.split())
    pixels = {state["nimg"]: state for state in statistics(whole["grown"])}
    assert pixels.keys() == steps.keys()


def test_the_images_of_a_stage_have_its_size(heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, float]] = []
    judge, step = told.Discriminator.outputs, GanStep.run

    def judged(self: told.Discriminator, images: torch.Tensor, *rest: Any) -> Any:
        seen.append((images.shape[-1], len(images), 0.0))
        return judge(self, images, *rest)

    def stepped(self: GanStep, *arguments: Any) -> Any:
        start, result = len(seen), step(self, *arguments)
        rate = self.optimizers["G"].param_groups[0]["lr"]
        seen[start:] = [(pixels, count, rate) for pixels, count, _ in seen[start:]]
        return result

    monkeypatch.setattr(told.Discriminator, "outputs", judged)
    monkeypatch.setattr(GanStep, "run", stepped)
    train_run(heads, tmp_path, "--preset=grown", "--kimg=0.036", "--img-snap=99")
    # Of each micro-batch both views of G's scenes, then D's fakes and reals as one: one of 8 in 4 steps, then two of 2.
    first, last = [(16, 16, 0.002)] * 2, [(32, 4, 0.001)] * 4
    assert seen == first * 4 + last


# ------------------------------------------------------------ which camera a mapping is told


def forget_pairs() -> None:
    """Forgets what other tests told: they may render a scene more than once."""
    told.Generator.mapped.clear()
    told.Generator.rendered.clear()


def told_pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns the labels that mapping [B, 25] and render [B, V, 25] were told, call by call, and forgets them."""
    pairs = [(m.labels, r.labels) for m, r in zip(told.Generator.mapped, told.Generator.rendered, strict=True)]
    forget_pairs()
    return pairs


def test_training_tells_the_first_view_and_pictures_the_frontal_camera(heads: Path, tmp_path: Path) -> None:
    forget_pairs()
    run_dir = train_run(heads, tmp_path, "--preset=told", "--kimg=0.016")
    pairs = told_pairs()
    frontal = load_generator(snapshots(run_dir)[16]).geometry.frontal().labels
    grid = monitor.GRID_ROWS, monitor.GRID_COLUMNS
    pictures = [(m, r) for m, r in pairs if r.shape[:2] == grid]
    steps = [(m, r) for m, r in pairs if r.shape[:2] != grid]
    assert [r.shape[1] for _, r in steps] == [2, 2, 1, 1] * 2 and len(pictures) == 2  # micro-batches of G, then of D
    assert all(torch.equal(m, r[:, 0]) for m, r in steps)
    assert all(torch.equal(m, frontal.expand(grid[0], 25)) for m, _ in pictures)


def test_films_and_samples_tell_the_frontal_camera_and_metrics_the_rendering_one(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    network = trained["grown"]
    frontal = load_generator(network).geometry.frontal().labels
    forget_pairs()
    run(gen_samples.main, f"--network={network}", f"--outdir={tmp_path}", "--seeds=0-1", "--device=cpu")
    ((mapped, rendered),) = told_pairs()
    assert torch.equal(mapped, frontal.expand(2, 25)) and rendered.shape[:2] == (2, 7)
    film(network, tmp_path, "--seeds=0-1", "--w-frames=2", "--grid=2x1")
    ((mapped, rendered),) = told_pairs()
    assert torch.equal(mapped, frontal.expand(2, 25)) and not torch.equal(rendered[0, 0], rendered[0, 1])
    score(network, tmp_path)
    pairs = told_pairs()
    assert pairs and all(torch.equal(m, r[:, 0]) for m, r in pairs)
    assert len(torch.cat([m for m, _ in pairs]).unique(dim=0)) > 4


# ------------------------------------------------------------ the other scripts


def film(network: Path, outdir: Path, *options: str, code: int = 0) -> str:
    return run(gen_videos.main, f"--network={network}", f"--outdir={outdir}", "--device=cpu", *options, code=code)


def score(network: Path, outdir: Path) -> dict[str, Any]:
    arguments = (f"--network={network}", f"--outdir={outdir}", "--metrics=swd16", "--device=cpu", "--no-cache")
    run(calc_metrics.main, *arguments)
    result: dict[str, Any] = json.loads((outdir / "metric-swd16.jsonl").read_text().splitlines()[-1])
    return result


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoint_is_loaded_measured_filmed_drawn_and_reported(
    preset: str, whole: dict[str, Path], trained: dict[str, Path], tmp_path: Path
) -> None:
    network = trained[preset]
    G, D = load_generator(network), load_discriminator(network)
    image = G(torch.randn(2, G.z_dim), G.geometry.orbit(torch.zeros(2, 1))).image[:, 0]
    assert D(image, G.geometry.frontal().labels.expand(2, 25)).shape == (2, 1)
    assert 0 < score(network, tmp_path)["results"]["swd16"] < 10_000
    options = ("--seeds=0-3", "--w-frames=2", "--grid=2x1", "--show=image,alpha,depth,normals")
    assert f"{network.stem}-orbit" in film(network, tmp_path, *options)
    printed = run(gen_samples.main, f"--network={network}", f"--outdir={tmp_path}", "--seeds=0-1", "--images")
    assert f"{network.stem}-samples.png" in printed and ("seed0001.ply" in printed) == (preset == "speck")
    page = Path(run(report.main, whole[preset], f"--out={tmp_path / 'page.html'}").strip()).read_text()
    assert "<svg" in page and ("Radius of the balls" in page) == (preset != "speck")
    assert "Regularisers of G" not in page


def test_splats_are_exported_and_looked_into(trained: dict[str, Path], tmp_path: Path) -> None:
    network = trained["speck"]
    run(gen_samples.main, f"--network={network}", f"--outdir={tmp_path}", "--seeds=3", "--trunc=1")
    G = load_generator(network)
    scene = G.synthesis(G.mapping(torch.from_numpy(_latent(3, G.z_dim))))
    assert isinstance(scene, Gaussians)
    torch.testing.assert_close(load_ply(tmp_path / f"{network.stem}-seed0003.ply").sh, scene.sh, rtol=0, atol=1e-6)
    film(network, tmp_path, "--seeds=0", "--w-frames=1", "--opaque", "--scale=0.5")


def test_a_file_is_gone_on_from_with_the_options_of_its_family(
    trained: dict[str, Path], heads: Path, tmp_path: Path
) -> None:
    """Without --preset, where the images' resolution would pick another family's preset."""
    given = (
        f"--resume={trained['ball']}",
        "--radius=0.2",
        "--set=objective.gamma=0.5",
        "--dry-run",
        f"--outdir={tmp_path}",
    )
    for more in ((), ("--gpus=2",)):
        config = json.loads(run(train.main, f"--data={heads}", *given, *more))
        assert (config["family"], config["preset"], config["objective"]["gamma"]) == ("balls", "ball", 0.5)
    latest = (f"--data={heads}", f"--outdir={trained['ball'].parent}", "--resume=latest", "--knn-dists=0", "--dry-run")
    assert "--knn-dists is an option of the family cgs" in run(train.main, *latest, code=2)


def test_a_file_of_an_unknown_family_is_refused_with_its_path(
    trained: dict[str, Path], heads: Path, tmp_path: Path
) -> None:
    state = load_checkpoint(trained["ball"])
    for config, reason in (
        (state["config"] | {"family": "martians"}, "unknown family 'martians'; legal are cgs"),
        (state["config"] | {"family": ["balls"]}, "['balls'] is no name of a family"),
        (state["config"] | {"generator": None}, "None is no record"),
        (state["config"] | {"stages": [3]}, "3 is no record"),
        (None, "damaged, it does not say what its run was"),
    ):
        path = tmp_path / "network.pkl"
        checkpoint.save_checkpoint(path, {k: v for k, v in state.items() if k != "checksum"} | {"config": config})
        said = run(train.main, f"--data={heads}", f"--resume={path}", "--dry-run", code=1)
        assert f"{path}: " in said and reason in said, said
        with pytest.raises(checkpoint.CheckpointError, match=r"network\.pkl: "):
            load_generator(path)


def _latent(seed: int, z_dim: int) -> Any:
    return np.random.RandomState(seed).randn(1, z_dim).astype(np.float32)


@pytest.mark.parametrize(
    ("preset", "option", "reason"),
    [
        ("ball", "--levels=0", "--levels: the scenes of this network have no splats to show"),
        ("ball", "--opaque", "--opaque: the scenes of this network have no splats to show"),
        ("speck", "--levels=0", "--levels: the scenes of this network have no levels and no anchors to show"),
        ("speck", "--anchors", "--anchors: the scenes of this network have no levels and no anchors to show"),
    ],
)
def test_views_that_a_family_lacks_are_refused(
    preset: str, option: str, reason: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    assert reason in film(trained[preset], tmp_path, "--seeds=0", "--w-frames=1", option, code=1)


@pytest.mark.parametrize(
    ("preset", "choice", "reason"),
    [
        ("ball", "scene", "--splats=scene: the scenes of this network are no splats"),
        ("speck", "levels", "--splats=levels: the scenes of this network have no levels"),
    ],
)
def test_splats_that_a_family_lacks_are_refused(
    preset: str, choice: str, reason: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    arguments = (f"--network={trained[preset]}", f"--outdir={tmp_path}", "--seeds=0", f"--splats={choice}")
    assert reason in run(gen_samples.main, *arguments, code=1)


def test_a_checkpoint_is_made_smaller_and_has_no_published_layout(trained: dict[str, Path], tmp_path: Path) -> None:
    small = tmp_path / "small.pkl"
    run(convert_checkpoint.main, trained["grown"], small, "--ema-only")
    whole, kept = load_checkpoint(trained["grown"]), load_checkpoint(small)
    assert kept["G_ema"] and not kept["G"] and set(whole) - set(kept) == {"G_slow", "objective", "statistics"}
    ws = torch.randn(1, 1, 8)
    before, after = (load_generator(path).synthesis(ws) for path in (trained["grown"], small))
    assert torch.equal(before.values, after.values)
    refusal = run(convert_checkpoint.main, trained["ball"], tmp_path / "other.pkl", "--to=published", code=1)
    assert "the family 'balls' has no published layout" in refusal


def test_measuring_knows_stages_and_scenes_of_other_kinds(heads: Path, tmp_path: Path) -> None:
    """What a process of --measure does; the process itself knows no family of the tests."""
    dataset = ImageDataset(str(heads))
    fields = {"metrics": ("swd16",), "total_kimg": 0.048}
    config = launch.resolve_config(dataset, str(heads), preset="grown", fields=fields)
    found = measure._run(config, torch.device("cpu"), 0, tmp_path, measure_metrics)
    assert found.step_sec > 0 and not found.lazy and found.metrics.sec.keys() == {"swd16"}
    assert "of grown" in measure.report(found, config, 1)


def test_the_table_of_presets_has_them_all() -> None:
    assert {"ball", "speck", "told", "grown"} < set(presets.presets())
