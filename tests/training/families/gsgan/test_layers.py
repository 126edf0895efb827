"""Fused layers against their slow twins, and attention over edges against its formula, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.families.gsgan import hierarchy, pointwise
from training.families.gsgan.edges import EdgeLayers, NeighbourEdges, SiblingEdges
from training.networks.discriminator import ConvLayer


def random(*shapes: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def assert_twins(fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Value and all gradients agree; worst seen 1e-14."""
    found, expected = fast(*inputs), slow(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    seed = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activate", [False, True])
def test_linear(activate: bool) -> None:
    inputs = random((3, 2, 5), (7, 5), (7,))
    assert_twins(
        lambda *i: pointwise.linear(*i, activate=activate),
        lambda *i: pointwise.linear_reference(*i, activate=activate),
        inputs,
    )


def test_residual_mlp() -> None:
    inputs = random((3, 2, 5), (9, 5), (9,), (5, 9), (5,))
    assert_twins(pointwise.residual_mlp, pointwise.residual_mlp_reference, inputs)


def by_formula(layers: EdgeLayers, x: Tensor, others: Tensor) -> Tensor:
    """The attended values [B, N, C] of points x [B, N, C] with their neighbours [B, N, K, C], edge by edge."""
    difference = others - x[:, :, None]
    both = torch.cat([x[:, :, None].expand_as(others), difference], dim=-1)

    def run(convolutions: Sequence[ConvLayer], values: Tensor) -> Tensor:
        rows = values.flatten(0, 2)[:, :, None, None]  # [B N K, C, 1, 1]
        for layer in convolutions:
            rows = layer(rows)
        return rows.view(*values.shape[:-1], -1)

    shares = run(list(layers.conv_w), difference).softmax(dim=2)  # type: ignore[arg-type]
    return (shares * run(list(layers.conv_x), both)).sum(dim=2)  # type: ignore[arg-type]


def randomized(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return list(module.parameters())


def test_edges_to_the_nearest_are_the_formula() -> None:
    torch.manual_seed(0)
    edges = NeighbourEdges(8, 6, neighbours=3, filter_key=False).double()
    parameters = randomized(edges)
    x, w = random((4, 2, 5, 8), (2, 6))  # A, B, P, C

    def slow(x: Tensor, w: Tensor, *_: Tensor) -> Tensor:
        rows = x.transpose(0, 1).reshape(2, 20, 8)
        y = rows - rows.mean(1, keepdim=True)
        y = y / (y.square().mean(1, keepdim=True).sqrt() + 1e-8)
        y = y * edges.norm.gamma(w)[:, None] + edges.norm.beta(w)[:, None]
        nearest = torch.cdist(y, y).argsort(dim=-1)[:, :, 1:4]
        others = torch.stack([y[b][nearest[b]] for b in range(2)])
        rows = rows + by_formula(edges, y, others) * edges.ls(w)[:, None]
        return rows.view(2, 4, 5, 8).transpose(0, 1)

    assert_twins(lambda x, w, *_: edges(x, w), slow, [x, w, *parameters])


def test_edges_to_siblings_are_the_formula() -> None:
    torch.manual_seed(0)
    edges = SiblingEdges(8, filter_key=False).double()
    parameters = randomized(edges)
    (x,) = random((8, 2, 3, 8))

    def slow(x: Tensor, *_: Tensor) -> Tensor:
        rows = x.permute(1, 2, 0, 3).reshape(2, 24, 8)  # children of one parent are consecutive
        group = torch.arange(24).view(6, 4).repeat_interleave(4, dim=0)  # [24, 4] siblings, the point itself included
        attended = by_formula(edges, rows, rows[:, group])
        return (rows + attended * edges.ls).view(2, 3, 8, 8).permute(2, 0, 1, 3)

    assert_twins(lambda x, *_: edges(x), slow, [x, *parameters])


def test_children_are_the_formula() -> None:
    """Each splat by itself: R (s tanh x) + parent, and a parent at the smallest scale is not divided."""
    rule = hierarchy.ScaleRule(-3.0, 0.7, (-8.0, 0.0))
    parent, raw = (
        hierarchy.Attributes(*(part.detach() for part in random((2 * n, 3, 3), (2 * n, 3, 3), (2 * n, 8, 3), seed=n)))
        for n in (1, 4)
    )
    parent = parent._replace(log_scales=parent.log_scales - 3.5)
    found = hierarchy.children(raw, hierarchy.frame_of(parent, rule), rule)
    undivided = 0
    for a in range(8):
        for m in range(3):
            xyz, scale, appearance = (part[a // 4, :, m] for part in parent)
            w, x, y, z = F.normalize(appearance[:4], dim=0)
            axis = torch.stack([x, y, z])
            offset = scale.exp() * raw.xyz[a, :, m].tanh()
            turned = offset + 2 * torch.linalg.cross(axis, torch.linalg.cross(axis, offset) + w * offset)
            torch.testing.assert_close(found.xyz[a, :, m], xyz + turned)
            divides = scale.exp().max() > torch.tensor(-3.0).exp()
            undivided += not divides
            bound = (scale - 0.7).clamp(-100, 0) if divides else scale
            expected = (bound - F.softplus(-raw.log_scales[a, :, m])).clamp(-8, 0)
            torch.testing.assert_close(found.log_scales[a, :, m], expected)
            torch.testing.assert_close(found.appearance[a, :, m], appearance + raw.appearance[a, :, m])
    assert 0 < undivided < 24
