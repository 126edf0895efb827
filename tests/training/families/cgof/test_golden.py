"""Rendering guided by a stand-in mesh, and losses, must give the numbers that the published classes gave."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.families.cgof.golden import (
    CONFIG,
    EXACT,
    FOV,
    GOLDEN,
    SIZE,
    cameras,
    draws,
    generator,
    grid,
    guide,
    latents,
    stand_in,
)
from tests.training.families.hashes import noise, uniform
from tests.training.families.pigan.golden import check, fill
from training.control.blocks import Blocks
from training.families.cgof import losses
from training.families.cgof.sampling import Guided, axial, guided
from training.families.cgof.warp import carried_image, compared, volume_warp
from training.families.pigan.discriminator import Discriminator, DiscriminatorConfig
from training.fields.field import RadianceField
from training.fields.rays import camera_rays, inverse_cdf
from training.networks.base import Conditioning

POSES = torch.tensor([[0.4, -0.6], [0.2, -0.3]], dtype=torch.float64)  # standardised yaw and pitch
SHARES = (0.0, 0.5, 1.0)


def test_sizes() -> None:
    assert sum(p.numel() for p in generator().parameters()) == GOLDEN["parameters"]


def test_field_and_normals() -> None:
    scene = generator().synthesis(generator().mapping(latents()))
    points = noise((1, 16, 3), 2001).double().mul(0.12 / math.sqrt(3)).expand(2, -1, -1)
    directions = torch.nn.functional.normalize(noise((1, 16, 3), 2002).double(), dim=-1).expand(2, -1, -1)
    rgb, sigma = scene.sample(points, directions)
    check(torch.cat([rgb, sigma[..., None]], -1), GOLDEN["field"])
    check(scene.normals(points), GOLDEN["normals_at_points"])


def test_discriminator() -> None:
    golden = GOLDEN["discriminator_64px_alpha_0.4"]
    D = Discriminator(DiscriminatorConfig(latent=411))
    assert sum(p.numel() for p in D.parameters()) == golden["parameters"]
    fill(D)
    with torch.no_grad():
        found = D.outputs(noise((4, 3, 64, 64), 2010).double().clamp(-1, 1), Conditioning(torch.empty(0), fade=0.4))
    for values, key in ((found.logits, "logits"), (found.extras["z"], "z"), (found.extras["angles"], "phi_theta")):
        check(values, golden[key])


def test_sample_pdf() -> None:
    edges, weights = uniform((2, 7), 2023).double().cumsum(-1), uniform((2, 6), 2024).double()
    weights[0, 2:4] = 0
    u = uniform((2, 8), 5000).double()
    check(inverse_cdf(edges, weights, u, spare=1e-5), GOLDEN["sample_pdf_cgof"])


def rendered(share: float) -> tuple[RadianceField, Any, Guided]:
    scene = generator().synthesis(generator().mapping(latents()))
    rays = axial(camera_rays(cameras(*POSES), SIZE, "corners"))
    found = guided(scene, rays, CONFIG.march(), draws(2, SIZE), guide(SIZE, 2), share, legacy_depths=True)
    return scene, rays, found


def whole(values: Tensor) -> Tensor:
    """A micro-batch as one sample, whose rays are those of all: the published means are over all of them."""
    return values.flatten(0, 1)[None]


def terms(share: float) -> dict[str, Tensor]:
    """The published losses with their weights, and their normals."""
    scene, rays, found = rendered(share)
    face, march, result = guide(SIZE, 2), CONFIG.march(), found.result
    z = rays.origins[..., 2:] + found.t * rays.directions[..., 2:]
    normals = losses.normal_smoothness(
        scene, rays.origins + result.distance[..., None] * rays.directions, uniform((2, 256, 3), 5003).double()
    )
    away = losses.distance(result.weights, found.t, face.depth, face.mask, march.far - march.near, share)
    beside = losses.background(*(whole(v) for v in (result.weights, found.t, z, face.depth, face.mask)), march.near)
    maps = (values.view(2, SIZE, SIZE) for values in (result.distance, face.mask))
    return {
        "distance": 10_000 * share * away.mean(),
        "background": 10_000 * beside.mean(),
        "normal": 1_000 * normals.mean(),
        "geometry": 500 * losses.depth_smoothness(*maps).mean(),
    }


@pytest.mark.parametrize("share", SHARES)
def test_renders(share: float) -> None:
    golden = GOLDEN[f"mesh_guided_16px_r_{share}"]
    with torch.no_grad():
        _, _, found = rendered(share)
    result = found.result
    image = (2 * result.features - 1).transpose(1, 2).reshape(2, 3, SIZE, SIZE)
    check(image, golden["image"])
    check(result.distance, golden["depth"])
    if "weights" in golden:
        check(result.weights, golden["weights"])
        check((result.weights * found.t.square()).sum(-1) - result.distance.square(), golden["depth_variance"])
        check(found.second.points, golden["pass2_points"])
        check(found.third.points, golden["pass3_points"])


@pytest.mark.parametrize("share", SHARES)
def test_losses_and_their_gradients(share: float) -> None:
    """Gradients in the middle, where every term counts: a share is a factor, and says where samples are."""
    golden, parameters = GOLDEN[f"mesh_guided_16px_r_{share}"], list(generator().parameters())
    for name, value in terms(share).items():
        check(value, golden["losses"][name], EXACT, relative=True)
        if share != 0.5:
            continue
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        norm = torch.stack([g.norm() for g in found if g is not None]).norm()
        check(norm, golden["gradient_total_norms"][name], EXACT, relative=True)


def test_landmarks() -> None:
    found, asked = (250 * uniform((2, 68, 2), k).double() for k in (2210, 2211))
    places = 0.05 * noise((2, 68, 3), 2212).double()
    depth = (0.95 + 0.02 * uniform((2, 1, 64, 64), 2213).double())[:, 0]
    pixels, at = losses.lift_landmarks(found, depth)
    lifted = losses.unproject(pixels, at, 32 / math.tan(math.radians(FOV) / 2), 64)
    check(10 * losses.landmarks(found, asked, lifted, places).mean(), GOLDEN["landmarks_3d"], EXACT, relative=True)


def test_landmarks_beyond_the_image_count_as_on_its_edge() -> None:
    found = torch.tensor([[[-9.0, 300.0]]], requires_grad=True)
    asked, lifted, places = torch.tensor([[[4.0, 250.0]]]), torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
    value = losses.landmarks(found, asked, lifted, places, slice(0, None))
    value.sum().backward()
    assert value.item() == (4 + 5) / 2 and not found.grad.any()


def test_volume_warp() -> None:
    golden, size, G = GOLDEN["warp_64px"], 64, generator()
    z = noise((2, 411), 6000).double()
    blocks = Blocks({"identity": slice(0, 80), "expression": slice(80, 144), "others": slice(144, 411)})
    after_z = blocks.put(z[:1], "expression", blocks.take(z[1:], "expression"))
    assert not torch.equal(after_z, z[:1])
    yaw, pitch = (noise((1, 1), k).double()[:, 0] for k in (6001, 6002))
    rays = axial(camera_rays(cameras(yaw, pitch), size, "corners"))
    face, march = guide(size, 1), CONFIG.march()
    _, other_mask = stand_in(size, axes=(0.6, 0.85))
    x, y = grid(size)
    flow = torch.stack([0.01 * torch.cos(3 * x + y), 0.008 * torch.sin(2 * y - x), 0.006 * x * y], -1)
    flow = (flow * other_mask[..., None]).flatten(0, 1)[None]
    with torch.no_grad():
        field, other = (G.synthesis(G.mapping(code)) for code in (z[:1], after_z))
        after = guided(other, rays, march, draws(1, size, 5003), face, 1.0, legacy_depths=True)
        before = carried_image(field, rays, march, after, flow)
        counts = compared(face.mask.view(1, size, size), other_mask[None])
        loss = 10 * volume_warp(before, after, counts)
    assert 3 * int(counts.sum()) == golden["mask_sum"]
    for part, name, suffix in ((after, "image_1", "1"), (before, "image_0_warped", "0warped")):
        check((2 * part.result.features - 1).transpose(1, 2), golden[name])
        for number, samples in ((2, part.second), (3, part.third)):
            check(torch.cat([samples.rgb, samples.sigma[..., None]], -1), golden[f"pass{number}_output_{suffix}"])
    check(loss[0], golden["loss"], EXACT, relative=True)
