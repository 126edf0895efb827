"""Tests that finite scenes give finite images and gradients, and that other numbers are refused by name."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaussian import Cameras, Gaussians, backend_cpu, render
from tests.gaussian.scenes import BACKENDS, make_cameras, make_scene

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")
FAR = make_cameras(1, 1, seed=0, cx=0.4, fy=3.0, roll=1.0)  # position and directions that the points below refer to
needs_kernel = pytest.mark.skipif(not backend_cpu.available(), reason="no native back end")

scales = st.sampled_from([1e-12, 1e-6, 1e-3, 0.05, 1.0, 1e3, 1e6])
numbers = st.sampled_from([0.0, 1e-30, -1e-13, 1e-8, -0.3, 1.0, -1.0, 1e6, -1e18])
opacities = st.sampled_from([-3e38, -1e4, -100.0, -5.54126, 0.0, 4.0, 20.0, 1e4, 3e38])  # 0 and 1 among them
# Depth in front of the camera and offsets across its axis: on, just before and behind its plane and its near cut
depths = st.sampled_from([0.0, 1e-30, -1e-7, 0.19999, 0.2, 0.20001, 0.21, 2.7, -1.0, -1e6, 1e6, 1e15])
offsets = st.sampled_from([0.0, 1e-7, -0.1, 0.5, -3.0, 1e6, -1e15])
splat = st.fixed_dictionaries(
    {
        "place": st.tuples(offsets, offsets, depths),
        "scales": st.tuples(scales, scales, scales),
        "quat": st.one_of(st.just((0.0,) * 4), st.tuples(numbers, numbers, numbers, numbers)),
        "logit": opacities,
        "color": st.sampled_from([0.0, 1.0, -20.0, 20.0, 1e6]),
    }
)


def scene_of(splats, harmonics):
    """Makes a scene [1, N] in front of FAR, of those splats and an ordinary one."""
    right, down, ahead = FAR.cam2world[0, 0, :3, :3].double().unbind(-1)
    origin = FAR.positions[0, 0].double()
    means = [origin + x * right + y * down + z * ahead for x, y, z in (s["place"] for s in splats)]
    sh = torch.tensor([s["color"] for s in splats])[:, None, None].expand(-1, harmonics, 3)
    extreme = Gaussians(
        torch.stack(means).float()[None],
        torch.tensor([[s["scales"] for s in splats]]).log(),
        torch.tensor([[s["quat"] for s in splats]]),
        torch.tensor([[[s["logit"]] for s in splats]]),
        sh[None].clone(),
    )
    plain = make_scene(1, 1, size=0.2, coefficients=harmonics)
    both = {n: torch.cat([getattr(extreme, n), getattr(plain, n)], dim=1) for n in FIELDS}
    return Gaussians(**both)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(
    splats=st.lists(splat, min_size=1, max_size=6),
    harmonics=st.sampled_from([1, 1, 4, 16]),
    size=st.sampled_from([(1, 1), (8, 8), (5, 19), (33, 17)]),
    modifier=st.sampled_from([1.0, 1e-6, 1e6]),
)
def test_extreme_splats_stay_finite(backend, splats, harmonics, size, modifier):
    leaves = scene_of(splats, harmonics).map(lambda t: t.requires_grad_())
    out = render(leaves, FAR, size, scale_modifier=modifier, backend=backend)
    total = out.rgb.sum() + out.alpha.square().sum() - 0.5 * out.depth.sum()
    for name, value in {"rgb": out.rgb, "alpha": out.alpha, "depth": out.depth}.items():
        assert value.isfinite().all(), name
    assert out.alpha.min() >= 0 and out.alpha.max() <= 1
    for name, gradient in zip(FIELDS, torch.autograd.grad(total, [getattr(leaves, n) for n in FIELDS]), strict=True):
        assert gradient.isfinite().all(), name


def broken(field, value, coefficients=1):
    """Returns arguments of render() with one number of that field replaced."""
    scene, cameras = make_scene(2, 30, coefficients=coefficients), make_cameras(2, 2)
    arguments = {"scene": scene, "cameras": cameras, "resolution": 8, "background": torch.rand(2, 2, 3)}
    if field == "colors":
        arguments["colors"] = torch.rand(2, 30, 4)
        arguments["background"] = torch.rand(2, 2, 4)
    if field in FIELDS:
        tensor = getattr(scene, field).clone()
        arguments["scene"] = dataclasses.replace(scene, **{field: tensor})
    elif field in ("cam2world", "intrinsics"):
        tensor = getattr(cameras, field).clone()
        arguments["cameras"] = Cameras(
            **{"cam2world": cameras.cam2world, "intrinsics": cameras.intrinsics, field: tensor}
        )
    else:
        tensor = arguments[field]
    tensor[(1, *[0] * (tensor.ndim - 1))] = value
    return arguments


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", [*FIELDS, "colors", "background", "cam2world", "intrinsics"])
def test_what_is_not_finite_is_refused_by_name(backend, field, value):
    zeros = ", 0" * (getattr(broken(field, value)["scene"], field).ndim - 1 if field in FIELDS else 2)
    with pytest.raises(ValueError, match=rf"^{field} \[2, .*\] has 1 values .* {value} at \[1{zeros}") as caught:
        render(**broken(field, value), backend=backend)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_view_dependent_harmonics_are_checked_too(backend, value):
    with pytest.raises(ValueError, match=r"^sh"):
        render(**broken("sh", value, coefficients=4), backend=backend)
    render(**broken("sh", value, coefficients=4), colors=torch.rand(2, 30, 3), backend=backend)  # not looked at


@needs_kernel
def test_colours_that_overflow_are_an_error():
    scene = make_scene(1, 30, coefficients=16)
    with pytest.raises(ValueError, match="leave float32's range"):
        render(dataclasses.replace(scene, sh=torch.full_like(scene.sh, 3e38)), make_cameras(1, 1), 8, backend="cpu")


@needs_kernel
def test_a_training_step_may_look_for_itself():
    """Expects NaN in the broken scene's images alone where the check is off."""
    out = render(**broken("means", math.nan), check_finite=False)
    assert out.rgb[0].isfinite().all() and out.rgb[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_check_costs(backend, monkeypatch):
    """Expects the native back end to look at B x V numbers only, and the reference to check its inputs."""
    looked = []
    original = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda t: looked.append(t.numel()) or original(t))
    render(make_scene(1, 50), make_cameras(1, 1), 8, backend=backend)
    assert bool(looked) == (backend == "torch")
