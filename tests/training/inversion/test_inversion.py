"""Tests inversions of a network's own heads, whose latents and cameras are known."""

import dataclasses
import math

import pytest
import torch

from gaussian import Gaussians
from tests.training.gan import awaken
from tests.training.inversion.heads import write_network
from torch_utils import random
from training import presets
from training.checkpoint import load_discriminator, load_generator, run_info
from training.families import family
from training.inversion import diagnosis, inversion, tuning
from training.inversion.cameras import Tracker, angle_between
from training.inversion.diagnosis import diagnose
from training.inversion.fitting import Fit, Fitter, Target, ramp
from training.inversion.inversion import NoHeadError, Settings, invert
from training.inversion.latents import measure_latents
from training.inversion.similarity import Similarity, psnr, pyramid_l1
from training.visualization.latents import frontal_ws

QUICK = Settings(heads=8, starts=2, start_steps=6, latent_steps=16, block_steps=8, tuning_steps=8, splat_steps=0)
WHITE = torch.ones(3)


def head(G, cameras, seed=7):
    """The target of a head of the network from cameras [V], and its ws."""
    ws = frontal_ws(G, random.normal(seed, "test/head", range(1), (G.z_dim,)), psi=1.0)
    with torch.no_grad():
        out = G.render(G.synthesis(ws), cameras.reshape(1, -1), background=WHITE)
    return Target(out.rgb[0].clamp(0, 1), out.alpha[0], WHITE), ws


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory, geometry):
    return write_network(tmp_path_factory.mktemp("network"), geometry)


@pytest.fixture(scope="module")
def G(checkpoint_path):
    return load_generator(checkpoint_path)


@pytest.fixture(scope="module")
def space(G):
    return measure_latents(G)


def fitter_of(G, space, target):
    return Fitter(G, space, target, Similarity(target.images, target.masks))


def test_mirror_images_count_the_more_the_further_a_head_is_turned(G, space):
    cameras = G.geometry.orbit(torch.tensor([0.0, 0.1, 0.5]))
    target, _ = head(G, cameras)
    plain = fitter_of(G, space, target)
    fitter = dataclasses.replace(plain, symmetry=2.0)
    trial = cameras.reshape(1, 3)
    assert plain.views(trial) is trial
    torch.testing.assert_close(fitter.views(trial)[0, 3:].labels, cameras.mirror().labels)
    rgb, alpha = (torch.cat([x, x.flip(-1)])[None] for x in (target.images, target.masks))
    known = plain.loss(rgb[:, :3], alpha[:, :3], trial)
    torch.testing.assert_close(fitter.loss(rgb, alpha, trial), known)
    empty = [torch.cat([x[:, :3], torch.zeros_like(x[:, 3:])], 1) for x in (rgb, alpha)]
    missing = pyramid_l1(torch.zeros_like(target.images), target.images) + 0.1  # nothing of the mask is covered
    turned = torch.tensor([0.0, 2 * math.degrees(0.1) / 40, 1.0])  # 0.5 radians are more than half of 40 degrees
    more = fitter.loss(*empty, trial) - known
    torch.testing.assert_close(more, 2 * (turned * missing).mean()[None], rtol=1e-4, atol=1e-6)


def test_coordinates_have_variance_1_and_come_back(G, space):
    ws = frontal_ws(G, random.normal(3, "test", range(512), (G.z_dim,)), psi=1.0)[:, 0]
    coordinates = space.coordinates(ws)
    assert float(coordinates.std(0).median()) == pytest.approx(1, abs=0.1)
    assert float(coordinates.mean(0).abs().max()) < 0.3
    off = (space.ws(coordinates) - ws).norm(dim=1)
    assert float(off.max()) < 0.01 * space.rms


def test_one_w_for_all_blocks_is_equal_ws_for_each(G, space):
    ws = frontal_ws(G, torch.randn(2, G.z_dim, generator=torch.Generator().manual_seed(0)), psi=1.0)
    assert G.block_ws > G.num_ws == 1
    one, each = G.synthesis(ws), G.synthesis(ws.expand(-1, G.block_ws, -1))
    for name in ("means", "log_scales", "sh", "opacity_logits"):
        torch.testing.assert_close(getattr(one, name), getattr(each, name), rtol=1e-4, atol=1e-5)
    moved = ws.repeat(1, G.block_ws, 1)
    moved[:, -1] = space.mean
    assert (G.synthesis(moved).means - one.means).abs().max() > 1e-3
    with pytest.raises(ValueError, match=rf"or \[B, {G.block_ws}, "):
        G.synthesis(ws.expand(-1, G.block_ws + 1, -1))


