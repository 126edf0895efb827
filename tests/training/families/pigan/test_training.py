"""Two iterations of the released loop, from step 1000 on, from known weights, images and draws, in float64."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gaussian import Cameras
from tests.training.families.hashes import noise
from tests.training.families.pigan.golden import WHOLE, Hashed, check, fill
from torch_utils.random import Draws
from torch_utils.training_stats import Collector
from training.data.poses import orbit
from training.families.pigan.config import GeneratorConfig
from training.families.pigan.discriminator import Discriminator, DiscriminatorConfig
from training.families.pigan.generator import Generator
from training.families.pigan.objective import PiganObjective, PiganObjectiveConfig, ema_share
from training.fields import marching
from training.fields.marching import RayDraws
from training.samples import MicroBatch, Stage
from training.step import GanStep

GOLDEN: dict[str, Any] = WHOLE["training"]
BATCH, SPLIT, SIZE, SAMPLES, FIRST = 8, 2, 32, 6, 1000
LONG = pytest.mark.skipif(not os.environ.get("SPLATGAN_LONG"), reason="two minutes; SPLATGAN_LONG=1 runs it")
LAW = PiganObjectiveConfig(pose="gaussian").pose_law
assert LAW is not None


class Iterations:
    """Draws what the published loop draws, in its order: D's images, then G's, micro-batch by micro-batch."""

    def __init__(self) -> None:
        self.hashed = Hashed(normals=2)  # two are spent before the loop

    def micro_batches(self, i: int) -> tuple[list[MicroBatch], list[RayDraws]]:
        real = noise((BATCH, 3, SIZE, SIZE), 2100 + i).double().clamp(-1, 1)
        noise_std, share = 1 - (FIRST + i) / 5000, BATCH // SPLIT
        made: dict[str, Any] = {}
        rays = []
        for phase in "dg":
            z, cameras = self.hashed.normal(BATCH, 256), []
            for _ in range(SPLIT):
                angles, numbers = self.hashed.image(share, SIZE, SAMPLES, noise_std)
                cameras.append(published(*LAW.angles(*angles)))
                rays.append(numbers)
            made[phase] = z.split(share), cameras
        black = torch.zeros(share, 3, dtype=torch.float64)
        batches = []
        for k, images in enumerate(real.split(share)):
            (g_z, g_cameras), (d_z, d_cameras) = ((made[p][0][k], made[p][1][k]) for p in "gd")
            labels = g_cameras.labels
            batches.append(
                MicroBatch(
                    draws=Draws(0, range(share)), real=images, real_labels=labels[:, 0], g_z=g_z, g_cameras=g_cameras,
                    g_labels=labels, g_background=black[:, None], d_z=d_z,
                    d_cameras=d_cameras, d_labels=labels[:, 0], d_background=black,
                    first=False,
                )
            )  # fmt: skip
        return batches, rays


def published(theta: torch.Tensor, phi: torch.Tensor) -> Cameras:
    focal = 1 / (2 * math.tan(math.radians(12) / 2))
    matrix = torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float64)
    return orbit(theta, phi, 1.0, matrix).reshape(-1, 1)


def run_config() -> Any:
    stage = Stage(0, SIZE, BATCH, BATCH // SPLIT, 6e-5, 2e-4)
    objective = PiganObjectiveConfig(latent_weight=0.5, topk_interval=10, fade_steps=2500)
    return SimpleNamespace(
        objective=objective,
        stages=(stage,),
        stage_at=lambda nimg: stage,
        lr_factor=lambda nimg: 1.0,
        generator=None,
        discriminator=None,
        ema_kimg=(),
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RayDraws]]:
    """The numbers of the rays of the calls to come."""
    rays: list[RayDraws] = []
    monkeypatch.setattr(marching, "draw", lambda *_: rays.pop(0))
    yield rays
    assert not rays


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=LONG)])
def test_iterations(count: int, drawn: list[RayDraws]) -> None:
    """Of one iteration D's step alone, which takes a tenth of the time of both iterations."""
    config = run_config()
    G = Generator(GeneratorConfig(SIZE, unit=1.0, samples=SAMPLES, fine_samples=SAMPLES, grid="corners",
                                  points=2**14, recompute=True))  # fmt: skip
    D = Discriminator(DiscriminatorConfig())
    fill(G), fill(D)
    start = {"G": copy.deepcopy(G.state_dict()), "D": copy.deepcopy(D.state_dict())}
    average, stats, norms = copy.deepcopy(G), Collector(), []
    objective = PiganObjective(config, G, D)
    gan = GanStep(config, G, objective, {"G_ema": average, "G_slow": copy.deepcopy(G)}, stats)
    # The published sums over the micro-batches of a G step are twice our means, and go to Adam as they are.
    gan.phases[1].clip /= SPLIT
    objective.opt_G.param_groups[0]["eps"] /= SPLIT
    updates = iter((1, 2))
    decay = {"G_ema": lambda nimg: ema_share(next(updates), 0.999), "G_slow": lambda nimg: 1.0}
    gan.decays = decay  # the published averages begin with the loop
    reported: dict[str, list[torch.Tensor]] = {}

    def report(name: str, values: torch.Tensor) -> None:
        reported.setdefault(name, []).append(values.detach())
        if name.endswith("/norm"):
            norms.append(float(values) * (SPLIT if "/G/" in name else 1))

    gan.stats.report = report  # type: ignore[method-assign]
    iterations = Iterations()
    for i in range(count):
        batches, rays = iterations.micro_batches(i)
        drawn += rays
        if count == 1:
            gan.phases = gan.phases[:1]
            del drawn[SPLIT:]
        gan.run(FIRST + i, (FIRST + i) * BATCH, batches)
    expected = [call["total_norm"] for call in GOLDEN["clip_calls_D_G_alternating"]]
    check(torch.tensor(norms[:2]), expected[: len(norms)][:2], 1e-6, relative=True)
    frame = GOLDEN["first_D_frame"]
    check(torch.cat(reported["Logits/real"][:SPLIT]), frame["r_preds"])
    check(torch.cat(reported["Logits/fake"][:SPLIT]), frame["g_preds"])
    check(config.objective.gamma / 2 * torch.cat(reported["Loss/D/r1_penalty"][:SPLIT]).mean(), frame["grad_penalty"])
    guesses = 0.5 * torch.cat(reported["Loss/D/latent"][:SPLIT]) + 15 * torch.cat(reported["Loss/D/pose"][:SPLIT])
    check(guesses.mean(), frame["identity_penalty"], 1e-6, relative=True)
    if count == 1:
        return
    check(torch.tensor(norms[2:]), expected[2:], 1e-4, relative=True)
    for name, module in (("G", G), ("D", D)):
        for key, golden in GOLDEN[f"{name}_change_after"].items():
            check(module.state_dict()[key] - start[name][key], golden, 1e-7)
    for key, golden in GOLDEN["ema_minus_init"].items():
        check(average.state_dict()[key] - start["G"][key], golden, 1e-7)
