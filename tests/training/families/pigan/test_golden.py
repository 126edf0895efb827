"""Networks with the published architecture and known weights must give the numbers the published classes gave."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussian import Cameras
from tests.training.families.hashes import noise, uniform
from tests.training.families.pigan.golden import (
    DISCRIMINATORS,
    EXACT,
    FOV,
    GOLDEN,
    MEMBERS,
    POSES,
    SAMPLES,
    SIZE,
    Hashed,
    check,
    discriminator,
    generator,
    latents,
)
from training.data.poses import PoseLaw, orbit
from training.families.pigan.discriminator import Discriminator
from training.families.pigan.generator import Generator
from training.families.pigan.objective import ema_share, topk_share, topk_weights
from training.families.pigan.siren import sample_reference
from training.fields import marching
from training.fields.marching import RayDraws
from training.fields.rays import camera_rays, inverse_cdf, stratified
from training.fields.volume import absorption, composite
from training.losses import logistic
from training.networks.base import Conditioning

LAW_NAMES = {"gaussian": "gaussian", "uniform": "uniform", "spherical": "spherical_uniform"}


def focal(fov: float) -> Tensor:
    f = 1 / (2 * math.tan(math.radians(fov) / 2))
    return torch.tensor([[f, 0, 0.5], [0, f, 0.5], [0, 0, 1]], dtype=torch.float64)


def camera(theta: float, phi: float, fov: float) -> Cameras:
    angles = torch.tensor([theta, phi], dtype=torch.float64)
    return orbit(angles[0], angles[1], 1.0, focal(fov))


def published_axes(cameras: Cameras) -> Tensor:
    """Our cam2world with y up and z backwards."""
    return cameras.cam2world * torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)


# ------------------------------------------------------------ cameras


@pytest.mark.parametrize("name", ["A", "B"])
def test_cameras(name: str) -> None:
    golden = GOLDEN["cameras"][name]
    theta, phi = POSES["spatial" if name == "A" else "tall"]
    seen = camera(theta, phi, 12.0)
    check(published_axes(seen), golden["cam2world"])
    check(seen.positions, golden["origin"])
    rays = camera_rays(seen.reshape(1, 1), SIZE, "corners")
    chosen = golden["pixel_index"]
    check(rays.directions[0, chosen], golden["world_directions"])
    check(rays.directions[0, chosen] @ published_axes(seen)[:3, :3], golden["camera_directions"])
    depths = stratified(0.88, 1.12, SAMPLES, like=rays.cosines)
    check(depths, golden["depths"])
    check(rays.origins[0, 100] + depths[[0, 5, 11], None] * rays.directions[0, 100], golden["points_of_pixel_100"])


@pytest.mark.parametrize("law", LAW_NAMES)
def test_pose_laws(law: str) -> None:
    golden = GOLDEN["cameras"]["pose_laws"][LAW_NAMES[law]]
    draws = Hashed()

    def draw(*shape: int) -> Tensor:
        return draws.normal(*shape) if law == "gaussian" else 2 * draws.uniform(*shape) - 1

    made = PoseLaw(law, (golden["h_mean"], golden["h_std"]), (golden["v_mean"], golden["v_std"]), 12.0)
    theta, phi = made.angles(draw(4, 1)[:, 0], draw(4, 1)[:, 0])
    check(theta, golden["theta"])
    check(phi, golden["phi"])
    check(orbit(theta, phi, 1.0, focal(12.0)).positions, golden["position"])


# ------------------------------------------------------------ volume rendering


@pytest.mark.parametrize("case", GOLDEN["integration"])
def test_integration(case: str) -> None:
    golden = GOLDEN["integration"][case]
    rgb = uniform((1, 3, 6, 3), 2020).double()
    sigma = 20 * noise((1, 3, 6, 1), 2021).double()[..., 0]
    t = 0.88 + (0.04 * uniform((1, 3, 6, 1), 2022).double() + 0.01).cumsum(2)[..., 0]
    numbers = 0.5 * noise((1, 3, 6, 1), 6000).double()[..., 0] if case == "noisy" else None
    density = absorption(sigma, "softplus" if case == "softplus" else "relu", noise=numbers)
    found = composite(rgb, density, t, last_back=case == "last_back")
    shown = found.features + (1 - found.alpha[..., None] if case == "white_back" else 0)
    check(shown, golden["rgb"])
    check(found.distance, golden["depth"])
    check(found.weights, golden["weights"])


def test_sample_pdf() -> None:
    edges, weights = uniform((2, 7), 2023).double().cumsum(-1), uniform((2, 6), 2024).double()
    weights[0, 2:4] = 0
    check(inverse_cdf(edges, weights + 1e-5, uniform((2, 8), 5000).double()), GOLDEN["sample_pdf"]["samples"])


# ------------------------------------------------------------ generator


@pytest.mark.parametrize("name", POSES)
def test_mapping_and_field(name: str) -> None:
    golden, G = GOLDEN["generator"][name], generator(name)
    ws = G.mapping(latents(2, 2000))
    half = G.config.modulations
    check(ws[..., :half], golden["mapping"]["frequencies"])
    check(ws[..., half:], golden["mapping"]["phases"])
    mean = G.mapping(latents(16, 2005)).mean(0, keepdim=True)
    check(mean[..., :half], golden["mean_of_16"]["frequencies"])
    check(mean[..., half:], golden["mean_of_16"]["phases"])
    scale = (0.12 if name == "spatial" else 1.0) / math.sqrt(3)
    points = noise((1, 16, 3), 2001).double().mul(scale).expand(2, -1, -1)
    directions = torch.nn.functional.normalize(noise((1, 16, 3), 2002).double(), dim=-1).expand(2, -1, -1)
    for given, key in ((ws, "field"), (mean.lerp(ws, 0.7), "field_psi_0.7")):
        rgb, sigma = G.synthesis(given).sample(points, directions)
        check(torch.cat([rgb, sigma[..., None]], -1), golden[key])
        slow = sample_reference(G.siren, points, directions, given.view(2, 2, 9, -1))
        torch.testing.assert_close((rgb, sigma), slow, rtol=0, atol=1e-10)


RENDERS = [(name, case) for name in POSES for case in GOLDEN["generator"][name]["render_16px"]]


@pytest.mark.parametrize(("name", "case"), RENDERS)
def test_renders(name: str, case: str) -> None:
    golden = GOLDEN["generator"][name]["render_16px"][case]
    changes: dict[str, Any] = {"last_back": "last_back" in case}
    if case == "coarse_only":
        changes["fine_samples"] = 0
    if "softplus" in case:
        changes["activation"] = "softplus"
    if "hashed" in case:
        changes |= {"density_noise": 1.0, "noise_kimg": 1.0}
    G = generator(name, **changes)
    theta, phi = POSES[name]
    seen, numbers = camera(theta, phi, FOV[name]).expand(2, 1), RayDraws()
    if "hashed" in case:
        angles, numbers = Hashed().image(2, SIZE, SAMPLES, 0.5)
        law = PoseLaw("gaussian", (math.pi / 2, 0.3), (math.pi / 2, 0.155), 12.0)
        thetas, phis = law.angles(*angles)
        check(torch.stack([phis, thetas], 1), golden["phi_theta"])
        seen = orbit(thetas, phis, 1.0, focal(12.0)).reshape(2, 1)
    ws = G.mapping(latents(2, 2000))
    if "psi_0.7" in case:
        ws = G.mapping(latents(16, 2005)).mean(0, keepdim=True).lerp(ws, 0.7)
    scene = G.synthesis(ws)
    if "locked" in case:
        scene = dataclasses.replace(scene, view=(0.0, 0.0, -1.0))
    behind = torch.tensor(1.0 if "white_back" in case else 0.0)
    with torch.no_grad():
        out = marching.render_field(scene, seen, SIZE, G.config.march(), behind, numbers)
    check(out.image[:, 0], {k: v for k, v in golden.items() if k not in ("phi_theta", "depth")})
    if "full_image_of_z0" in golden:
        check(out.image[0, 0], golden["full_image_of_z0"])
    if "depth" in golden:
        rays = camera_rays(seen, SIZE, "corners")
        check(out.depth.flatten(1) / rays.cosines, golden["depth"])


@pytest.mark.parametrize(("name", "tolerance"), [("spatial", 2e-4), ("tall", 2e-5)])
def test_float32_is_near(name: str, tolerance: float) -> None:
    """Sines amplify rounding: two correct implementations differ by 1e-4 and 3e-6."""
    golden, G = GOLDEN["generator"][name]["render_16px"]["hierarchical"], copy.deepcopy(generator(name)).float()
    seen = camera(*POSES[name], FOV[name]).expand(2, 1).to(dtype=torch.float32)
    with torch.no_grad():
        out = G.render(G.synthesis(G.mapping(latents(2, 2000))), seen, background=torch.zeros(3))
    check(out.image, {k: v for k, v in golden.items() if k != "phi_theta"}, tolerance)


def test_parameters() -> None:
    for config in MEMBERS.values():
        assert sum(p.numel() for p in Generator(config).parameters()) == 1_910_788
    counts = {"CCSEncoderDiscriminator": 13_291_075, "StridedDiscriminator": 12_805_489,
              "ProgressiveEncoderDiscriminator": 12_825_523}  # fmt: skip
    for name, count in counts.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in Discriminator(DISCRIMINATORS[name]).parameters()) == count


def test_initial_frequencies_are_about_30() -> None:
    """By He's rule f and beta have a standard deviation of 0.35, in the mean over networks."""
    torch.manual_seed(0)
    G = Generator(MEMBERS["spatial"])
    with torch.no_grad():
        scene = G.synthesis(G.mapping(torch.randn(200, 256)))
    assert abs(float(scene.frequencies.mean()) - 30) < 0.3
    assert 4.5 < float(scene.frequencies.std()) < 6
    assert 0.3 < float(scene.phases.std()) < 0.4


