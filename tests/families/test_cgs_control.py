"""CGS-GAN with a latent of named blocks: it trains, resumes, films its blocks, and is refused where it cannot work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gen_videos
import train
from gaussian import Rendering
from tests.families.runs import TRAIN, assert_equal, networks_after, run, snapshots, train_run
from tests.families.small_cgof import small_regressor
from tests.torch_utils.ranks import run_ranks
from training import losses, presets
from training.checkpoint import load_generator
from training.control.blocks import Blocks
from training.control.surface import Surface
from training.data.synthetic import expressions
from training.dataset import ImageDataset
from training.families.cgs.objective import CLEAR, CgsObjective
from training.morphable.head import procedural_head
from training.morphable.model import MODEL_BLOCKS
from training.morphable.rasterize import Painting

CONTROL = ("--preset=micro", "--controls=procedural", "--recon=1", "--surface=5", "--photo=5",
           "--batch=4", "--batch-gpu=4", "--mbstd-group=4")  # fmt: skip


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_regressor(tmp_path_factory.mktemp("regressor"), procedural_head().key)


@pytest.fixture(scope="module")
def whole(heads: Path, regressor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of 8 images."""
    return train_run(heads, tmp_path_factory.mktemp("whole"), *CONTROL, f"--regressor={regressor}", "--kimg=0.008")


def test_it_trains_and_resumes_bit_equal(heads: Path, regressor: Path, whole: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert {"Loss/G/recon", "Loss/G/surface", "Loss/G/photo"} <= set(lines[-1])
    assert all(line["Gradient/G/skipped"] == 0 for line in lines)
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, *CONTROL, f"--regressor={regressor}")
    run(train.main, *arguments, "--kimg=0.004")
    run(train.main, *arguments, "--kimg=0.008", "--resume=latest")
    found = {nimg: path for folder in tmp_path.iterdir() for nimg, path in snapshots(folder).items()}
    assert_equal(found[8], snapshots(whole)[8])


def steps(rank: int, heads: str, regressor: str) -> dict[str, np.ndarray]:
    """Networks after two steps of two micro-batches, in which all terms of control count."""
    config = presets.resolve("micro", data="")
    config = dataclasses.replace(
        config, batch=8, batch_gpu=4, discriminator=config.discriminator.changed(minibatch_std_group=4),
        generator=config.generator.changed(controls="procedural", map_depth=0),
        objective=config.objective.changed(
            recon_weight=1.0, surface_weight=5.0, photo_weight=10.0, regressor=regressor
        ),
    )  # fmt: skip
    return networks_after(config, ImageDataset(heads), (0, 8))


def test_two_ranks_take_the_steps_of_one_process_to_the_bit(heads: Path, regressor: Path) -> None:
    alone = steps(0, str(heads), str(regressor))
    for shared in run_ranks(2, steps, str(heads), str(regressor)):
        assert isinstance(shared, dict), shared
        assert [name for name, value in alone.items() if not np.array_equal(value, shared[name])] == []


def test_its_blocks_are_filmed(whole: Path, tmp_path: Path) -> None:
    network = snapshots(whole)[8]
    film = (f"--network={network}", f"--outdir={tmp_path}", "--device=cpu", "--w-frames=1", "--resolution=8")
    assert "expression-grid.png" in run(gen_videos.main, *film, "--seeds=0", "--control=expression")
    G = load_generator(network)
    assert isinstance(G.blocks, Blocks) and G.blocks.total == G.z_dim == 64


def test_a_network_of_one_piece_has_no_blocks_to_film(heads: Path, tmp_path: Path) -> None:
    plain = train_run(heads, tmp_path, "--preset=micro", "--kimg=0.004", "--batch=4", "--batch-gpu=4",
                      "--mbstd-group=4")  # fmt: skip
    film = (f"--network={snapshots(plain)[4]}", f"--outdir={tmp_path}", "--device=cpu", "--seeds=0")
    said = run(gen_videos.main, *film, "--control=expression", code=1)
    assert "the latents of this network have no named blocks; legal is pose" in " ".join(said.split())


