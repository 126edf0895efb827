"""The simulation of several GPUs against what can be worked out by hand, and the page that shows it."""

from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.scaling import Cluster
from dnnlib import ROOT

STILL = Cluster(ranks=1, jitter=0.0)
KERNEL_MS = sum(segment.kernel_ms for segment in scaling.SEGMENTS)


def test_one_rank_without_launches_takes_its_kernels():
    step = scaling.simulate(replace(STILL, launch=0.0), batch=32, batch_gpu=32)
    assert step.total == pytest.approx(KERNEL_MS + STILL.fixed_ms) and step.messages == 0


def test_a_slow_host_takes_its_launches():
    """Every kernel then waits for its launch: a step is the launches, and of each segment the last kernel."""
    kernels = sum(segment.kernels for segment in scaling.SEGMENTS) + STILL.fixed_kernels
    step = scaling.simulate(replace(STILL, launch=1e-3), batch=32, batch_gpu=32)
    assert step.launching == pytest.approx(kernels)  # at 1 ms each
    assert (
        kernels < step.total < kernels + len(scaling.SEGMENTS) * max(s.kernel_ms / s.kernels for s in scaling.SEGMENTS)
    )


def test_messages_are_those_of_rings():
    """Worked out by hand: 8 ranks of a machine, then 8 machines of them."""
    numbers = 1e8
    one = scaling.message_seconds(Cluster(ranks=8, latency=0.0), numbers)
    assert one == pytest.approx(2 * 7 / 8 * 4e8 / 370e9)
    eight = scaling.message_seconds(Cluster(ranks=64, latency=0.0), numbers)
    assert eight == pytest.approx(one + 2 * 7 / 8 * 4e8 / 320e9)
    assert scaling.message_seconds(Cluster(ranks=1), numbers) == 0


def test_ranks_meet_at_the_slowest():
    even = scaling.simulate(replace(STILL, ranks=8), 64, 8).total
    uneven = scaling.simulate(replace(STILL, ranks=8, jitter=0.1), 64, 8).total
    assert even < uneven < even * 1.3
    assert scaling.simulate(replace(STILL, ranks=8, network=1e9), 64, 8).total == even  # no other machine


def test_overlap_hides_at_most_what_there_is():
    slow = replace(STILL, ranks=16, network=12.5e9)
    apart, hidden = (scaling.simulate(replace(slow, overlap=o), 256, 16) for o in (False, True))
    g = scaling.message_seconds(slow, scaling.GRADIENTS["G"]) * 1e3
    assert 0 < apart.total - hidden.total <= g + 1e-6


def test_a_rank_needs_a_group():
    with pytest.raises(ValueError, match="batch 32 on 16 ranks: each needs a whole share of 4"):
        scaling.simulate(Cluster(ranks=16), 32, 32)


def test_the_page_shows_what_the_model_prints():
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert "\n".join(scaling.tables()).strip() in page


def test_parts_add_up_to_what_was_counted():
    """The code that was measured launched 4,222 kernels in a step of 32 samples at a time."""
    kernels = sum(segment.kernels for segment in scaling.SEGMENTS) + STILL.fixed_kernels
    assert kernels == pytest.approx(4_222, rel=0.02)


def test_the_model_gives_back_what_one_gpu_took():
    """The measured step, without its share of R1, at 8 and 16 samples at a time; the second twice, with two results."""
    without = sum(segment.kernel_ms for segment in scaling.SEGMENTS if segment.name.startswith("R1"))
    assert KERNEL_MS - without + STILL.fixed_ms == pytest.approx(313.6, abs=1)
    assert scaling.simulate(STILL, 32, 8).total - without == pytest.approx(642.4, rel=0.05)
    assert 340 < scaling.simulate(STILL, 32, 16).total - without < 400
