"""Compares similarity transforms of scenes with cameras that are moved by independent arithmetic."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from gaussian import Cameras, Geometry, render
from gaussian.rotations import matrices_to_quats, multiply_quats, quats_to_matrices
from gaussian.spherical_harmonics import basis, rotation
from tests.gaussian.scenes import BACKENDS, anchored, make_cameras, make_scene

TRANSLATION = (0.4, -1.1, 0.7)


def make_rotations(count, seed=0):
    """Returns random rotations [count, 3, 3], float64, as products of turns about the axes."""
    generator = np.random.default_rng(seed)
    result = []
    for a, b, c in generator.uniform(-math.pi, math.pi, (count, 3)):
        about_x = [[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]]
        about_y = [[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]]
        about_z = [[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]]
        result.append(np.array(about_x) @ np.array(about_y) @ np.array(about_z))
    return torch.from_numpy(np.stack(result))


def moved_cameras(cameras, rotation, translation, scale):
    """Returns cameras [B, V] whose axes turn with the world and whose positions move as its points do."""
    cam2world = cameras.cam2world.clone()
    for b in range(cameras.shape[0]):
        for v in range(cameras.shape[1]):
            cam2world[b, v, :3, :3] = rotation[b] @ cameras.cam2world[b, v, :3, :3]
            cam2world[b, v, :3, 3] = scale[b] * (rotation[b] @ cameras.cam2world[b, v, :3, 3]) + translation[b]
    return Cameras(cam2world, cameras.intrinsics)


@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_moved_cameras_see_the_same_image(coefficients):
    scene = make_scene(2, 30, coefficients=coefficients, dtype=torch.float64)
    cameras = make_cameras(2, 3, roll=1.0, dtype=torch.float64)
    turn, scale = make_rotations(2), torch.tensor([1.7, 0.4]).double()
    shift = torch.tensor([TRANSLATION, (2.0, 0.0, -3.0)]).double()
    moved = scene.transformed(turn, shift, scale)
    before = render(scene, cameras, 24)
    after = render(moved, moved_cameras(cameras, turn, shift, scale), 24)
    torch.testing.assert_close(after.rgb, before.rgb, rtol=0, atol=1e-11)  # worst seen 3e-14
    torch.testing.assert_close(after.alpha, before.alpha, rtol=0, atol=1e-11)
    torch.testing.assert_close(after.depth, before.depth * scale[:, None, None, None, None], rtol=0, atol=1e-10)
    unmoved = render(scene, moved_cameras(cameras, turn, shift, scale), 24)
    assert (unmoved.rgb - before.rgb).abs().max() > 0.1  # the comparison can fail


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_transform_serves_all_scenes(backend):
    scene, cameras = make_scene(2, 30), make_cameras(2, 1)
    turn = make_rotations(1)[0].float()
    moved = scene.transformed(turn, TRANSLATION, 3.0)
    theirs = moved_cameras(cameras, turn.expand(2, 3, 3), torch.tensor([TRANSLATION] * 2), (3.0, 3.0))
    after = render(moved, theirs, 24, backend=backend).rgb
    torch.testing.assert_close(
        after, render(scene, cameras, 24, backend=backend).rgb, rtol=0, atol=1e-4
    )  # worst seen 4e-6


@pytest.mark.parametrize("field", ["means", "log_scales", "quats", "sh"])
def test_a_field_left_behind_shows(field):
    """Expects another image if any one part of the transform is left out."""
    scene = make_scene(1, 30, size=0.08, coefficients=9, dtype=torch.float64)
    cameras, turn = make_cameras(1, 2, dtype=torch.float64), make_rotations(1)
    moved = scene.transformed(turn, TRANSLATION, 1.5)
    broken = dataclasses.replace(moved, **{field: getattr(scene, field)})
    theirs = moved_cameras(cameras, turn, torch.tensor([TRANSLATION]).double(), (1.5,))
    assert (render(broken, theirs, 24).rgb - render(scene, cameras, 24).rgb).abs().max() > 0.02


def test_the_export_to_label_units():
    """Expects `Geometry.denormalize` to move cameras as `transformed` moves scenes."""
    geometry = Geometry((0, 0, 0), (0, 0, 0), 2.7, ((4.2, 0, 0.5), (0, 4.2, 0.5), (0, 0, 1)), 3.0, (1.0, -2.0, 0.5))
    scene, camera = make_scene(1, 30), geometry.orbit(0.3).reshape(1, 1)
    exported = scene.transformed(translation=geometry.origin, scale=geometry.world_scale)
    theirs = render(exported, geometry.denormalize(camera), 24).rgb
    torch.testing.assert_close(theirs, render(scene, camera, 24).rgb, rtol=0, atol=5e-4)
    assert exported.quats is scene.quats and exported.sh is scene.sh
    torch.testing.assert_close(exported.means, scene.means * 3 + torch.tensor([1.0, -2.0, 0.5]), rtol=0, atol=0)


def test_the_identity_changes_nothing():
    scene = anchored()
    same = scene.transformed()
    assert torch.equal(same.means, scene.means) and torch.equal(same.log_scales, scene.log_scales)


def test_nested_gaussians_move_too():
    scene = anchored()
    turn = make_rotations(1)[0].float()
    moved = scene.transformed(turn, TRANSLATION, 2.0)
    assert type(moved) is type(scene) and moved.level_sizes == (2, 4)
    expected = 2 * torch.einsum("ij,bnj->bni", turn, scene.anchors.means) + torch.tensor(TRANSLATION)
    torch.testing.assert_close(moved.anchors.means, expected)


def test_a_zero_quaternion_turns_as_the_identity_does():
    scene = make_scene(1, 1)
    zero, identity = torch.zeros(1, 1, 4), torch.tensor([[[1.0, 0, 0, 0]]])
    turn = make_rotations(1)[0].float()
    a, b = (dataclasses.replace(scene, quats=quats).transformed(turn) for quats in (zero, identity))
    torch.testing.assert_close(a.quats, b.quats)


def test_the_transform_is_differentiable():
    scene = make_scene(1, 3, coefficients=4, dtype=torch.float64)
    turn, shift = make_rotations(1), torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    moved = scene.transformed(turn, shift, scale)
    (moved.means.sum() + moved.log_scales.sum()).backward()
    torch.testing.assert_close(shift.grad, torch.full((1, 3), 3.0, dtype=torch.float64))
    expected = (scene.means @ turn.mT).sum() + 9
    torch.testing.assert_close(scale.grad[0], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": -1.0}, "scale"),
        ({"scale": math.inf}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"rotation": 2 * torch.eye(3)}, "orthonormal"),
        ({"rotation": torch.full((3, 3), math.nan)}, "orthonormal"),
        ({"rotation": torch.diag(torch.tensor([-1.0, 1.0, 1.0]))}, "reflection"),
    ],
)
def test_what_is_no_similarity_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scene().transformed(**arguments)


def test_quaternions_and_matrices_agree():
    turns = make_rotations(50)
    half_turns = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double().diag_embed()
    turns = torch.cat([turns, half_turns])
    quats = matrices_to_quats(turns)
    torch.testing.assert_close(quats_to_matrices(quats), turns, rtol=0, atol=1e-14)
    product = multiply_quats(quats[:-1], quats[1:])
    torch.testing.assert_close(quats_to_matrices(product), turns[:-1] @ turns[1:], rtol=0, atol=1e-14)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_rotated_harmonics(degree):
    turns = make_rotations(5)
    matrices = rotation(turns, degree)  # [5, K, K]
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=-1)
    coefficients = torch.randn((degree + 1) ** 2, generator=generator, dtype=torch.float64)
    for turn, matrix in zip(turns, matrices, strict=True):
        old = basis(directions, degree) @ coefficients
        new = basis((turn @ directions.T).T, degree) @ (matrix @ coefficients)
        torch.testing.assert_close(new, old, rtol=0, atol=1e-13)  # worst seen 1.4e-14
    eye = torch.eye((degree + 1) ** 2, dtype=torch.float64)
    torch.testing.assert_close(matrices @ matrices.mT, eye.expand_as(matrices), rtol=0, atol=1e-13)
    degrees = torch.tensor([l for l in range(degree + 1) for _ in range(2 * l + 1)])
    assert matrices[:, degrees[:, None] != degrees].abs().sum() < 1e-12  # degrees do not mix
