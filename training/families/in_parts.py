"""Lets D judge what G made a part at a time, so that what its backward keeps is there for one part alone.

While G learns, D does not. All that G needs of it is the gradient of its images; with that, D's activations, which are
most of a step's memory, can go before the next part is judged. No image is judged twice; what D makes of its weights
and of cameras, it makes once for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.families.base import Loss

EVERY = slice(None)  # all images, in one part

# Of a part's images [n, 3, R, R]: what they cost the generator [n], their logits [n], and further values to report.
Opinion = Callable[[Tensor, slice], tuple[Tensor, Tensor, dict[str, Tensor]]]


def parts(count: int, groups: int, at_once: int) -> list[slice]:
    """Splits images 0 .. count - 1 into equal parts of whole minibatch-std groups, with at most `at_once` images.

    groups: of `minibatch_std`, where group m is the images m, m + groups, ...: part j of J is the images j, j + J, ...,
    and holds groups / J whole ones. at_once: 0 for one part. Where that would take more than twice the parts that are
    needed, as their number divides the groups, they are fewer and larger.
    """
    needed = count / (at_once or count)
    whole = [n for n in range(1, groups + 1) if groups % n == 0]
    number = next((n for n in whole if needed <= n <= 2 * needed), max(n for n in whole if n <= max(needed, 1)))
    return [slice(j, None, number) for j in range(number)]


class _Grafted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return images.new_zeros(len(images))

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


def grafted(images: Tensor, gradient: Tensor) -> Tensor:
    """Returns zeros [N] that hand images [N, 3, R, R] a gradient of their shape, whatever comes back to them.

    The gradient is a backward's that has run: it holds the factors of the loss that it is of.
    """
    return _Grafted.apply(images, gradient)  # type: ignore[no-any-return]


def part_by_part(
    images: Tensor, split: list[slice], opinion: Opinion
) -> Generator[Loss, None, tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Returns what `opinion` does of all images [N, 3, R, R], yielding a loss for each part where there are several.

    The costs are zeros then, whose backward hands the images the gradient of those that were yielded.
    """
    if len(split) == 1:
        return opinion(images, EVERY)
    gradient, logits = torch.empty_like(images), images.new_empty(len(images))
    for part in split:
        shown = images[part].detach().requires_grad_(True)
        cost, own, said = opinion(shown, part)
        yield Loss(cost, said)
        if shown.grad is None:
            raise RuntimeError("a loss has to go back before the next one is asked for")
        gradient[part], logits[part] = shown.grad, own.detach()
        del shown, cost, own  # before the next part is there
    return grafted(images, gradient), logits, {}
