"""Tests that rendering a part of a scene gives the bits of selecting it first, without a copy of the scene."""

import dataclasses

import pytest
import torch

from gaussian import Gaussians, backend_cpu, render
from tests.gaussian.scenes import BACKENDS, make_cameras, make_scene

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")
SPLATS = 1500  # more than one item of the kernel's loops
LEVELS = (300, 500, 700)
SUBSETS = {
    "level": 1,
    "slice": slice(100, 1303),
    "steps": slice(20, None, 3),
    "indices": torch.tensor([5, 1400, 7, 3, -1, 900]),
    "repeated": torch.tensor([5, 1400, 5, 5]),
    "mask": torch.arange(SPLATS) % 5 == 2,
    "shuffled": torch.randperm(SPLATS, generator=torch.Generator().manual_seed(3)),
    "empty": slice(40, 10),
}


def gradients(scene, colors, show):
    """Returns outputs and gradients of `show(scene, colors)`."""
    leaves = scene.map(lambda t: t.clone().requires_grad_())
    colors = None if colors is None else colors.clone().requires_grad_()
    out = show(leaves, colors)
    generator = torch.Generator().manual_seed(1)
    total = sum((t * torch.randn(t.shape, generator=generator)).sum() for t in (out.rgb, out.alpha, out.depth))
    inputs = [getattr(leaves, name) for name in FIELDS] + ([] if colors is None else [colors])
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [out.rgb.detach(), out.alpha.detach(), out.depth.detach(), *found]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("subset", SUBSETS.values(), ids=SUBSETS)
@pytest.mark.parametrize("kind", ["sh", "view-dependent sh", "colors", "colors per view"])
def test_renders_as_the_selection_does(backend, subset, kind):
    scene = make_scene(2, SPLATS, coefficients=4 if kind == "view-dependent sh" else 1)
    scene = dataclasses.replace(scene, level_sizes=LEVELS)
    lead = {"colors": (2,), "colors per view": (2, 2)}.get(kind)
    colors = None if lead is None else torch.rand(*lead, SPLATS, 5, generator=torch.Generator().manual_seed(0))
    cameras, rows = make_cameras(2, 2, cx=0.45), scene.rows_of(subset)

    def select_first(scene, colors):
        part = None if colors is None else colors[..., rows, :]
        return render(scene.select(subset), cameras, 12, colors=part, backend=backend)

    direct = gradients(scene, colors, lambda s, c: render(s, cameras, 12, colors=c, subset=subset, backend=backend))
    selected = gradients(scene, colors, select_first)
    for one, other in zip(direct, selected, strict=True):
        if subset is SUBSETS["repeated"] and one is not None:  # two ways to add up a splat drawn three times
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        else:
            assert (one is None and other is None) or torch.equal(one, other)
    assert any(t is not None and t.any() for t in direct[3:]) == (rows != slice(40, 40))


@pytest.mark.skipif(not backend_cpu.available(), reason="no native back end")
@pytest.mark.parametrize("subset", [slice(100, 1303), torch.tensor([3, 1200, 40])], ids=["slice", "indices"])
def test_the_native_kernel_reads_the_scene_where_it_lies(subset, monkeypatch):
    """Expects it to get the addresses of the whole scene's tensors, and no tensor to be gathered."""
    scene, cameras, seen = make_scene(2, SPLATS), make_cameras(2, 1), []
    original = backend_cpu._Problem
    monkeypatch.setattr(backend_cpu, "_Problem", lambda *values: seen.append(original(*values)) or seen[-1])
    monkeypatch.setattr(Gaussians, "select", None)
    render(scene, cameras, 8, subset=subset, backend="cpu")
    (problem,) = seen
    start = subset.start if isinstance(subset, slice) else 0
    assert problem.rows == SPLATS and problem.splats == (1203 if start else 3)
    for name, width in (("means", 3), ("log_scales", 3), ("quats", 4)):
        assert getattr(problem, name) == getattr(scene, name).data_ptr() + 4 * width * start
    assert problem.logits == scene.opacity_logits.data_ptr() + 4 * start
    assert problem.colors == scene.sh.data_ptr() + 12 * start
    assert bool(problem.index) == isinstance(subset, torch.Tensor)


def test_slices_and_levels_are_views():
    scene = dataclasses.replace(make_scene(2, SPLATS), level_sizes=LEVELS)
    for which in (1, slice(300, 800)):
        assert scene.select(which).means.data_ptr() == scene.means[:, 300:].data_ptr()
    assert scene.rows_of(-1) == slice(800, 1500)


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (3, "level 3 does not exist"),
        (torch.tensor([0, SPLATS]), r"splats 0..1500 were selected, but there are 0..1499"),
        (torch.tensor([-SPLATS - 1]), "were selected"),
        (torch.tensor([0.5]), "must be integers"),
        (torch.ones(3, dtype=torch.bool), r"bool mask \[1500\]"),
        (torch.zeros(2, 2, dtype=torch.long), "must be integers"),
    ],
)
def test_wrong_subsets_are_named(subset, message):
    scene = dataclasses.replace(make_scene(1, SPLATS), level_sizes=LEVELS)
    with pytest.raises(ValueError, match=message):
        render(scene, make_cameras(1, 1), 8, subset=subset)


def test_only_what_is_drawn_must_be_finite():
    scene = make_scene(1, 20)
    means = scene.means.clone()
    means[0, 3] = torch.nan
    scene = dataclasses.replace(scene, means=means)
    for backend in ("auto", "torch"):
        assert render(scene, make_cameras(1, 1), 8, subset=slice(4, 20), backend=backend).rgb.isfinite().all()
        with pytest.raises(ValueError, match="means"):
            render(scene, make_cameras(1, 1), 8, subset=slice(3, 20), backend=backend)
