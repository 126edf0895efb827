"""A step does not depend on its micro-batches, ranks or order; bad gradients skip it; averages move as stated."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.training.test_losses import fixed_pictures
from torch_utils.training_stats import Collector
from training.dataset import Batch
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator
from training.presets import resolve
from training.step import GanStep, SampleStream


def make_step(batch_gpu, dtype, mbstd=1, **changes):
    """A micro GAN of batch 8 with V = 2 and pictures in place of the rasteriser; equal for every split."""
    torch.manual_seed(0)
    config = resolve("micro", data="")
    config = dataclasses.replace(
        config,
        batch=8,
        batch_gpu=batch_gpu,
        discriminator=dataclasses.replace(config.discriminator, minibatch_std_group=mbstd),
        **changes,
    )
    G, D = Generator(config.generator).to(dtype), Discriminator(config.discriminator).to(dtype)
    with torch.no_grad():  # layer scales start at 0, where the scene does not depend on z
        for name, p in G.named_parameters():
            if ".ls_" in name:
                p.add_(0.1 * torch.randn_like(p))
    pictures = fixed_pictures(G, views=2)

    def render(scene, cameras, resolution=None, background=None):
        rendering = pictures(
            scene.to(dtype=torch.float64), cameras.to(dtype=torch.float64), background=background.double()
        )
        return dataclasses.replace(rendering, rgb=rendering.rgb.to(dtype))

    G.render = render
    G_ema = Generator(config.generator).to(dtype)
    G_ema.load_state_dict(G.state_dict())
    labels = torch.randn(50, 25).to(dtype)
    step = GanStep(config, G, D, G_ema, Collector())
    stream = SampleStream(config, labels, G.z_dim, torch.device("cpu"))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    masks = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    own = slice(stream.share(0).start, stream.share(0).stop)  # all of them where there is one rank
    micro = stream.micro_batches(0, Batch(images[own], masks[own], labels[stream.items(0)]))
    for part in micro:
        for name in ("real", "g_z", "d_z"):
            setattr(part, name, getattr(part, name).to(dtype))
    return step, micro


def phase_gradients(step, micro):
    """name -> gradient of every parameter after each phase, before clipping and stepping."""
    found = {}
    for phase in step.phases:
        step.accumulate(phase, micro, 1.0)
        found |= {f"{phase.name}/{n}": p.grad.clone() for n, p in phase.module.named_parameters() if p.grad is not None}
    return found


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_gradients_do_not_depend_on_the_micro_batches(dtype, bound):
    whole = phase_gradients(*make_step(8, dtype))
    assert {name.split("/")[0] for name in whole} == {"G", "D", "R1"}
    for size in (4, 2):
        parts = phase_gradients(*make_step(size, dtype))
        assert parts.keys() == whole.keys()
        for name, expected in whole.items():
            error = (parts[name] - expected).norm() / expected.norm().clamp_min(1e-30)
            if expected.norm() > 1e-12:  # a gradient that is zero up to rounding has no relative error
                assert error < bound, (name, float(error))


def test_views_reach_across_the_total_batch():
    """View v of sample b is the camera of sample (b - v) mod the total batch, wherever micro-batches are cut."""
    _, whole = make_step(8, torch.float32)
    _, parts = make_step(2, torch.float32)
    cameras = whole[0].g_cameras.labels  # [8, 2, 25]
    assert torch.equal(cameras, torch.cat([p.g_cameras.labels for p in parts]))
    assert torch.equal(cameras[:, 1], cameras[:, 0].roll(1, 0))
    assert torch.equal(whole[0].d_background, torch.cat([p.d_background for p in parts]))


def test_one_process_and_two_ranks_see_the_same_samples(monkeypatch):
    config = dataclasses.replace(resolve("micro", data=""), batch=8, batch_gpu=2)
    stream = SampleStream(config, torch.randn(50, 25), 4, torch.device("cpu"))
    alone = stream.items(16)
    shares = []
    monkeypatch.setattr("torch_utils.distributed.world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("torch_utils.distributed.rank", lambda rank=rank: rank)
        shares.append(stream.items(16))
    assert np.array_equal(alone, np.concatenate(shares))


def test_a_non_finite_gradient_skips_the_step_and_is_named():
    step, micro = make_step(8, torch.float32)
    before = [p.clone() for p in step.D.parameters()]
    phase = step.phases[1]
    phase.module.requires_grad_(True)
    phase.accumulate(micro[0], 0.0)
    dict(step.D.named_parameters())["b4.fc.weight"].grad[0, 0] = torch.nan
    step.apply(phase, torch.zeros(0))
    assert all(torch.equal(a, b) for a, b in zip(before, step.D.parameters(), strict=True))
    values = step.stats.reduce()
    assert values["NonFinite/D/b4.fc.weight"] == 1 and values["NonFinite/D/b4.out.weight"] == 0
    assert values["Gradient/D/skipped"] == 1
    phase.optimizer.zero_grad()
    phase.accumulate(micro[0], 0.0)
    step.apply(phase, torch.zeros(0))
    assert not all(torch.equal(a, b) for a, b in zip(before, step.D.parameters(), strict=True))


def test_the_clip_acts_once_on_the_mean_gradient():
    """Adam without momentum does not see a common factor, so the gradient itself is looked at."""
    step, micro = make_step(4, torch.float32)
    phase = dataclasses.replace(step.phases[1], clip=1e-3)
    phase.module.requires_grad_(True)
    for part in micro:
        phase.accumulate(part, 0.0)
    mean = torch.cat([p.grad.flatten() for p in step.D.parameters()])
    step.apply(phase, torch.zeros(0))
    clipped = torch.cat([p.grad.flatten() for p in step.D.parameters()])
    torch.testing.assert_close(clipped, mean * (1e-3 / mean.norm()), rtol=1e-3, atol=1e-12)


def test_moving_averages():
    step, micro = make_step(8, torch.float32)
    before = {n: p.clone() for n, p in step.G_ema.named_parameters()}
    step.run(0, 0, micro)  # the first step copies
    assert all(torch.equal(p, step.G.state_dict()[n]) for n, p in step.G_ema.named_parameters())
    averaged = {n: p.clone() for n, p in step.G_ema.named_parameters()}
    w_avg = step.G.w_avg.clone()
    assert w_avg.abs().max() > 0 and any(not torch.equal(before[n], averaged[n]) for n in before)
    step.run(1, 8_000_000, micro)  # long after the ramp: half-life of ema_halflife_kimg
    beta = 0.5 ** (8 / (step.config.ema_halflife_kimg * 1000))
    for name, p in step.G_ema.named_parameters():
        torch.testing.assert_close(p, averaged[name].lerp(step.G.state_dict()[name], 1 - beta), rtol=1e-5, atol=1e-7)
    assert torch.equal(step.G_ema.w_avg, step.G.w_avg) and not torch.equal(step.G.w_avg, w_avg)
