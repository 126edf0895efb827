"""Compares the fast image operations with their slow twins, in value, gradient and gradient of the gradient."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torch_utils import convolution, ops


def image(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_filter_is_normalised_and_symmetric():
    fir = ops.fir_filter()
    assert fir.sum().item() == 1 and torch.equal(fir, fir.flip(0, 1)) and torch.equal(fir, fir.T)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resampling_and_blur_match_the_twins(dtype, layout):
    x = image(2, 3, 8, 6, dtype=dtype).detach().contiguous(memory_format=layout).requires_grad_()
    for fast, slow in (
        (ops.downsample, ops.downsample_reference),
        (ops.upsample, ops.upsample_reference),
        (lambda t: ops.blur(t, 2), lambda t: ops.blur_reference(t, 2)),
    ):
        expected = slow(x)
        seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        (gradient,) = torch.autograd.grad(fast(x), x, seed)
        (expected_gradient,) = torch.autograd.grad(expected, x, seed)
        # Worst seen: float64 2e-16, float32 1e-7, bfloat16 one unit in the last place (4e-3 on values up to 1).
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(fast(x), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("activate", [True, False])
def test_activation_matches_the_twin(activate, clamp):
    """Expects gain and bias taken into a convolution, as the layers do, to equal those applied after it."""
    x, gain = image(2, 3, 4, 4), 0.5
    bias = torch.tensor([0.3, -0.1, 0.0], dtype=x.dtype)
    total = gain * ops.LRELU_GAIN if activate else gain
    fast = (x + bias[:, None, None]) * total
    if activate:
        fast = ops.lrelu_clamp_(fast, clamp)
        torch.testing.assert_close(fast, ops.bias_act_reference(x, bias, True, gain, clamp), rtol=0, atol=1e-15)
    else:
        torch.testing.assert_close(fast, ops.bias_act_reference(x, bias, False, gain), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "operation",
    [
        ops.downsample,
        ops.upsample,
        lambda x: ops.blur(x, 1),
        lambda x: ops.blur(x, 2),
        lambda x: ops.lrelu_clamp_(x * 1.0, 0.7),
        lambda x: ops.lrelu_clamp_(x * 1.0),
        lambda x: convolution.conv2d(x, image(3, 2, 3, 3), image(3), padding=1),
    ],
    ids=["downsample", "upsample", "blur1", "blur2", "lrelu_clamp", "lrelu", "conv2d"],
)
def test_gradients_of_gradients(operation):
    x = image(1, 2, 4, 6)
    assert torch.autograd.gradcheck(operation, x)
    assert torch.autograd.gradgradcheck(operation, x)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(9, 3, 2, 0), (8, 3, 1, 1), (8, 3, 2, 1), (6, 1, 1, 0)]
)
def test_convolution_matches_the_twin_twice(monkeypatch, size, kernel, stride, padding):
    """Forces the bfloat16 path of CPUs in float64: value, gradients, and those of a squared gradient."""
    monkeypatch.setattr(convolution, "COLUMNS_LIMIT", 2 * 81 * 9 * 3)  # two samples at a time
    weight, bias = image(5, 3, kernel, kernel), image(5)

    def results(convolution):
        x = image(3, 3, size, size)
        y = convolution(x, weight, bias, stride, padding)
        first = torch.autograd.grad(y.cos().sum(), (x, weight, bias), create_graph=True)
        penalty = first[0].square().sum() + first[1].square().sum()
        return y, *first, *torch.autograd.grad(penalty, (x, weight, bias))

    for fast, slow in zip(results(convolution._Conv2d.apply), results(convolution.conv2d_reference), strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)  # worst seen 7e-13 (values reach 1e3)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [(9, 3, 2, 0), (8, 3, 2, 1), (6, 1, 1, 0)])
def test_the_librarys_gradient_of_a_weight_is_autograds(size, kernel, stride, padding):
    x, weight = image(3, 3, size, size), image(5, 3, kernel, kernel)
    y = convolution.conv2d_reference(x, weight, None, stride, padding)
    upstream = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, weight, upstream)
    found = convolution._library_weight(x.detach(), upstream, weight.shape, stride, padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


class Kernels(TorchDispatchMode):
    """Notes the kernel size of every convolution."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.sizes.append(args[1].shape[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("function", "largest"), [(convolution.conv2d, 3), (convolution.conv2d_reference, 16)])
def test_no_gradient_of_a_gradient_is_a_convolution_with_an_image(function, largest):
    """Runs R1's pattern where GPUs' paths are taken; PyTorch's own double backward is what it guards against."""
    x, weight = (torch.randn(shape, device="meta", requires_grad=True) for shape in ((2, 3, 16, 16), (5, 3, 3, 3)))
    with Kernels() as kernels:
        (grad,) = torch.autograd.grad(function(x, weight, padding=1).sum(), x, create_graph=True)
        grad.square().sum().backward()
    assert weight.grad is not None and max(kernels.sizes) == largest


def test_convolution_in_bfloat16_is_close_to_float32():
    x, weight, bias = image(4, 16, 9, 9).float().detach(), image(32, 16, 3, 3).float().detach(), image(32).float()
    low = [t.detach().bfloat16().requires_grad_() for t in (x, weight, bias)]
    full = [t.detach().float().requires_grad_() for t in low]
    y_low, y_full = convolution.conv2d(*low, stride=2), convolution.conv2d(*full, stride=2)
    assert y_low.grad_fn.name().startswith("_Conv2d") and not y_full.grad_fn.name().startswith("_Conv2d")
    for a, b in zip(
        (y_low, *torch.autograd.grad(y_low.sum(), low)), (y_full, *torch.autograd.grad(y_full.sum(), full)), strict=True
    ):
        assert (a - b).norm() < 0.01 * b.norm()  # worst seen 0.0025


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 3, 4), (2, 1, 4)), ((3, 1, 2), (3, 4, 1), (1, 4, 2))])
def test_a_product_is_added_as_addcmul_adds_it(shapes):
    inputs = [image(*shape) for shape in shapes[:2]] + [image(*shapes[2]) + 0.5]
    fast, slow = ops.add_product(*inputs), torch.addcmul(*inputs)
    upstream = torch.randn_like(slow)
    assert torch.equal(fast, slow)
    for a, b in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_downsample_refuses_odd_sizes():
    with pytest.raises(ValueError, match="even"):
        ops.downsample(image(1, 1, 5, 4))