@pytest.fixture
def asked(geometry: Any) -> tuple[CgsObjective, Any, Painting]:
    """An objective, a micro-batch of 2 scenes of 2 views, and what they ask for, of 32 pixels."""
    config = presets.resolve("cgs-control-tiny", data="")
    objective = object.__new__(CgsObjective)
    objective.G = SimpleNamespace(surface=Surface(procedural_head(), config.generator.blocks))
    z, yaws = torch.randn(2, config.generator.z_dim), torch.tensor([[0.1, -0.2], [-0.3, 0.4]])
    micro: Any = SimpleNamespace(g_z=z, g_cameras=geometry.orbit(yaws))
    return objective, micro, objective.G.surface.painted(z, micro.g_cameras, (32, 32))


def seen(found: Painting, depth: float = 0.0, colour: float = 0.0, alpha: float = 1.0) -> Rendering:
    """Returns pictures that are so far from what was asked for."""
    alphas = torch.full((2, 2, 1, 32, 32), alpha)
    rgb = (found.values + colour + 1).view(2, 2, 3, 32, 32) / 2
    return Rendering(rgb, alphas, alphas * (found.depth + depth).view(2, 2, 1, 32, 32))


def test_light_on_the_surface_costs_nothing_and_light_elsewhere_its_distance(asked: Any) -> None:
    objective, micro, found = asked

    def cost(**away: float) -> torch.Tensor:
        return objective._off_surface(seen(found, **away), micro)["surface"]

    assert cost().abs().max() < 1e-6
    torch.testing.assert_close(cost(depth=0.2), torch.full((2,), 0.2))
    torch.testing.assert_close(cost(alpha=0.25), torch.full((2,), 0.75 * CLEAR))


def test_other_colours_on_the_surface_cost_their_difference_and_those_beside_it_nothing(asked: Any) -> None:
    objective, micro, found = asked
    picture = seen(found, colour=0.3)
    beside = (found.share == 0).view(2, 2, 1, 32, 32)
    picture = Rendering(torch.where(beside, 0.9, picture.rgb), picture.alpha, picture.depth)
    torch.testing.assert_close(objective._off_surface(picture, micro)["photo"], torch.full((2,), 0.3))
    assert objective._off_surface(seen(found), micro)["photo"].abs().max() < 1e-6


def test_what_is_asked_for_is_what_the_pictures_of_the_set_show(geometry: Any) -> None:
    looks = expressions.sample_looks(0, range(4))
    model = procedural_head()
    z = torch.cat([model.whitened(block, getattr(looks, block)) for block in MODEL_BLOCKS], dim=1)
    cameras = geometry.orbit(torch.tensor([-0.3, 0.0, 0.2, 0.5]))
    images, _, depth = expressions.render(looks, cameras, 64, 2)
    sizes, start = {}, 0
    for block in MODEL_BLOCKS:
        sizes[block] = slice(start, start + model.sizes[block])
        start += model.sizes[block]
    found = Surface(model, Blocks(sizes)).painted(z, cameras[:, None], (64, 64))
    whole = found.share > losses.WHOLE
    away = (found.values - (2 * images - 1)).abs().amax(1)[whole]
    assert whole.float().mean() > 0.05
    assert away.quantile(0.95) < 0.05  # normals differ at the edge of the face, and hair hides a little of it
    assert (found.depth - depth[:, 0]).abs()[whole].quantile(0.95) < 1e-3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--recon=1",), "--recon=1.0: needs a latent of named blocks, --controls=procedural or a file"),
        (("--photo=1",), "--photo=1.0: needs a latent of named blocks"),
        (("--surface=1",), "--surface=1.0: needs a latent of named blocks"),
        (("--controls=none.npz",), "--controls=none.npz: no such file"),
        (("--controls=procedural",), "--controls=procedural: nothing asks for its blocks; give --photo"),
        (("--controls=procedural", "--set=generator.z_dim=50"), "have 49 numbers, and 2 more are needed"),
        (("--controls=procedural", "--recon=1", "--regressor=none.pt"), "--regressor=none.pt: no such file"),
    ],
)
def test_what_contradicts_is_refused(options: tuple[str, ...], reason: str, heads: Path) -> None:
    said = run(train.main, f"--data={heads}", "--preset=micro", "--dry-run", *options, code=1)
    assert reason in " ".join(said.split())
