"""Works on many tensors in a few kernels: a network has hundreds of weights, most of them smaller than a launch."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def scale_and_cast_reference(
    tensors: Sequence[Tensor],
    gains: Sequence[float],  # a factor for each
    dtypes: Sequence[torch.dtype],  # the type of each result
) -> tuple[Tensor, ...]:
    """Returns gain * tensor in the stated type for each tensor, multiplied in the tensor's own type."""
    return tuple((t if g == 1 else t * g).to(d) for t, g, d in zip(tensors, gains, dtypes, strict=True))


def scale_and_cast(
    tensors: Sequence[Tensor], gains: Sequence[float], dtypes: Sequence[torch.dtype]
) -> tuple[Tensor, ...]:
    """Computes scale_and_cast_reference, to the bit, on GPUs in a few kernels for all tensors.

    CPUs have no launches to save: lists take them a tenth to twice the time, as all results are written before the
    first is read. A compiler fuses by itself.
    """
    if not tensors or tensors[0].device.type == "cpu" or torch.compiler.is_compiling():
        return scale_and_cast_reference(tensors, gains, dtypes)
    return scale_and_cast_by_lists(tensors, gains, dtypes)


def scale_and_cast_by_lists(
    tensors: Sequence[Tensor], gains: Sequence[float], dtypes: Sequence[torch.dtype]
) -> tuple[Tensor, ...]:
    """Computes scale_and_cast_reference by PyTorch's operators on lists; differentiable any number of times."""
    return _ScaleAndCast.apply(tuple(gains), tuple(dtypes), *tensors)


class _ScaleAndCast(torch.autograd.Function):
    """Scales and casts; the transpose does the same with the types exchanged."""

    @staticmethod
    def forward(ctx: Any, gains: tuple[float, ...], dtypes: tuple[torch.dtype, ...], *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)  # a result that nothing was made of gets no gradient
        ctx.gains, ctx.dtypes = gains, tuple(t.dtype for t in tensors)
        wide = [_wider(t.dtype, dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
        return tuple(_cast(torch._foreach_mul(_cast(tensors, wide), gains), dtypes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * len(grads)
        wanted = [i for i, g in enumerate(grads) if g is not None and ctx.needs_input_grad[2 + i]]
        if wanted:
            gains, dtypes = ([values[i] for i in wanted] for values in (ctx.gains, ctx.dtypes))
            for i, grad in zip(wanted, scale_and_cast_by_lists([grads[i] for i in wanted], gains, dtypes), strict=True):  # type: ignore[misc]
                found[i] = grad
        return None, None, *found


@functools.cache
def _wider(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    return torch.promote_types(one, other)


def _cast(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Returns the tensors in the stated types; those that have them already as they are."""
    result = list(tensors)
    changed = [i for i, (t, dtype) in enumerate(zip(tensors, dtypes, strict=True)) if t.dtype != dtype]
    if changed:
        for i in changed:
            result[i] = torch.empty_like(tensors[i], dtype=dtypes[i])
        torch._foreach_copy_([result[i] for i in changed], [tensors[i] for i in changed])
    return result
