"""The step on the meta device: how many kernels it launches, and how many bytes they move."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from benchmarks import counts
from benchmarks.published_loop import as_published
from training import presets


def config_of(preset, **changes):
    return replace(presets.resolve(preset, data=""), stages=(), **changes)


@pytest.fixture(scope="module")
def published_size():
    """Returns the counts of a step of the published network for 512 px, 32 samples at a time."""
    config = config_of("cgs512", batch_gpu=32)
    return config, counts.count_step(config, "bf16", nimg=1_000_000)


def test_a_step_stays_within_its_bounds(published_size):
    """Found 4,593 kernels and 542 GB; 3,967 where D judges all of G's images at once.

    Before norms had gradients of their own they were 4,222 and 555 GB. Counted alike before the filters' kernels, the
    fused activation, the scaling of all weights at once and the one call of D for real and generated images: 6,121
    kernels and 697 GB, without some 50 GB of separate passes for the biases, which the meta device does not show.
    """
    kernels, moved = counts.per_step(*published_size)
    assert kernels <= 4_650 and moved <= 545e9, (kernels, moved)


def peak_gib(parts):
    return max(part.peak for part in parts.values()) / 2**30


def test_a_step_holds_less_than_half_of_what_the_published_loop_does(published_size):
    """Found 19.2 of 45.0 GiB, and 40.6 where D judges all at once. One whose parts are unchanged took 43.1 on a GPU."""
    config, parts = published_size
    assert peak_gib(parts) < 19.8
    whole = replace(config, objective=replace(config.objective, judged_at_once=0))
    assert 39 < peak_gib(counts.count_step(whole, "bf16", nimg=1_000_000)) < 43.1
    assert peak_gib(parts) < 0.45 * peak_gib(counts.count_step(config, "fp16", nimg=1_000_000, published=True))


def test_what_lives_is_counted_until_it_is_gone():
    with counts.Counting() as counting:
        with counting.named("both"):
            x = torch.empty(1024, device="meta")
            y = x.view(32, 32) + 1  # a view takes nothing
        del x
        with counting.named("one"):
            z = y[:1].clone()  # 128 bytes take 512
        lives = counting.lives
        del y, z
    assert counting.parts["both"].peak == 8192 and counting.parts["one"].peak == lives == 4096 + 512
    assert counting.lives == 0 and not counting.living


def test_the_published_loop_draws_each_image_alone_and_judges_each_view_alone():
    """Of `micro`: 16 scenes from 2 views; generated and real images of D's phase apart."""
    config = replace(config_of("micro"), batch_gpu=8)
    step = counts.make_step(config, "fp32")
    drawn, judged = [], []
    step.G.render, D = noting(drawn, step.G.render, lambda scene, cameras, *_: cameras.shape), step.objective.D
    D.outputs = noting(judged, D.outputs, lambda images, *_: len(images))
    as_published(step, config.batch_gpu)
    counts.run(step, config, nimg=10**6)
    assert set(drawn) == {(1, 1)} and len(drawn) == 2 * (8 * 2 + 8)
    assert judged == 2 * [8, 8] + 2 * [8, 8] + 2 * [8]  # two micro-batches of G's views, D's kinds, and R1's reals


def test_every_family_of_splats_is_counted_and_others_are_refused():
    config = config_of("gghead-tiny")
    plain = counts.count_step(config, "fp32", nimg=10**6)
    with_uv = replace(config, objective=config.objective.changed(tv_weight=1.0))
    second = counts.count_step(with_uv, "fp32", nimg=10**6)["G"]
    assert second.kernels > plain["G"].kernels and second.peak > plain["G"].peak
    assert counts.count_step(config_of("gsgan-tiny"), "fp32", nimg=10**6)["G"].kernels > 1000
    with pytest.raises(ValueError, match="--preset=pigan-tiny: a network is asked while its scenes are drawn"):
        counts.count_step(config_of("pigan-tiny"), "fp32", nimg=10**6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=gsgan-tiny", "--published"], "--published is the loop of CGS-GAN; --preset=gsgan-tiny is of gsgan"),
        (["--preset=micro", "--published", "--precision=bf16"], "--published is in float16"),
        (["--preset=micro", "--published", "--judged-at-once=0"], "--published is in float16"),
        (["--preset=micro", "--judged-at-once=-1"], "objective.judged_at_once=-1: must be 1 or greater, or 0 for all"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, message):
    result = CliRunner().invoke(counts.main, arguments)
    assert result.exit_code and message in result.output


def noting(notes, function, note):
    """Returns the function; notes of its calls are kept."""

    def call(*args, **kwargs):
        notes.append(note(*args))
        return function(*args, **kwargs)

    return call


def test_twice_the_micro_batches_are_twice_the_kernels_and_the_same_bytes():
    config = config_of("micro")
    whole = counts.count_step(config, "fp32", nimg=10**6)
    halves = counts.count_step(replace(config, batch_gpu=8), "fp32", nimg=10**6)
    for phase in ("G", "D", "R1"):
        # The scenes' statistics are taken once, and are a tenth of the small member's kernels of G.
        assert 1.85 < halves[phase].kernels / whole[phase].kernels < 2.1
        assert 0.95 < halves[phase].bytes / whole[phase].bytes < 1.35  # weights and gradients are read twice


def test_what_is_counted():
    x = torch.empty(4, 6, device="meta")
    with counts.Counting() as counting, counting.named("here"):
        y = x.t().reshape(3, 8)  # a view and a copy
        torch.add(x, x[:1])
        torch._foreach_mul([x, y], 2.0)
    part = counting.parts["here"]
    assert part.by_name == {"clone": 1, "add": 1, "_foreach_mul": 1} and part.kernels == 3
    assert part.bytes_by_name["add"] == 4 * (24 + 6 + 24)
