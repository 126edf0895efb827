"""Two gloo ranks against one process: the gradients of the first step, and eight steps to the bit."""

import numpy as np
import pytest
import torch

from tests.torch_utils.ranks import run_ranks
from tests.training.gan import ADAPTIVE, RELATIVISTIC, make_step, network
from torch_utils import distributed


def first_gradients(rank, dtype, objective):
    """name -> summed gradient of every parameter after each phase of the first step, of micro-batches of 4."""
    step, micro = make_step(4, dtype, objective=objective)
    found = {}
    for phase in step.phases:
        step.accumulate(phase, 0, micro)
        parameters = list(phase.module.parameters())
        distributed.all_reduce_gradients(parameters, torch.zeros(0))
        found |= {f"{phase.name}/{n}": p.grad.numpy() for n, p in phase.module.named_parameters() if p.grad is not None}
    return found


@pytest.mark.parametrize(
    ("dtype", "bound", "objective"),
    [(torch.float64, 1e-10, {}), (torch.float32, 2e-5, {}), (torch.float64, 1e-10, RELATIVISTIC)],
)
def test_gradients_of_two_ranks_are_those_of_one_process(dtype, bound, objective):
    alone = first_gradients(0, dtype, objective)
    phases = {"G", "D", "R1", "R2"} if objective else {"G", "D", "R1"}
    worst = {}
    for shared in run_ranks(2, first_gradients, dtype, objective):
        assert isinstance(shared, dict), shared
        assert shared.keys() == alone.keys() and {n.split("/")[0] for n in alone} == phases
        for name, expected in alone.items():
            error = torch.from_numpy(shared[name] - expected).norm()
            norm = torch.from_numpy(expected).norm()
            if norm > 1e-12:  # a gradient that is zero up to rounding has no relative error
                worst[name] = max(worst.get(name, 0.0), float(error / norm))
    assert len(worst) > 100 and max(worst.values()) < bound, max(worst.items(), key=lambda item: item[1])


def train(rank, batch_gpu, steps, objective):
    """Losses after each step on one batch, averaged over the ranks, and all that has a state at the end."""
    step, micro = make_step(batch_gpu, torch.float32, objective=objective)
    lines = []
    for number in range(steps):
        step.run(number, number * step.config.batch, micro)
        lines.append({name: value for name, value in step.stats.reduce().items() if name.startswith("Loss/")})
    networks = {"G": step.G, "D": network(step, "D"), "G_ema": step.averaged["G_ema"]}
    tensors = {f"{key}.{n}": t for key, net in networks.items() for n, t in net.state_dict().items()}
    return lines, {n: t.numpy() for n, t in (tensors | dict(step.objective.state())).items()}


@pytest.mark.parametrize(("batch_gpu", "steps", "objective"), [(2, 4, {}), (2, 3, RELATIVISTIC), (4, 8, ADAPTIVE)])
def test_steps_of_two_ranks_are_those_of_one_process_to_the_bit(batch_gpu, steps, objective):
    """With one and with two micro-batches a rank: the sums over micro-batches and over ranks form one tree."""
    lines, networks = train(0, batch_gpu, steps, objective)
    assert lines[-1]["Loss/G/adversarial"] != lines[0]["Loss/G/adversarial"]
    assert (networks["augment.p"] > 0) == (objective == ADAPTIVE)
    for shared in run_ranks(2, train, batch_gpu, steps, objective):
        assert not isinstance(shared, Exception) and shared is not None, shared
        worst = max(abs(a[name] - b[name]) for a, b in zip(lines, shared[0], strict=True) for name in a)
        assert worst < 1e-15, worst  # the means are taken in float64, in order of the reports
        assert [n for n, value in networks.items() if not np.array_equal(value, shared[1][n])] == []
