"""A step does not depend on its micro-batches, ranks or order; bad gradients skip it; averages move as stated."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.training.gan import AUGMENTED, RELATIVISTIC, make_step, make_stream, network, phase_gradients
from torch_utils import precision
from training.families.base import StepContext


@pytest.mark.parametrize(
    ("dtype", "bound", "objective"),
    [
        (torch.float64, 1e-10, {}),
        (torch.float32, 2e-5, {}),
        (torch.float64, 1e-10, RELATIVISTIC),
        (torch.float64, 1e-10, AUGMENTED),
    ],
)
def test_gradients_do_not_depend_on_the_micro_batches(dtype, bound, objective):
    whole = phase_gradients(*make_step(8, dtype, objective=objective))
    assert {name.split("/")[0] for name in whole} == {"G", "D", "R1"} | ({"R2"} if objective == RELATIVISTIC else set())
    for size in (4, 2):
        parts = phase_gradients(*make_step(size, dtype, objective=objective))
        assert parts.keys() == whole.keys()
        for name, expected in whole.items():
            error = (parts[name] - expected).norm() / expected.norm().clamp_min(1e-30)
            if expected.norm() > 1e-12:  # a gradient that is zero up to rounding has no relative error
                assert error < bound, (name, float(error))


def test_a_scaled_loss_leaves_the_gradients_as_they_are():
    """float16's scale is a power of two: it comes off again without rounding, before the norm is taken."""
    plain, (step, micro) = phase_gradients(*make_step(4, torch.float32)), make_step(4, torch.float32)
    step.loss_scale = precision.loss_scale(torch.float16)
    assert step.loss_scale == 1024 and precision.loss_scale(torch.bfloat16) == precision.loss_scale(None) == 1
    scaled = phase_gradients(step, micro)
    assert all(torch.equal(scaled[name], plain[name]) for name in plain) and len(plain) > 100


def test_views_reach_across_the_total_batch():
    """View v of sample b is the camera of sample (b - v) mod the total batch, wherever micro-batches are cut."""
    _, whole = make_step(8, torch.float32)
    _, parts = make_step(2, torch.float32)
    cameras = whole[0].g_cameras.labels  # [8, 2, 25]
    assert torch.equal(cameras, torch.cat([p.g_cameras.labels for p in parts]))
    assert torch.equal(cameras[:, 1], cameras[:, 0].roll(1, 0))
    assert torch.equal(whole[0].d_background, torch.cat([p.d_background for p in parts]))


