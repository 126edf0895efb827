"""The game over patches: published numbers of a step, what belongs to a sample, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.torch_utils.ranks import run_ranks
from tests.training.families.epigraf.golden import cameras, check, check_norms, discriminator, entry, generator
from tests.training.families.epigraf.small import discriminator_config, generator_config, make_step, run_config
from tests.training.families.hashes import noise, uniform
from torch_utils.random import Draws
from training import losses
from training.families.base import StepContext
from training.families.epigraf import patches
from training.families.epigraf.objective import EpigrafObjective, EpigrafObjectiveConfig
from training.fields.marching import RayDraws
from training.networks.base import Conditioning
from training.samples import Stage

NAMES = {"synthesis.": "network.", "mapping.": "mapper."}


def golden_window() -> Tensor:
    law = EpigrafObjectiveConfig().law(64, 16)
    assert law.beta_at(5_000_000) == pytest.approx(entry("member/loss/e2e/beta"), abs=1e-9)
    assert law.least == entry("member/loss/e2e/min_scale")
    window = law.windows(torch.tensor([[0.3, 0.25, 0.6]]), 5_000_000)
    golden = entry("member/loss/e2e/patch_scale_offset/all")  # width, height, x, y
    torch.testing.assert_close(window[0], torch.tensor([golden[0], golden[2], golden[3]]), rtol=0, atol=1e-6)
    return window.expand(4, 3)


def test_published_generator_step() -> None:
    """From latents to gradients, over one window, without blur and with it."""
    G, D = generator().requires_grad_(True), discriminator()
    windows = golden_window()
    seen = cameras(torch.tensor(ANGLES))
    draws = RayDraws(uniform((4, 256, 12, 1), 1010)[..., 0], uniform((1024, 12), 1011).view(4, 256, 12))
    for name, nimg in (("no_blur", 300_000), ("blur_sigma2.5", 150_000)):
        ws = G.mapping(noise((4, 512), 1000))
        scene = G.scene(G.network.tri_plane_decoder(ws, "none"), ws)
        image = G.trace(scene, patches.crop(seen, windows, 16, 64)[:, None], (16, 16), torch.tensor(0.5), draws)
        shown = losses.gaussian_blur(image.image[:, 0], losses.blur_sigma_at(nimg, 10.0, 200_000))
        logits = D.outputs(shown, Conditioning(seen.labels, windows)).logits
        check(logits[:, 0], f"member/loss/e2e/{name}/fake_logits", 3e-5)
        loss = losses.logistic(logits, real=True).mean()
        assert loss.item() == pytest.approx(entry(f"member/loss/e2e/{name}/G_loss"), abs=1e-5)
        G.zero_grad()
        loss.backward()
        check_norms(G, f"member/loss/e2e/{name}/grad_norm", NAMES)


ANGLES = [[0.3, 1.4], [-0.5, 1.75], [0.05, 1.2], [2.9, 1.9]]


def test_published_averages() -> None:
    settings = EpigrafObjectiveConfig()
    for row in entry("schedules_and_laws/ema_beta"):
        halflife = min(row["ema_kimg"] * 1000, settings.ema_rampup * row["nimg"])
        assert 0.5 ** (row["batch"] / max(halflife, 1e-8)) == pytest.approx(row["beta"], abs=1e-7)
    assert settings.ema_halflife_kimg == 20 and settings.ema_rampup == 0.05


# ---------------------------------------------------------------- cameras that the mapping is told


@pytest.mark.parametrize("final", [0.0, 0.5])
def test_mappings_are_told_other_cameras_at_first_and_fewer_later(final: float) -> None:
    config = run_config(
        generator=generator_config(camera_conditioning=True),
        objective={"swap_probability": final, "swap_fade_kimg": 0.4},
    )
    shares = []
    for nimg in (0, 200, 400):
        step, micros = make_step(config, nimg)
        other = 0
        for micro in micros:
            told = step.objective.prepared(micro, StepContext(nimg=nimg, draws=micro.draws)).g_told
            other += int((told.labels != micro.g_cameras[:, 0].labels).any(1).sum())
        shares.append(other / config.batch)
    assert shares[0] == 1 and shares[2] < 1 and (final or not shares[2])


# ---------------------------------------------------------------- windows of a step


def objective(**changes: Any) -> EpigrafObjective:
    step, _ = make_step(run_config(**changes))
    assert isinstance(step.objective, EpigrafObjective)
    return step.objective


def test_samples_share_windows_as_they_should() -> None:
    at = StepContext(100, Draws(0, range(8, 16)))
    for strided, owners in ((False, [0] * 4 + [4] * 4), (True, [0, 1] * 4)):
        game = objective(batch_gpu=8, objective={"strided_windows": strided})
        windows = game.windows(at, "G")
        assert torch.equal(windows, windows[owners]) and len(windows.unique(dim=0)) == 2
        groups = game.D.num_groups(8)
        within = [len(windows[m::groups].unique(dim=0)) for m in range(groups)]  # of each minibatch statistic
        assert within == ([1, 1] if strided else [2, 2])
        assert not torch.equal(windows, game.windows(at, "fake")) and not torch.equal(windows, game.windows(at, "real"))
        assert torch.equal(windows, game.windows(at, "G"))
    parts = [objective().windows(StepContext(100, Draws(0, range(i, i + 4))), "G") for i in (8, 12)]
    assert torch.equal(torch.cat(parts), objective(batch_gpu=8).windows(at, "G"))


def test_early_windows_are_whole_images_and_late_ones_are_not() -> None:
    game = objective(objective={"anneal_kimg": 1.0})
    early, late = (
        torch.cat([game.windows(StepContext(nimg, Draws(0, range(i, i + 4))), "G") for i in range(0, 400, 4)])
        for nimg in (0, 1000)
    )
    assert early[:, 0].mean() > 0.99 and 0.6 < late[:, 0].mean() < 0.85


def test_d_is_shown_and_told_the_windows() -> None:
    step, micro = make_step(run_config(), nimg=96)
    game, shown = step.objective, []
    judge = game.D.outputs

    def outputs(images: Tensor, told: Conditioning, groups: int | None = None) -> Any:
        shown.append((images.detach(), told))
        return judge(images, told, groups)

    game.D.outputs = outputs
    at = StepContext(96, micro[0].draws)
    list(game.generator_losses(micro[0], at))
    list(game.discriminator_losses(micro[0], at))
    list(game.r1_losses(micro[0], at))
    (_, g), (both, d), (_, penalised) = shown
    real, fake = game.windows(at, "real"), game.windows(at, "fake")
    assert torch.equal(g.patch, game.windows(at, "G")) and torch.equal(penalised.patch, real)
    assert torch.equal(d.patch[0::2], fake) and torch.equal(d.patch[1::2], real)
    assert torch.equal(d.labels[1::2], micro[0].real_labels)
    expected = game.shown(patches.cut(micro[0].real, real, 8), at)
    torch.testing.assert_close(both[1::2], expected, rtol=0, atol=1e-6)
    assert both.shape == (8, 3, 8, 8)


def gradients(batch_gpu: int, **changes: Any) -> dict[str, Tensor]:
    step, micro = make_step(run_config(batch_gpu, **changes), nimg=96)
    found = {}
    for phase in step.phases:
        step.accumulate(phase, 96, micro)
        found |= {f"{phase.name}/{n}": p.grad for n, p in phase.module.named_parameters() if p.grad is not None}
    return found


def test_every_kind_of_member_takes_a_step() -> None:
    """All that is evaluated gets a gradient; what no formula reads is not there without published keys."""
    for G, D in (
        (
            {"backdrop": "sphere", "camera_conditioning": True, "camera_dropout": 0.5},
            {"camera": "fourier", "camera_dropout": 0.5},
        ),
        ({"backdrop": "plane", "density": "relu", "use_noise": False}, {"camera": "raw", "patch_conditioning": False}),
        ({"opaque": False}, {}),
    ):
        config = run_config(
            generator=generator_config(published_keys=False, **G),
            discriminator=discriminator_config(published_keys=False, **D),
        )
        step, micro = make_step(config, nimg=96)
        for phase in step.phases:
            step.accumulate(phase, 96, micro)
            norms = {n: p.grad for n, p in phase.module.named_parameters()}
            missing = {n for n, g in norms.items() if g is None or not g.isfinite().all()}
            assert missing <= ({"b4.out.bias"} if phase.name == "R1" else set()), (phase.name, missing)


def test_gradients_do_not_depend_on_the_split() -> None:
    """But for the minibatch statistic: one of 8 strided samples is not two of 4."""
    discriminator = discriminator_config(minibatch_std_group=1, camera="raw", camera_dropout=0.3)
    whole, parts = (gradients(n, discriminator=discriminator) for n in (8, 4))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        if value.norm() > 1e-9:
            assert (parts[name] - value).norm() / value.norm() < 2e-3, name


def train(rank: int) -> dict[str, Any]:
    """Everything that has a state after three steps."""
    step, micro = make_step(run_config())
    for number in range(3):
        step.run(number, 96 + 8 * number, micro)
    networks = {"G": step.G, "D": step.objective.D, "G_ema": step.averaged["G_ema"]}
    return {f"{key}.{n}": t.numpy() for key, net in networks.items() for n, t in net.state_dict().items()}


def test_steps_of_two_ranks_are_those_of_one_process_to_the_bit() -> None:
    alone = train(0)
    for shared in run_ranks(2, train):
        assert isinstance(shared, dict), shared
        assert all((shared[name] == value).all() for name, value in alone.items())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"patch_law": "gamma"}}, "--patch-law=gamma: legal are"),
        ({"objective": {"patch_least": 0.2}}, "patch_least=0.2: legal are 0.5"),
        ({"objective": {"patch_beta": (0.1,)}}, "patch_beta"),
        ({"objective": {"patch_alpha": 2.0}}, "patch_alpha=2.0: 1 is legal"),
        ({"objective": {"anneal_kimg": -1.0}}, "--anneal-kimg=-1.0"),
        ({"objective": {"swap_probability": 1.5}}, "--camera-cond-spoof-p=1.5"),
        ({"discriminator": discriminator_config(patch_resolution=16)}, "--patch-law=beta: a patch of 16 px is"),
        ({"discriminator": discriminator_config(num_classes=3)}, "num_classes=3: both networks have the classes"),
        ({"objective": {"pose": "hemisphere"}}, "--pose=hemisphere: legal are"),
        ({"batch_gpu": 2}, "--batch-gpu=2 is not a multiple of the minibatch-std group of 4"),
        ({"stages": (Stage(0, 8, 8, 4, 1e-3, 1e-3),)}, "takes images of one resolution"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_config(**changes).check()
