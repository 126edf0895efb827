"""The generator of GGHead: where splats start, what they depend on, grids, noise, backdrop, and the terms on them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from gaussian import Cameras, Geometry
from tests.training.families.gghead.file_writer import small_generator
from torch_utils.random import Draws
from training.families.base import CheckpointInfo, StepContext
from training.families.gghead import decoding, template
from training.families.gghead.generator import Generator, GeneratorConfig
from training.families.gghead.objective import beta, mean_norm, uv_total_variation
from training.families.inspection import Inspection, inspect_splats

FFHQ = Geometry((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 2.7, ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0)))


def network(dtype: torch.dtype = torch.float32, **changes) -> Generator:
    torch.manual_seed(0)
    return Generator(small_generator(**changes)).to(dtype).eval()


def cameras(count: int, dtype: torch.dtype = torch.float32) -> Cameras:
    return FFHQ.orbit(torch.linspace(-0.3, 0.3, count)).to(dtype=dtype)


def test_every_splat_starts_on_its_anchor():
    G = network()
    with torch.no_grad():
        scene = G.synthesis(G.mapping(torch.randn(2, 16), cameras(2)))
    anchors, uv = G.grid()
    assert torch.equal(scene.means, anchors.expand(2, -1, -1)) and torch.equal(scene.uv, uv.expand(2, -1, -1))
    neutral = decoding.decode(torch.zeros(1, len(anchors), 22), anchors, uv, G.config)
    assert neutral.log_scales.unique().item() == pytest.approx(-5.1269, abs=1e-4)
    assert neutral.opacities().unique().item() == pytest.approx(0.5, abs=1e-6)
    assert torch.equal(neutral.quats, torch.tensor([0.0, 1.0, 0.0, 0.0]).expand_as(neutral.quats))


def test_scenes_depend_on_latent_and_camera_but_not_on_the_batch():
    G = network(torch.float64)
    z, seen = torch.randn(3, 16).double(), cameras(3, torch.float64)
    with torch.no_grad():
        scene = G.synthesis(G.mapping(z, seen))
        alone = G.synthesis(G.mapping(z[1:2], seen[1:2]))
        torch.testing.assert_close(scene.raw[1:2], alone.raw, rtol=0, atol=1e-12)
        assert not torch.equal(G.mapping(z, seen), G.mapping(z, seen[[1, 2, 0]]))
        blind = network(torch.float64, pose_conditioning=False)
        assert torch.equal(blind.mapping(z, seen), blind.mapping(z))


def test_without_cameras_the_frontal_one_is_told():
    G, z = network(), torch.randn(2, 16)
    with pytest.raises(ValueError, match="this generator has no geometry"):
        G.mapping(z)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator, "geometry", FFHQ)
        assert torch.equal(G.mapping(z), G.mapping(z, FFHQ.frontal().reshape(1).expand(2)))


def test_noise_is_that_of_the_sample_in_training_and_constant_at_rest():
    G, ws = network(), torch.randn(3, 6, 12)
    with torch.no_grad():
        for block in G.backbone.synthesis.blocks():
            for layer in block.layers():
                layer.noise_strength.fill_(1.0)
        at, other = (StepContext(0, Draws(0, range(i, i + 3))) for i in (5, 6))
        first, second, rest = G.planes(ws, at), G.planes(ws, other), G.planes(ws)
        torch.testing.assert_close(G.planes(ws[[1, 1, 2]], other)[:1], first[1:2], rtol=0, atol=1e-5)
    assert not torch.equal(first, second) and not torch.equal(first, rest) and torch.equal(rest, G.planes(ws))


def test_the_truncation_centre():
    G, z = network(), torch.randn(2, 16)
    ws = G.mapping(z, cameras(2))
    G.update_average(ws.mean(0), 32)
    torch.testing.assert_close(G.w_avg, 0.002 * ws.mean(0)[0])
    torch.testing.assert_close(G.mapping(z, cameras(2), psi=0)[:, 0], G.w_avg.expand(2, -1))
    torch.testing.assert_close(G.mapping(z, cameras(2), psi=0.5), G.w_avg + 0.5 * (ws - G.w_avg))


def test_of_two_grids_each_part_of_a_run_has_its_own():
    G, ws = network(first_samples=6, refined_nimg=1000), torch.randn(1, 6, 12)
    draws = Draws(0, range(1))
    early, late = (G.synthesis(ws, StepContext(nimg, draws)) for nimg in (999, 1000))
    assert early.num_splats < 36 < late.num_splats <= 100
    assert G.synthesis(ws).num_splats == G.scene_numbers == early.num_splats
    G.note_progress(1000)
    assert G.synthesis(ws).num_splats == G.scene_numbers == late.num_splats


def test_a_backdrop_is_the_background_and_opaque():
    G = network(background_channels=3)
    scene = G.synthesis(torch.randn(2, 6, 12))
    out = G.render(scene, cameras(2)[:, None], background=torch.zeros(3))
    assert (out.alpha == 1).all() and torch.equal(out.rgb, G.render(scene, cameras(2)[:, None]).rgb)
    hidden = dataclasses.replace(scene, opacity_logits=scene.opacity_logits - 50)
    behind = G.render(hidden, cameras(2)[:, None]).rgb[:, 0]
    size = torch.nn.functional.interpolate(scene.backdrop, (32, 32), mode="bilinear")
    torch.testing.assert_close(behind, (1.002 * size.tanh() - 0.001 + 1) / 2, rtol=0, atol=1e-6)
    small = G.render(hidden, cameras(2)[:, None], resolution=8).rgb
    assert small.shape == (2, 1, 3, 8, 8) and small.std() > 0


def test_looks_without_the_backdrop_and_in_the_colours_of_one_camera():
    G = network(background_channels=3, sh_degree=1)
    G.info = CheckpointInfo({}, FFHQ, (-0.5, 0.5), "white")
    assert G.has_background and G.colors_follow_view and G.mapping_follows_camera
    scene = G.synthesis(torch.randn(2, 6, 12))
    asked = Inspection(disable_background=True, colors_from=(20.0, 5.0), opaque=True, scale=0.5)
    shown = inspect_splats(G, asked)(scene)
    assert shown.backdrop is None and (shown.opacities() == 1).all()
    torch.testing.assert_close(shown.scales(), scene.scales() / 2)
    place = FFHQ.orbit(math.radians(20), math.radians(5)).positions.expand(2, 1, 3)
    assert shown.sh_degree == 0
    torch.testing.assert_close(shown.colors(), scene.colors(place)[:, 0], rtol=0, atol=1e-6)
    assert (G.render(shown, cameras(2)[:, None]).alpha < 1).any()
    plain = network(sh_degree=0)
    with pytest.raises(ValueError, match="--disable-background: the scenes of this network"):
        inspect_splats(plain, Inspection(disable_background=True))
    with pytest.raises(ValueError, match="--colors-from: the colours of this network"):
        inspect_splats(plain, Inspection(colors_from=(0.0,)))


@pytest.mark.parametrize("shape", [(2, 12), (2, 5, 12), (2, 6, 11)])
def test_wrong_shapes_are_refused(shape):
    G = network()
    with pytest.raises(ValueError, match=r"ws must have shape \[B, 6, 12\]"):
        G.synthesis(torch.randn(shape))
    with pytest.raises(ValueError, match=r"z must have shape \[B, 16\]"):
        G.mapping(torch.randn(2, 12), cameras(2))


# ---------------------------------------------------------------- activations and terms


def test_rotations_are_those_of_their_vectors_with_the_numbers_moved():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [1e-9, 0, 0], [0.3, -1.2, 2.0], [0, 0, math.pi]], dtype=torch.float64)
    z, w, x, y = decoding.quaternions(vectors).unbind(-1)
    angle = vectors.norm(dim=-1)
    torch.testing.assert_close(w, (angle / 2).cos())
    axis = torch.stack([x, y, z], dim=-1)
    torch.testing.assert_close(axis * angle[:, None], vectors * (angle / 2).sin()[:, None], rtol=0, atol=1e-12)
    torch.testing.assert_close(decoding.quaternions(vectors).norm(dim=-1), torch.ones(4).double())


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    vectors = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(decoding.quaternions, vectors)
    zero = torch.zeros(1, 3, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(decoding.quaternions(zero)[0, 2], zero)  # x of the axis
    torch.testing.assert_close(gradient, torch.tensor([[0.5, 0, 0]], dtype=torch.float64))
    assert torch.autograd.gradcheck(decoding.log_scales, vectors) and torch.autograd.gradcheck(
        decoding.harmonics, vectors
    )
    opacities = torch.rand(2, 3, 1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(beta, opacities)
    rendered = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    rendered[:, 2] = 1 - 2 * rendered[:, 2].clamp(0.2)
    rendered[0, 2, 1, 2], rendered[1, 2, 0] = 1.0, 1.0  # no surface there
    for pooled in (False, True):
        assert torch.autograd.gradcheck(lambda r, p=pooled: uv_total_variation(r, p), rendered.requires_grad_())


def test_norms_have_no_gradient_at_zero():
    raw = torch.zeros(2, 3, 3, requires_grad=True)
    for order in (1, 2):
        mean_norm(raw, order).sum().backward()
    assert torch.equal(raw.grad, torch.zeros_like(raw))


@pytest.mark.parametrize("raw", [-12.0, -8.0, -1.0, 3.0, 7.0, 12.0])
def test_splats_that_overshoot_still_learn(raw):
    """Published rasterisers take 1.002 sigmoid(raw) - 0.001 as it is: up to 1.001, and with its gradient."""
    config = GeneratorConfig(64)
    numbers = torch.zeros(1, 1, sum(config.attributes))
    numbers[..., -1] = raw
    numbers.requires_grad_(True)
    scene = decoding.decode(numbers, torch.zeros(1, 3), torch.zeros(1, 2), config)
    shown = scene.opacities()
    assert 0 < shown.item() < 1 and abs(shown.item() - float(decoding.opacities(torch.tensor(raw)))) < 1.1e-3
    slope = torch.autograd.grad(shown.sum(), numbers)[0][..., -1]
    sigmoid = torch.tensor(raw).sigmoid()
    torch.testing.assert_close(slope, (1.002 * sigmoid * (1 - sigmoid)).expand(1, 1), rtol=0.1, atol=0)


def test_the_beta_term_draws_to_both_ends():
    values = beta(torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1))
    torch.testing.assert_close(values, torch.tensor([0.0, 0.0, 1.186]), rtol=0, atol=1e-3)


def test_total_variation_of_a_flat_surface_is_its_slope_whatever_its_opacity():
    """On a plane that faces the camera (u, v) grow evenly: 2/3 of the slope, and opacities get no pull."""
    config = GeneratorConfig(64, plane_resolution=64, samples=64, template="plane", channel_base=64, channel_max=4)
    torch.manual_seed(0)
    G = Generator(config)
    anchors, uv = G.grid()
    raw = torch.zeros(1, len(anchors), 22)
    raw[..., 3:6] = 0.6
    camera = FFHQ.frontal().reshape(1, 1)
    found = []
    for opacity in (0.0, 2.0):
        raw[..., -1] = opacity
        scene = decoding.decode(raw, anchors, uv, config)
        logits = scene.opacity_logits.detach().requires_grad_()
        seen = G.render_uv(dataclasses.replace(scene, opacity_logits=logits), camera, 64)[:, 0, :, 16:-16, 16:-16]
        value = uv_total_variation(seen)
        value.sum().backward()
        assert logits.grad.isfinite().all() and logits.grad.abs().sum() < 0.1 * float(value.detach())
        found.append(float(value.detach()))
    slope = 2.7 / 4.2647 / template.PLANE_HALF_WIDTH / 64  # of u from pixel to pixel
    assert found == pytest.approx([2 * slope / 3] * 2, rel=0.02)
    opaque = G.render_uv(scene, camera, 64, opaque=True)
    assert not torch.equal(opaque, G.render_uv(scene, camera, 64))


def test_no_gradient_of_a_rendered_surface_is_nan():
    G = network()
    scene = G.synthesis(G.mapping(torch.randn(2, 16), cameras(2)))
    values = uv_total_variation(G.render_uv(scene, cameras(2)[:, None], 32)[:, 0])
    values.sum().backward()
    gradients = [p.grad for p in G.parameters() if p.grad is not None]
    assert len(gradients) > 20 and all(g.isfinite().all() for g in gradients) and (values > 0).all()
    empty = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone().requires_grad_()
    uv_total_variation(empty).sum().backward()
    assert torch.equal(empty.grad, torch.zeros_like(empty))


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize("name", template.BUILT_IN)
def test_built_in_templates_cover_the_map_but_its_edge(name):
    made = template.make(name, 32)
    positions, uv = made.sampled(32)
    assert made.mask.all() and len(positions) == 30 * 30 and uv.abs().max() < 1
    assert positions.isfinite().all() and positions.abs().max() < 0.5
    assert torch.equal(made.positions, template.make(name, 32).positions)


def test_the_head_is_a_head():
    positions, uv = template.make("head", 256).sampled(256)
    assert len(positions) == 64_516
    low, high = positions.amin(0), positions.amax(0)
    torch.testing.assert_close(low, torch.tensor([-0.215, -0.46, -0.32]), rtol=0, atol=0.005)
    torch.testing.assert_close(high, torch.tensor([0.215, 0.385, 0.18]), rtol=0, atol=0.005)
    middle = positions[uv.abs().sum(-1).argmin()]
    assert middle[2] > 0.17 and middle[:2].abs().max() < 0.1  # the face is in the middle of the map


def test_a_mesh_of_the_sphere_lies_on_the_sphere():
    texel = (torch.arange(40, dtype=torch.float64)) / 39
    v, u = torch.meshgrid(texel, texel, indexing="ij")
    points = template.sphere_surface(u, v).flatten(0, 1)
    p = (torch.arange(39)[:, None] * 40 + torch.arange(39)).flatten()
    triangles = torch.cat([torch.stack([p, p + 1, p + 41], -1), torch.stack([p, p + 41, p + 40], -1)])
    mesh = template.rasterize(points, torch.stack([u, v], -1).flatten(0, 1), triangles, triangles, 32)
    exact = template.make("sphere", 32)
    assert mesh.mask.all()
    torch.testing.assert_close(mesh.positions, exact.positions, rtol=0, atol=2e-3)  # chords of the arcs


def test_of_overlapping_triangles_the_first_is_on_top():
    points = torch.tensor([[0.0, 0, 1], [2, 0, 1], [0, 2, 1], [0, 0, 5], [2, 0, 5], [0, 2, 5]])
    uvs: Tensor = points[:, :2] / 2
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 0, 0]])
    depth = template.rasterize(points, uvs, triangles, triangles, 8).positions[2]
    assert set(depth.unique().tolist()) == {0.0, 1.0}


def test_obj_files_of_any_dialect(tmp_path):
    path = tmp_path / "a.obj"
    points = "v 0 0 0 1\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0 0\nvt 1 1\nvt 0 1\nvn 0 0 1\n"
    path.write_text(f"# quad\nmtllib x\n{points}f 1/1/1 2/2/1 3/3/1 -1/-1/1\n")
    vertices, uvs, triangles, uv_triangles = template.read_obj(str(path))
    assert vertices.shape == (4, 3) and uvs.shape == (4, 2)
    assert triangles.tolist() == uv_triangles.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_unknown_templates_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"template 'moon' is unknown; legal are head, sphere, plane and a file \*\.obj"
    ):
        template.make("moon", 8)
    with pytest.raises(ValueError, match=r"none\.obj cannot be read: No such file"):
        template.make(str(tmp_path / "none.obj"), 8)
