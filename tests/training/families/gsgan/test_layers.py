"""Fused layers against their slow twins, and attention over edges against its formula, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils import point_ops
from training.families.gsgan import hierarchy, neighbour_attention, point_mlp, pointwise, sibling_attention
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
    assert_twins(point_mlp.residual_mlp, point_mlp.residual_mlp_reference, inputs)


def test_heads_read_a_residual_mlp() -> None:
    inputs = random((3, 2, 5), (9, 5), (9,), (5, 9), (5,), (4, 5))
    assert_twins(point_mlp.read_mlp, point_mlp.read_mlp_reference, inputs)


NEIGHBOURS = torch.randint(150, (2, 150, 5), generator=torch.Generator().manual_seed(0))

NATIVE = {  # function, twin, shapes of its tensors; those of points come first
    "MLP": (point_mlp.residual_mlp, point_mlp.residual_mlp_reference,
            ((8, 3, 70, 24), (96, 24), (96,), (24, 96), (24,))),
    "MLP and heads": (point_mlp.read_mlp, point_mlp.read_mlp_reference,
                      ((8, 3, 70, 24), (96, 24), (96,), (24, 96), (24,), (14, 24))),
    "division": (pointwise.divided, pointwise.divided_reference,
                 ((8, 3, 70, 12), (8, 3, 70, 20), (80, 12), (80,))),
    "attention": (sibling_attention.sibling_attention, sibling_attention.sibling_attention_reference,
                  ((2, 4, 210, 24), (60, 24), (12,), (24,), (24, 12), (24,), (24, 24), (24,))),
    "attention of few": (sibling_attention.sibling_attention, sibling_attention.sibling_attention_reference,
                         ((40, 4, 9, 24), (60, 24), (12,), (24,), (24, 12), (24,), (24, 24), (24,))),
    "attention to neighbours": (
        lambda x, *rest: neighbour_attention.neighbour_attention(x, NEIGHBOURS, *rest),
        lambda x, *rest: neighbour_attention.neighbour_attention_reference(x, NEIGHBOURS, *rest),
        ((2, 150, 72), (180, 72), (36,), (72,), (72, 36), (72,), (72, 72), (72,))),
}  # fmt: skip
needs_native = pytest.mark.skipif(not point_ops.available(), reason="no C++ compiler, or SPLATGAN_NATIVE=0")


def outcome(function: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Value and gradients of a function of points and parameters, all of a type."""
    leaves = [part.detach().to(dtype).requires_grad_() for part in inputs]
    value = function(*leaves)
    (seed,) = random(value.shape, seed=1)
    return [value, *torch.autograd.grad(value, leaves, seed.detach().bfloat16().to(dtype))]


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NATIVE)
def test_native_code_is_its_twin_in_float64(name: str, dtype: torch.dtype) -> None:
    function, twin, shapes = NATIVE[name]
    inputs = [part.bfloat16() for part in random(*shapes)]
    assert point_ops.usable(inputs[0].to(dtype)) and not point_ops.usable(inputs[0].double())
    # Relative to the rms; where that is too strict, twice what the twin is off in this type. Worst seen: 4e-6 of the
    # twin's 4e-6, and 8e-2 of 9e-2, as bfloat16 rounds between the operations, and turns single slopes of a leaky ReLU.
    # The bias of shares has no gradient, for which the twin finds rounding errors.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-2}[dtype]
    found, rounded = (outcome(some, inputs, dtype) for some in (function, twin))
    exact = outcome(twin, inputs, torch.float64)
    for a, own, b in zip(found, rounded, exact, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert (a - b).norm() <= max(tolerance * b.norm(), 2 * (own - b).norm()) + 1e-10


@needs_native
@pytest.mark.parametrize("name", NATIVE)
def test_threads_do_not_change_a_bit(name: str) -> None:
    function, _, shapes = NATIVE[name]
    before, outcomes = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            outcomes.append(outcome(function, random(*shapes), torch.bfloat16)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outcomes)


@needs_native
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    """A step is skipped for it: no activation may hide it."""
    for function, _, shapes in NATIVE.values():
        for dtype in point_ops.DTYPES:
            inputs = random(*shapes)
            inputs[0].data.flatten()[5] = value
            assert not outcome(function, inputs, dtype)[0].isfinite().all()


@needs_native
def test_gelu_far_out_and_at_0() -> None:
    x = torch.tensor([-3e38, -200.0, -20.0, -13.0, -5.0, -1e-3, 0.0, 1e-30, 1e-3, 5.0, 13.0, 200.0, 3e38])
    slope, exact = x.repeat(9, 1), x.double().requires_grad_()
    hidden = point_ops.gelu_(slope, torch.zeros_like(x))
    expected = F.gelu(exact)
    expected.sum().backward()
    assert exact.grad is not None
    torch.testing.assert_close(hidden[8].double(), expected.detach(), rtol=1e-6, atol=5e-7)  # worst seen 3e-7
    torch.testing.assert_close(slope[8].double(), exact.grad, rtol=1e-6, atol=5e-7)


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
