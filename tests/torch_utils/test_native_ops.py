"""Compares the native image operations with their twins, in value, gradient and gradient of the gradient."""

import pytest
import torch
from torch import Tensor

from torch_utils import block_ops, native_ops, ops
from training.images import quantize, quantize_rgb

pytestmark = pytest.mark.skipif(not native_ops.available(), reason="no C++ compiler, or SPLATGAN_NATIVE=0")

OPERATIONS = {
    "blur": lambda x, y: ops.blur(x, 2),
    "downsample": lambda x, y: ops.downsample(x),
    "upsample": lambda x, y: ops.upsample(x),
    "activation and blur": lambda x, y: block_ops.lrelu_clamp_blur(x * 1, None, 2),
    "activation with clamp and blur": lambda x, y: block_ops.lrelu_clamp_blur(x * 1, 0.7, 1),
    "activation and sum": lambda x, y: block_ops.lrelu_clamp_add(x * 1, y * 1),
    "activation with clamp and sum": lambda x, y: block_ops.lrelu_clamp_add(x * 1, y * 1, 0.7),
    "fork": lambda x, y: torch.cat([part.flatten(1) for part in block_ops.with_downsample(x * y)], 1),
}


def image(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    numbers = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return numbers.to(dtype, memory_format=torch.channels_last).requires_grad_()


def results(operation, dtype: torch.dtype, height: int) -> list[Tensor]:
    """Returns value, gradients, and the gradients of a penalty on them."""
    x, y = image(1, dtype, 2, 24, height, 6), image(2, dtype, 2, 24, height, 6)
    value = operation(x, y)
    seed = torch.linspace(-1, 1, value.numel()).bfloat16().to(dtype).view_as(value)
    first = torch.autograd.grad(value, (x, y), seed + value.detach(), create_graph=True, materialize_grads=True)
    penalty = sum((g * g).sum() for g in torch.autograd.grad((operation(x, y) ** 2).sum(), x, create_graph=True))
    return [value, *first, *torch.autograd.grad(penalty, (x, y), materialize_grads=True)]


@pytest.mark.parametrize("height", [8, 70])  # the latter is more than two stripes of the filter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_matches_the_twin_twice(name, dtype, height):
    """The twin is the same composition in float64, which never is native."""
    assert native_ops.usable(image(1, dtype, 2, 24, height, 6))
    native, twin = (results(OPERATIONS[name], of, height) for of in (dtype, torch.float64))
    # Worst seen, relative to the largest number: 2e-7 and 6e-3 (bfloat16 rounds between the operations).
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for a, b in zip(native, twin, strict=True):
        assert a.dtype == dtype and (a - b).abs().max() <= tolerance * b.abs().max()


def test_a_clamped_number_has_no_gradient():
    x = torch.tensor([-9.0, -1.0, 1.0, 9.0]).repeat(8, 1)[None, :, None].contiguous(memory_format=torch.channels_last)
    x = x.requires_grad_()
    y = block_ops.lrelu_clamp_add(x, torch.zeros_like(x), 0.7)
    assert torch.allclose(y[0, 0, 0], torch.tensor([-0.7, -0.2, 0.7, 0.7]), rtol=0, atol=1e-7)
    y.sum().backward()
    assert torch.allclose(x.grad[0, 0, 0], torch.tensor([0.0, 0.2, 0.0, 0.0]), rtol=0, atol=1e-7)


def test_neither_threads_nor_the_batch_change_a_bit():
    x, twice = (image(3, torch.bfloat16, 4, 16, size, size).detach() for size in (72, 144))
    before = torch.get_num_threads()
    outcomes = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            filtered = native_ops.fir(x, 2, activation=(0.2, 1.0), activate=True)
            outcomes.append((filtered, native_ops.fir_transpose(x, twice), native_ops.activate(x, 0.2, 1.0, x)))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)
    alone = x[2:3].contiguous(memory_format=torch.channels_last)
    assert torch.equal(native_ops.fir(alone, 2, activation=(0.2, 1.0), activate=True), outcomes[0][0][2:3])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(value):
    """A step is skipped for it: an activation or a filter must not hide it."""
    for dtype in native_ops.DTYPES:
        x = image(4, dtype, 1, 8, 8, 8).detach()
        x[0, 3, 4, 4] = value
        for y in (
            ops.blur(x, 2),
            block_ops.lrelu_clamp_blur(x, None, 2),
            block_ops.lrelu_clamp_add(x, x),
            ops.upsample(x),
        ):
            assert not y[0, 3].isfinite().all() and y[0, 2].isfinite().all()


def test_other_images_are_left_to_the_twins(monkeypatch):
    x = image(5, torch.float32, 2, 16, 8, 8)
    assert native_ops.usable(x)
    assert not native_ops.usable(x.contiguous())
    assert not native_ops.usable(x.double())
    assert not native_ops.usable(image(5, torch.float32, 2, 3, 8, 8))
    monkeypatch.setattr(native_ops, "_load", lambda: None)
    assert not native_ops.usable(x)


@pytest.mark.parametrize("threads", [1, 2])
def test_pictures_of_8_bits_are_those_of_the_twin(threads):
    """Numbers at, beside and between the steps, and beyond them, in images of many and of few pixels."""
    steps = torch.arange(-10, 266, dtype=torch.float32) / 255
    halves = (torch.arange(-10, 266, dtype=torch.float32) + 0.5) / 255
    beside = torch.cat([x.nextafter(torch.tensor(y)) for x in (steps, halves) for y in (-9.0, 9.0)])
    beyond = torch.tensor([-1e30, -4.0, 4.0, 1e30])
    drawn = torch.rand(2 * 3 * 130 * 130, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    numbers = torch.cat([steps, halves, beside, beyond, drawn])[: 2 * 3 * 130 * 130]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for images in (numbers.view(2, 3, 130, 130), numbers[:30].view(2, 3, 1, 5)):
            assert torch.equal(native_ops.pixels(images), quantize(2 * images - 1))
            assert quantize_rgb(images).is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(quantize_rgb(images.double()), quantize(2 * images.double() - 1))
    finally:
        torch.set_num_threads(before)
