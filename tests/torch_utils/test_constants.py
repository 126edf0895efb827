"""Constants that are kept from call to call are none of a tracer's, and serve who differentiates."""

import pytest
import torch

from torch_utils import ops
from torch_utils.constants import kept


class Blur(torch.nn.Module):
    def forward(self, x):
        return ops.blur(x, 1)


def image(channels: int) -> torch.Tensor:
    return torch.randn(1, channels, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def shift():
    @kept
    def row(size: int) -> torch.Tensor:
        return torch.arange(float(size)).contiguous()

    return lambda x: x + row(x.shape[-1]), row


def test_what_is_made_once_is_given_again(shift):
    _, row = shift
    assert row(3) is row(3) and row(4) is not row(3) and row(4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("strict", [False, True])
def test_an_exporter_leaves_nothing_behind(shift, strict):
    function, row = shift

    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x)

    program = torch.export.export(Module(), (torch.ones(2, 3),), strict=strict)
    assert type(row(3)) is torch.Tensor and row(3).tolist() == [0, 1, 2]
    assert torch.equal(program.module()(torch.ones(2, 3)), function(torch.ones(2, 3)))
    again = torch.export.export(Module(), (torch.ones(2, 3),), strict=strict)  # now that one is kept
    assert torch.equal(again.module()(torch.zeros(2, 3))[1], row(3))


def test_blurs_after_an_export_are_not_zero():
    channels = 61  # which no other test has
    x = image(channels)
    program = torch.export.export(Blur(), (x,))
    expected = ops.blur_reference(x.double(), 1).float()
    torch.testing.assert_close(ops.blur(x, 1), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-6)


def test_what_inference_made_is_differentiated_with():
    channels = 59  # which no other test has
    with torch.inference_mode():
        ops.blur_reference(image(channels), 1)
    x = image(channels).requires_grad_()
    ops.blur_reference(x, 1).square().sum().backward()
    assert x.grad.abs().max() > 0