# ------------------------------------------------------------ discriminators


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators(name: str) -> None:
    D = discriminator(name)
    for key, golden in GOLDEN["discriminators"][name].items():
        if key.startswith("r1") or key in ("64px_alpha_0", "64px_alpha_1"):  # the mean of 0.4 has both ways in it
            continue
        size, fade = int(key.partition("px")[0]), float(key.rpartition("_")[2])
        images = noise((4, 3, size, size), 2010).double().clamp(-1, 1)
        with torch.no_grad():
            found = D.outputs(images, Conditioning(torch.empty(0), fade=fade))
        check(found.logits, golden["logits"])
        if "z" in golden:
            check(found.extras["z"], golden["z"])
            check(found.extras["angles"], golden["phi_theta"])


def test_gradient_penalty() -> None:
    """Of the default one; the others are made of the same layers, and test_discriminators has what they compute."""
    name = "CCSEncoderDiscriminator"
    D, golden = discriminator(name), GOLDEN["discriminators"][name]["r1_64px_alpha_0.4"]
    images = noise((4, 3, 64, 64), 2010).double().clamp(-1, 1).requires_grad_(True)
    logits = D.outputs(images, Conditioning(torch.empty(0), fade=0.4)).logits
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    norms = slope.square().sum((1, 2, 3))
    check(slope, golden["image_gradient"])
    check(norms.sqrt(), golden["norms"])
    named = dict(D.named_parameters())
    found = torch.autograd.grad(golden["lambda_"] / 2 * norms.mean(), list(named.values()), allow_unused=True)
    gradients = dict(zip(named, found, strict=True))
    total = torch.stack([g.norm() for g in gradients.values() if g is not None]).norm()
    check(total, golden["parameter_gradient_total_norm"], EXACT, relative=True)
    for key, expected in golden["parameter_gradient_norms"].items():
        gradient = gradients[key]
        if expected is None:
            assert gradient is None or not gradient.any(), key
        else:
            assert gradient is not None
            check(gradient.norm(), expected, EXACT, relative=True)


