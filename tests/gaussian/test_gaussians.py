"""Tests the record of splats: activations, subclasses, selections."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from gaussian.spherical_harmonics import basis
from tests.gaussian.scenes import Anchored, anchored, make_scene


def test_subclasses_survive_every_operation():
    scene = anchored()
    for other in (scene.detach(), scene.to("cpu", torch.float64), scene.scene(1), scene.select(1)):
        assert type(other) is Anchored and other.anchors is not None
    assert scene.scene(1).anchors.batch_size == 1
    assert scene.to(dtype=torch.float64).anchors.dtype == torch.float64
    assert scene.select(0).anchors.num_splats == 4  # a selection concerns the splats only


def test_selections():
    scene = anchored()
    fine = scene.select(1)
    assert fine.level_sizes == (4,) and torch.equal(fine.means, scene.means[:, 2:])
    assert torch.equal(scene.select(-1).sh, fine.sh)
    picked = scene.select(torch.tensor([5, 0]))
    assert picked.level_sizes == () and torch.equal(picked.quats, scene.quats[:, [5, 0]])
    assert scene.select(torch.arange(6) > 3).num_splats == 2
    assert torch.equal(scene.scene(-1).means, scene.means[1:])
    with pytest.raises(ValueError, match="level 2"):
        scene.select(2)
    with pytest.raises(ValueError, match="scene 2"):
        scene.scene(2)


@pytest.mark.parametrize(
    ("field", "shape"),
    [("means", (2, 6)), ("log_scales", (2, 6, 1)), ("quats", (2, 5, 4)), ("opacity_logits", (2, 6)), ("sh", (2, 6, 3)),
     ("sh", (2, 6, 2, 3))],
)  # fmt: skip
def test_wrong_shapes_are_named(field, shape):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(make_scene(2, 6), **{field: torch.zeros(shape)})
    with pytest.raises(ValueError, match="level_sizes"):
        dataclasses.replace(make_scene(2, 6), level_sizes=(2, 3))


def test_activations():
    scene = make_scene(1, 50)
    torch.testing.assert_close(scene.scales(), torch.exp(scene.log_scales))
    torch.testing.assert_close(scene.unit_quats().norm(dim=-1), torch.ones(1, 50))
    torch.testing.assert_close(scene.opacities(), torch.sigmoid(scene.opacity_logits))
    expected = (0.28209479177387814 * scene.sh[:, :, 0] + 0.5).clamp(min=0)
    torch.testing.assert_close(scene.colors(), expected)
    bright = dataclasses.replace(scene, sh=torch.full_like(scene.sh, 20.0))
    torch.testing.assert_close(bright.colors(), torch.full((1, 50, 3), 6.1418959))  # not limited from above


def test_clamped_channels_get_no_gradient():
    scene = make_scene(1, 3)
    sh = torch.tensor([-20.0, 0.0, 20.0]).expand(1, 3, 1, 3).clone().requires_grad_()
    dataclasses.replace(scene, sh=sh).colors().sum().backward()
    assert (sh.grad[..., 0] == 0).all() and (sh.grad[..., 1:] > 0).all()


def test_harmonics_are_orthonormal_and_signed_as_in_3dgs():
    """Integrates by a product quadrature that is exact for polynomials up to degree 6 on the sphere."""
    n = 8
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(n))
    phi = torch.arange(2 * n, dtype=torch.float64) * math.pi / n
    z = nodes[:, None].expand(n, 2 * n)
    radius = (1 - z * z).sqrt()
    values = basis(torch.stack([radius * phi.cos(), radius * phi.sin(), z], dim=-1), 3)
    area = (weights[:, None] * math.pi / n).expand(n, 2 * n)
    gram = torch.einsum("abi,abj,ab->ij", values, values, area)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)  # worst seen 7e-16
    first = basis(torch.eye(3, dtype=torch.float64), 1)[:, 1:]  # -y, z, -x
    assert first.sign().tolist() == [[0, 0, -1], [-1, 0, 0], [0, 1, 0]]


def test_higher_degrees_see_from_the_camera():
    scene = make_scene(2, 5, coefficients=16, dtype=torch.float64)
    viewpoints = torch.randn(2, 3, 3, dtype=torch.float64)
    colors = scene.colors(viewpoints)
    assert colors.shape == (2, 3, 5, 3)
    direction = scene.means[1, 4] - viewpoints[1, 2]
    values = basis(direction / direction.norm(), 3)
    torch.testing.assert_close(colors[1, 2, 4], (values @ scene.sh[1, 4] + 0.5).clamp(min=0))
    with pytest.raises(ValueError, match="viewpoints"):
        scene.colors()
