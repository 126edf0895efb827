"""Scaling and casting of many tensors at once, against one at a time."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torch_utils.foreach import scale_and_cast_by_lists, scale_and_cast_reference

GAINS, DTYPES = (0.3, 1.0, -2.5), (torch.bfloat16, torch.float32, torch.bfloat16)


def leaves(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(size, dtype=dtype).requires_grad_() for size in ((4, 3), (5,), (2, 3, 3, 3))]


def test_values_and_gradients_are_the_same_bits():
    found = []
    for scale in (scale_and_cast_by_lists, scale_and_cast_reference):
        tensors = leaves()
        results = scale(tensors, GAINS, DTYPES)
        assert [t.dtype for t in results] == list(DTYPES)
        loss = sum(t.float().sin().sum() for t in results)
        found.append([*results, *torch.autograd.grad(loss, tensors)])
    for fast, slow in zip(*found, strict=True):
        assert fast.dtype == slow.dtype and torch.equal(fast, slow)


def test_what_nothing_was_made_of_gets_no_gradient():
    tensors = leaves()
    tensors[0].requires_grad_(False)
    _, second, _ = scale_and_cast_by_lists(tensors, GAINS, DTYPES)
    second.sum().backward()
    assert tensors[0].grad is None and tensors[2].grad is None
    assert torch.equal(tensors[1].grad, torch.ones(5))


def test_gradients_of_gradients():
    tensors = leaves(torch.float64)

    def scaled(*tensors):
        return scale_and_cast_by_lists(tensors, GAINS, [torch.float64] * 3)

    assert torch.autograd.gradcheck(scaled, tensors) and torch.autograd.gradgradcheck(scaled, tensors)


@pytest.mark.parametrize("count", [3, 300])
def test_few_kernels_for_any_number(count):
    """Counts what is dispatched: the point of it all."""

    class Names(TorchDispatchMode):
        names: list[str]

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.name().startswith(("aten::empty", "aten::detach")):
                self.names.append(func.name())
            return func(*args, **(kwargs or {}))

    tensors = [torch.ones(2)] * count
    scale_and_cast_by_lists(tensors, [2.0] * count, [torch.bfloat16] * count)  # the type's first use
    with Names() as mode:
        mode.names = []
        scale_and_cast_by_lists(tensors, [2.0] * count, [torch.bfloat16] * count)
    assert [name.partition(".")[0] for name in mode.names] == ["aten::_foreach_mul", "aten::_foreach_copy_"]
