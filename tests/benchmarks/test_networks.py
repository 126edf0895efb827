"""Shares of the parts of a network."""

import time

import torch
from torch import Tensor, nn

from benchmarks.networks import matrix_flop, part_times, parts_of
from training.families import family
from training.presets import resolve


class Slow(nn.Module):
    """Takes its time, forward and backward."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        return Busy.apply(x * self.weight, self.seconds)


class Slower(Slow):
    """Has a class of its own."""


class Busy(torch.autograd.Function):
    """Passes numbers on after so many seconds of work, both ways."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        work(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        work(ctx.seconds)
        return grad, None


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class Network(nn.Module):
    """Holds two parts in a list, a third in a module with most parameters, and works outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ModuleList([Slow(0.02), Slower(0.06)])
        self.large = nn.Sequential(Slow(0.02), Slow(0.0), Slow(0.0))

    def forward(self, x: Tensor) -> Tensor:
        work(0.04)
        for layer in (*self.listed, *self.large):
            x = layer(x)
        return x


def test_parts_are_found_below_lists_and_what_is_most_of_a_network() -> None:
    network = Network()
    assert list(parts_of(network)) == [*network.listed, *network.large]


def test_shares_of_forward_and_backward_passes() -> None:
    network = Network()
    x = torch.ones(2, 3, requires_grad=True)
    total, spent = part_times(network, lambda: network(x).sum().backward())
    assert spent.keys() == {"Slow", "Slower"}
    assert abs(spent["Slow"] - 0.08) < 0.02 and abs(spent["Slower"] - 0.12) < 0.02
    assert abs(total - sum(spent.values()) - 0.04) < 0.03
    assert not network.listed[0]._forward_hooks and not network.listed[0]._backward_hooks


def test_matrix_products_are_counted_without_any() -> None:
    """Of every family with splats; what a scene takes does not depend on the batch, what weights take is little."""
    for name in ("micro", "gsgan-tiny", "gghead-tiny"):
        config = resolve(name, data="")
        make = family(config.family).generator
        one, four = (matrix_flop(make, config.generator, batch) for batch in (1, 4))
        parameters = sum(p.numel() for p in make(config.generator).parameters())
        assert one > 2 * parameters and 3.5 < four / one < 4.01, name
