"""The step on the meta device: how many kernels it launches, and how many bytes they move."""

from dataclasses import replace

import torch

from benchmarks import counts
from training import presets


def config_of(preset, **changes):
    return replace(presets.resolve(preset, data=""), stages=(), **changes)


def test_a_step_stays_within_its_bounds():
    """Of the published network for 512 px. Found 3,963 kernels and 539 GB.

    Before norms had gradients of their own they were 4,222 and 555 GB. Counted alike before the filters' kernels, the
    fused activation, the scaling of all weights at once and the one call of D for real and generated images: 6,121
    kernels and 697 GB, without some 50 GB of separate passes for the biases, which the meta device does not show.
    """
    config = config_of("cgs512", batch_gpu=32)
    kernels, moved = counts.per_step(config, counts.count_step(config, "bf16", nimg=1_000_000))
    assert kernels <= 4_050 and moved <= 545e9, (kernels, moved)


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