# ------------------------------------------------------------ losses and schedules


def test_losses() -> None:
    golden = GOLDEN["losses_fixed"]
    real, fake = (2 * noise((8, 1), k).double()[:, 0] for k in (2030, 2031))
    check(logistic(real, real=True).mean(), golden["real_term"])
    check(logistic(fake, real=False).mean(), golden["fake_term"])
    guess, z = (noise((8, 256), k).double() for k in (2032, 2033))
    check((guess - z).square().mean(1).mean(), golden["mse_z"])
    angles, told = 0.3 * noise((8, 2), 2034).double(), 0.2 * noise((8, 2), 2035).double()
    check((angles - told).square().mean(1).mean(), golden["mse_pose"])
    for step, expected in golden["topk"].items():
        share = topk_share(int(step), 2000, 0.6)
        weights = topk_weights(fake, share)
        check(torch.tensor(share), expected["fraction"])
        assert int((weights > 0).sum()) == expected["k"]
        check((logistic(fake, real=True) * weights).mean(), expected["g_term"])


@pytest.mark.parametrize("decay", GOLDEN["ema"])
def test_averages(decay: str) -> None:
    golden, most = GOLDEN["ema"][decay], float(decay)
    for updates, expected in golden["decay_at"].items():
        check(torch.tensor(ema_share(int(updates), most)).double(), expected)
    shadow = 0.0
    for n, expected in enumerate(golden["shadow_after_updates_1_to_12"], 1):
        shadow -= (1 - ema_share(n, most)) * (shadow - n)
        check(torch.tensor(shadow).double(), expected)
