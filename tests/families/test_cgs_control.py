"""CGS-GAN with a latent of named blocks: it trains, resumes, films its blocks, and is refused where it cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gen_videos
import train
from gaussian import Rendering
from tests.families.runs import TRAIN, assert_equal, run, snapshots, train_run
from tests.families.small_cgof import small_regressor
from training import presets
from training.checkpoint import load_generator
from training.control.blocks import Blocks
from training.control.surface import Surface
from training.families.cgs.objective import CLEAR, CgsObjective
from training.morphable.head import procedural_head
from training.morphable.rasterize import rasterize

CONTROL = ("--preset=micro", "--controls=procedural", "--recon=1", "--surface=5", "--batch=4", "--batch-gpu=4",
           "--mbstd-group=4")  # fmt: skip


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_regressor(tmp_path_factory.mktemp("regressor"), procedural_head().key)


@pytest.fixture(scope="module")
def whole(heads: Path, regressor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of 8 images."""
    return train_run(heads, tmp_path_factory.mktemp("whole"), *CONTROL, f"--regressor={regressor}", "--kimg=0.008")


def test_it_trains_and_resumes_bit_equal(heads: Path, regressor: Path, whole: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert {"Loss/G/recon", "Loss/G/surface"} <= set(lines[-1])
    assert all(line["Gradient/G/skipped"] == 0 for line in lines)
    arguments = (f"--data={heads}", f"--outdir={tmp_path}", *TRAIN, *CONTROL, f"--regressor={regressor}")
    run(train.main, *arguments, "--kimg=0.004")
    run(train.main, *arguments, "--kimg=0.008", "--resume=latest")
    found = {nimg: path for folder in tmp_path.iterdir() for nimg, path in snapshots(folder).items()}
    assert_equal(found[8], snapshots(whole)[8])


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


def test_light_on_the_surface_costs_nothing_and_light_elsewhere_its_distance(geometry: Any) -> None:
    config = presets.resolve("cgs-control-tiny", data="")
    G = SimpleNamespace()
    G.surface = Surface(procedural_head(), config.generator.blocks)
    objective = object.__new__(CgsObjective)
    objective.G = G
    z = torch.randn(2, config.generator.z_dim)
    cameras = geometry.orbit(torch.tensor([[0.1], [-0.3]], dtype=torch.float32))
    vertices = G.surface.vertices(G.surface.shape(z))
    found = rasterize(vertices, procedural_head().triangles, cameras.reshape(2), 32)
    micro: Any = SimpleNamespace(g_z=z, g_cameras=cameras)

    def cost(depth: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
        alphas = torch.full((2, 1, 1, 32, 32), alpha)
        picture = Rendering(torch.zeros(2, 1, 3, 32, 32), alphas, alphas * depth[:, None, None])
        return objective._off_surface(picture, micro)

    assert cost(found.depth).abs().max() < 1e-6
    torch.testing.assert_close(cost(found.depth + 0.2), torch.full((2,), 0.2))
    torch.testing.assert_close(cost(found.depth, 0.25), torch.full((2,), 0.75 * CLEAR))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--recon=1",), "--recon=1.0: needs a latent of named blocks, --controls=procedural or a file"),
        (("--surface=1",), "--surface=1.0: needs a latent of named blocks"),
        (("--controls=none.npz",), "--morphable=none.npz: no such file"),
        (("--controls=procedural", "--set=generator.z_dim=50"), "have 49 numbers, and 2 more are needed"),
        (("--controls=procedural", "--recon=1", "--regressor=none.pt"), "--regressor=none.pt: no such file"),
    ],
)
def test_what_contradicts_is_refused(options: tuple[str, ...], reason: str, heads: Path) -> None:
    said = run(train.main, f"--data={heads}", "--preset=micro", "--dry-run", *options, code=1)
    assert reason in " ".join(said.split())