def test_a_head_of_the_network_is_found_with_its_camera(G, checkpoint_path):
    truth = G.geometry.orbit(torch.tensor([0.25]), torch.tensor([0.08]))
    target, _ = head(G, truth)
    steps = []
    D = load_discriminator(checkpoint_path)
    found = invert(G, D, target, None, QUICK, report=lambda stage, n: steps.append((stage, n)))
    assert [stage.name for stage in found.stages] == ["search", "latent", "parts", "weights"]
    values = [stage.psnr[0] for stage in found.stages]
    assert values[1] > values[0] and values[-1] > values[0] + 3, values
    assert float(psnr(found.shown(found.cameras)[0], target.images)) == pytest.approx(values[-1], abs=1e-3)
    assert sum(n for _, n in steps) == QUICK.steps(G)
    assert float(angle_between(truth, found.cameras, G.geometry)) < 12, found.cameras.yaw_pitch(G.geometry)
    assert {finding.what for finding in diagnose(found, D)} >= {"pictures", "camera", "crop", "head", "model", "kind"}
    assert not any(module._forward_hooks for module in D.modules())


def test_given_cameras_are_held_and_a_wrong_one_is_noticed(G):
    truth = G.geometry.orbit(torch.tensor([-0.3, 0.3]), torch.tensor([0.0, 0.0]))
    target, _ = head(G, truth)
    settings = dataclasses.replace(QUICK, tuning_steps=0, block_steps=0)
    right = invert(G, None, target, truth, settings)
    torch.testing.assert_close(right.cameras.labels, truth.labels)
    assert right.G is G
    wrong = invert(G, None, target, G.geometry.orbit(torch.tensor([-0.1, 0.5])), settings)
    assert max(right.strayed) < max(wrong.strayed)
    assert [f.good for f in diagnose(wrong, None) if f.what == "camera"] == [False]
    assert right.stages[-1].psnr[0] > wrong.stages[-1].psnr[0]


def test_an_inversion_is_a_function_of_its_input(G):
    target, _ = head(G, G.geometry.orbit(torch.tensor([0.2])))
    settings = Settings(heads=3, starts=2, start_steps=2, latent_steps=2, block_steps=2, tuning_steps=2, splat_steps=2)
    before = {name: value.clone() for name, value in G.state_dict().items()}
    first, second = (invert(G, None, target, None, settings) for _ in range(2))
    assert torch.equal(first.ws, second.ws) and torch.equal(first.cameras.labels, second.cameras.labels)
    assert torch.equal(first.scene.means, second.scene.means)
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in first.G.state_dict().items())