def test_one_process_and_two_ranks_see_the_same_samples(monkeypatch):
    stream = make_stream(batch_gpu=2, mbstd=1)
    alone = stream.items(16)
    shares = []
    monkeypatch.setattr("torch_utils.distributed.world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("torch_utils.distributed.rank", lambda rank=rank: rank)
        shares.append(stream.items(16))
    assert np.array_equal(alone, np.concatenate(shares))


def test_a_non_finite_gradient_skips_the_step_and_is_named():
    step, micro = make_step(8, torch.float32)
    D, phase = network(step, "D"), step.phases[1]
    before = [p.clone() for p in D.parameters()]

    def spoilt(micro_batch, at):
        for loss in losses(micro_batch, at):
            loss.total.register_hook(lambda grad: torch.full_like(grad, torch.nan))
            yield loss

    losses, phase.losses = phase.losses, spoilt
    report = step.run(1, 8, micro)
    assert all(torch.equal(a, b) for a, b in zip(before, D.parameters(), strict=True))
    values = step.stats.reduce()
    assert values["NonFinite/D/b4.fc.weight"] == 1 and values["Gradient/D/skipped"] == 1
    assert values["Gradient/G/skipped"] == 0 and "b4.fc.weight" in report.bad(report.values)["D"]
    phase.losses = losses
    step.run(2, 16, micro)
    assert not all(torch.equal(a, b) for a, b in zip(before, D.parameters(), strict=True))


def test_one_bad_parameter_is_named_alone():
    step, micro = make_step(8, torch.float32)
    phase = step.phases[1]
    step.accumulate(phase, 0, micro)
    dict(phase.module.named_parameters())["b4.fc.weight"].grad[0, 0] = torch.nan
    names, flags, _, bad = step.reduce(phase, torch.zeros(0))
    assert bad and [n for n, flag in zip(names, flags, strict=True) if flag] == ["b4.fc.weight", "norm over all"]


def test_the_clip_acts_once_on_the_mean_gradient():
    """Adam without momentum does not see a common factor, so the gradient itself is looked at."""
    step, micro = make_step(4, torch.float32)
    phase = dataclasses.replace(step.phases[1], clip=1e-3)
    step.accumulate(phase, 0, micro)
    mean = torch.cat([p.grad.flatten() for p in phase.module.parameters()])
    step.reduce(phase, torch.zeros(0))
    clipped = torch.cat([p.grad.flatten() for p in phase.module.parameters()])
    torch.testing.assert_close(clipped, mean * (1e-3 / mean.norm()), rtol=1e-3, atol=1e-12)


def test_moving_averages():
    step, micro = make_step(8, torch.float32)
    G_ema = step.averaged["G_ema"]
    before = {n: p.clone() for n, p in G_ema.named_parameters()}
    step.run(0, 0, micro)  # the first step copies
    assert all(torch.equal(p, step.G.state_dict()[n]) for n, p in G_ema.named_parameters())
    averaged = {n: p.clone() for n, p in G_ema.named_parameters()}
    w_avg = step.G.w_avg.clone()
    assert w_avg.abs().max() > 0 and any(not torch.equal(before[n], averaged[n]) for n in before)
    step.run(1, 8_000_000, micro)  # long after the ramp: half-life of ema_halflife_kimg
    beta = 0.5 ** (8 / (step.config.objective.ema_halflife_kimg * 1000))
    for name, p in G_ema.named_parameters():
        torch.testing.assert_close(p, averaged[name].lerp(step.G.state_dict()[name], 1 - beta), rtol=1e-5, atol=1e-7)
    assert torch.equal(G_ema.w_avg, step.G.w_avg) and not torch.equal(step.G.w_avg, w_avg)


def test_learning_rates_fall_to_nothing_at_the_end():
    """All optimisers' rates, from 1 to 0 over the last images of the run; D's lazy factor stays."""
    step, micro = make_step(8, torch.float32)
    full = step.objective.learning_rates(step.config.stage_at(0))
    assert step.config.cooldown_kimg == 0 and step.config.lr_factor(10**9) == 1  # later than the end of the run
    step.config = dataclasses.replace(step.config, total_kimg=0.5, cooldown_kimg=0.1)
    for nimg, factor in ((0, 1.0), (400, 1.0), (408, 0.92), (450, 0.5), (496, 0.04), (400, 1.0)):
        step.run(0, nimg, micro)
        rates = {name: group["lr"] for name, opt in step.optimizers.items() for group in opt.param_groups}
        assert rates == pytest.approx({name: rate * factor for name, rate in full.items()}, rel=1e-12)


def judge_both(objective, images, micro, at):
    return [output.logits.squeeze(1) for output in objective.answer_both(images, micro, at)]


@pytest.mark.parametrize("objective", [{}, RELATIVISTIC, AUGMENTED])
def test_real_and_generated_images_in_one_call_are_judged_as_in_two(objective):
    step, (micro,) = make_step(8, torch.float64, mbstd=4, objective=objective)
    at, objective = StepContext(0, micro.draws), step.objective
    _, images = objective.fakes(micro, at)
    fake, real = judge_both(objective, images, micro, at)
    generated = objective.judge(images, micro.d_labels, at, "fake")
    apart = generated, objective.judge(micro.real, micro.real_labels, at, "real")
    for got, expected in zip((fake, real), apart, strict=True):
        torch.testing.assert_close(got, expected.squeeze(1), rtol=1e-12, atol=1e-12)


def test_no_minibatch_std_group_holds_both_kinds():
    """A generated image moves the logits of its own group, of four, and of no real image."""
    step, (micro,) = make_step(8, torch.float64, mbstd=4)
    at, objective = StepContext(0), step.objective
    _, images = objective.fakes(micro, at)
    fake, real = judge_both(objective, images, micro, at)
    images[2] += torch.randn_like(images[2])
    moved, same = judge_both(objective, images, micro, at)
    assert torch.equal(same, real) and (moved != fake).nonzero().flatten().tolist() == [0, 2, 4, 6]
