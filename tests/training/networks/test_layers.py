"""The layers that networks share, against their slow twins."""

import torch

from training.networks.layers import AdaptiveNorm, MappingNetwork, adaptive_norm_reference


def inputs(points=7):
    drawn = torch.Generator().manual_seed(0)
    shapes = (3, points, 5), (3, 1, 5), (3, 1, 5)
    return [torch.randn(s, generator=drawn, dtype=torch.float64).requires_grad_() for s in shapes]


def test_adaptive_norm_is_the_twin_in_value_and_gradient():
    norm, given = AdaptiveNorm(5, 4), inputs()
    fast, slow = norm(*given), adaptive_norm_reference(*given)
    assert torch.equal(fast, slow)
    upstream = torch.randn_like(slow)
    for a, b in zip(*(torch.autograd.grad(y, given, upstream) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_features_that_are_equal_in_all_points_have_finite_gradients():
    norm, (x, gamma, beta) = AdaptiveNorm(5, 4), inputs()
    flat = x[:, :1].detach().expand(-1, 7, -1).clone().requires_grad_()
    y = norm(flat, gamma, beta)
    assert torch.allclose(y, beta.expand_as(y), atol=1e-6)  # the mean's own rounding, times 1e8
    for gradient in torch.autograd.grad(y.square().sum(), (flat, gamma, beta)):
        assert gradient.isfinite().all()


def read_off(depth: int) -> float:
    """Returns the share of the variance of 64 normal numbers that the best linear reader finds in their w."""
    torch.manual_seed(0)
    network, z = MappingNetwork(64, 0, 64, depth), torch.randn(4000, 64)
    with torch.no_grad():
        w = torch.cat([network(z), torch.ones(len(z), 1)], dim=1).double()
    known, new = slice(0, 2000), slice(2000, 4000)
    reader = torch.linalg.lstsq(w[known], z[known].double()).solution
    return 1 - float((w[new] @ reader - z[new]).square().mean() / z[new].square().mean())


def test_layers_of_the_mapping_hide_a_latent_from_those_who_read_its_w() -> None:
    assert read_off(0) > 0.95  # all but its length
    assert read_off(2) < 0.6