def test_a_trial_does_not_depend_on_the_others(G, space):
    target, _ = head(G, G.geometry.orbit(torch.tensor([0.2])))
    fitter = fitter_of(G, space, target)
    cameras = G.geometry.orbit(torch.tensor([[0.1], [0.4]]))
    start = Fit(torch.zeros(2, 1, len(space.axes)), Tracker.at(cameras, G.geometry), torch.zeros(2))
    both = fitter.descend(start, 3, 0.1, 0.01, 0.0, True, lambda n: None)
    alone = fitter.descend(start.chosen(1), 3, 0.1, 0.01, 0.0, True, lambda n: None)
    torch.testing.assert_close(alone.coordinates[0], both.coordinates[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(alone.tracker.motion[0], both.tracker.motion[1], rtol=1e-2, atol=1e-4)


def test_tuning_leaves_other_heads_alone_as_far_as_it_is_told(G, space):
    camera = G.geometry.orbit(torch.tensor([0.2])).reshape(1, 1)
    target, ws = head(G, camera[0])
    fit = Fit(space.coordinates(ws)[:, :1] * 0.5, Tracker.at(camera, G.geometry), torch.zeros(1))
    fitter = fitter_of(G, space, target)
    z = random.normal(0, "inversion/neighbours", range(1), (len(space.axes),))
    near = torch.lerp(fitter.ws(fit.coordinates), space.ws(z)[:, None], tuning.NEIGHBOUR_SHARE)
    view = tuning.held_cameras(G, (-0.6, 0.6), 1).reshape(1, 1)

    def change(locality):
        tuned = tuning.tune_generator(fitter, fit, (-0.6, 0.6), 12, 1e-3, locality, 0.0, lambda n: None)
        seen = [g.render(g.synthesis(near), view).rgb[0] for g in (G, tuned)]
        return float((seen[0] - seen[1]).abs().mean())

    held, free = change(10.0), change(0.0)
    assert held < 0.9 * free, (held, free)


def test_splats_follow_the_picture_on_their_leash(G, space):
    camera = G.geometry.orbit(torch.tensor([0.2])).reshape(1, 1)
    target, ws = head(G, camera[0])
    scene = G.synthesis(space.ws(space.coordinates(ws) * 0.5))
    fitter = fitter_of(G, space, target)

    def refined(leash):
        made = tuning.refine_splats(fitter, G, scene, camera, (-0.6, 0.6), 12, leash, 0.0, lambda n: None)
        shown = G.render(made, camera, background=WHITE).rgb[0]
        return float(psnr(shown, target.images)), float((made.sh - scene.sh).abs().mean()), made

    before = float(psnr(G.render(scene, camera, background=WHITE).rgb[0], target.images))
    (loose, far, made), (tight, near, _) = refined(0.0), refined(10.0)
    assert loose > tight > before - 0.1 and near < far
    assert isinstance(made, Gaussians) and made.level_sizes == scene.level_sizes and not made.means.requires_grad


def test_pictures_of_another_kind_are_said_first_however_well_they_are_met(G, monkeypatch):
    target, _ = head(G, G.geometry.orbit(torch.tensor([0.2])))
    found = invert(G, None, target, None, dataclasses.replace(QUICK, tuning_steps=0))
    monkeypatch.setattr(diagnosis, "GOOD_PSNR", 1.0)
    first, *rest = diagnose(found, None)
    assert (first.what, first.good) == ("pictures", True) and "kind" not in {finding.what for finding in rest}
    kind = diagnosis.Finding("kind", False, "")
    monkeypatch.setattr(diagnosis, "_judgement", lambda *_: iter([kind]))
    first, second, *_ = diagnose(found, None)
    assert first == kind and (second.what, second.good) == ("pictures", False)
    assert "bends a network to any picture" in second.text


def test_noise_is_no_head(G):
    target = Target(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), None, WHITE)
    with pytest.raises(NoHeadError) as error:
        invert(G, None, target, None, dataclasses.replace(QUICK, latent_steps=4, block_steps=0))
    assert error.value.picture == 0 and error.value.share < 0.4


SMALL = ["micro", "gsgan-tiny", "gghead-tiny", "epigraf-tiny", "pigan-tiny"]  # one of each family that has one


@pytest.mark.parametrize("preset", SMALL)
def test_every_family_is_inverted(preset, geometry, monkeypatch):
    torch.manual_seed(0)
    config = presets.resolve(preset, data="unused")
    G = awaken(family(config.family).generator(config.generator)).eval().requires_grad_(False)
    G.info = run_info(config, geometry, geometry.orbit(torch.linspace(-0.6, 0.5, 5)).labels)
    target, _ = head(G, geometry.orbit(torch.tensor([0.2])))
    settings = Settings(heads=1, starts=1, latent_steps=2, block_steps=1, tuning_steps=1, splat_steps=1)
    monkeypatch.setattr(inversion, "LEAST_EXPLAINED", -1e9)  # untrained networks make all but nothing
    found = invert(G, None, target, None, settings)
    assert found.ws.shape == (1, G.block_ws or G.num_ws, G.w_dim)
    assert found.refined == G.makes_splats
    assert all(stage.psnr[0] > 5 for stage in found.stages)


def test_rates_rise_and_fall():
    assert ramp(0.0) < 0.1 and ramp(0.3) == 1 and ramp(0.99) < 0.01
