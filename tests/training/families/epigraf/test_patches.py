"""Patches: published windows and points, and that a patch is a crop of its image and of its camera."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.families.epigraf.golden import CAMERAS, EXACT, FOCAL, WINDOWS, cameras, check, entry
from tests.training.families.hashes import noise
from training import losses
from training.families.epigraf import patches, poses
from training.families.epigraf.objective import EpigrafObjectiveConfig
from training.families.epigraf.patches import PatchLaw
from training.families.swapping import swap_probability

LAWS = "schedules_and_laws"
FULL = torch.tensor([[1.0, 0.0, 0.0]])


def published_axes() -> torch.Tensor:
    """Columns of a published cam2world in ours: their world turned, and their camera's y and z reversed."""
    return torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


def test_cameras_of_angles() -> None:
    turn = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    poles = torch.tensor([[0.7, 1e-5], [0.7, math.pi - 1e-5]])
    beyond = torch.tensor([[0.7, 0.0], [0.7, 4.0]])
    for angles, name in ((CAMERAS, "cam2world"), (poles, "cam2world_at_clamped_poles")):
        ours = cameras(angles)
        check(turn @ ours.cam2world @ published_axes(), f"member/camera/{name}", EXACT)
        back = poses.angles_of(ours.positions)
        torch.testing.assert_close(back, angles, rtol=0, atol=1e-6)
        assert torch.equal(poses.to_field(ours.positions), (turn @ ours.cam2world)[:, :3, 3])
    torch.testing.assert_close(cameras(beyond).positions, cameras(poles).positions)
    mirrored = poses.angles_of(cameras().mirror().positions)
    torch.testing.assert_close(mirrored, CAMERAS * torch.tensor([-1.0, 1.0]))


def test_published_windows() -> None:
    rows = torch.tensor(entry(f"{LAWS}/patch_samples"), dtype=torch.float64)
    for least, beta, *draws, scale, x, y in rows.tolist():
        law = PatchLaw(least=least, beta=(beta, beta))
        found = law.windows(torch.tensor([draws]), 0)
        torch.testing.assert_close(found, torch.tensor([[scale, x, y]]), rtol=0, atol=EXACT)
    u = torch.tensor(entry(f"{LAWS}/beta_quantiles/u"))
    for beta, expected in entry(f"{LAWS}/beta_quantiles/x").items():
        law = PatchLaw(least=1e-9, beta=(float(beta), float(beta)))
        found = law.windows(torch.stack([u, u, u], 1), 0)[:, 0]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-6)


def test_published_schedule() -> None:
    law, settings = PatchLaw(), EpigrafObjectiveConfig()
    for row in entry(f"{LAWS}/by_kimg"):
        nimg = int(row["kimg"] * 1000)
        assert law.beta_at(nimg) == pytest.approx(row["beta"], abs=1e-7)
        least = 64 / 512
        mean = least + (1 - least) / (1 + law.beta_at(nimg))
        assert mean == pytest.approx(row["mean_scale_res512"], abs=1e-6)
        assert patches.faded(nimg, 1.0, least, law.fade_nimg) == pytest.approx(
            row["uniform_min_scale_res512"], abs=1e-6
        )
        assert patches.faded(nimg, 1.0, 0.0, 5e6) == pytest.approx(row["nerf_noise_std"], abs=1e-6)
        swaps = swap_probability(nimg, settings.swap_probability, settings.swap_fade_kimg * 1000)
        assert swaps == pytest.approx(row["gpc_spoof_p"], abs=1e-6)
        blur = losses.blur_sigma_at(nimg, settings.blur_sigma, settings.blur_fade_kimg * 1000)
        assert blur == pytest.approx(row["blur_sigma"], abs=1e-6)


def test_the_mean_scale_of_the_law() -> None:
    u = (torch.arange(200_000) + 0.5) / 200_000
    windows = PatchLaw(least=0.125, beta=(0.8, 0.8)).windows(torch.stack([u, u, u], 1), 0)
    assert float(windows[:, 0].mean()) == pytest.approx(0.125 + 0.875 / 1.8, abs=1e-4)
    assert bool((windows[:, 1:] >= 0).all()) and bool((windows[:, :1] + windows[:, 1:] <= 1 + 1e-6).all())


def test_other_laws() -> None:
    draws = torch.tensor([[0.0, 0.5, 0.5], [0.6, 0.5, 0.5], [0.9999, 0.5, 0.5]])
    assert torch.equal(PatchLaw("whole").windows(draws, 0), FULL.expand(3, 3))
    uniform = PatchLaw("uniform", least=0.5, fade_nimg=1000)
    assert torch.equal(uniform.windows(draws, 0)[:, 0], torch.ones(3))
    torch.testing.assert_close(uniform.windows(draws, 1000)[:, 0], 0.5 + 0.5 * draws[:, 0])
    discrete = PatchLaw("discrete", least=0.125, fade_nimg=1000)
    assert discrete.windows(draws, 0)[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert discrete.windows(draws, 1000)[:, 0].tolist() == [0.25, 1.0, 1.0]


def test_who_draws_a_window() -> None:
    assert patches.leaders(range(8, 16), 4, 8) == [8] * 4 + [12] * 4
    assert patches.leaders(range(8, 16), 4, 8, strided=True) == [8, 9] * 4
    assert patches.leaders(range(8, 12), 4, 4, strided=True) == [8] * 4
    parts = [patches.leaders(range(i, i + 4), 4, 8, strided=True) for i in (8, 12)]
    assert [*parts[0], *parts[1]] == patches.leaders(range(8, 16), 4, 8, strided=True)


def test_published_patches_of_images() -> None:
    images = noise((2, 3, 64, 64), 1030).clamp(-1, 1)
    found = patches.cut(images, WINDOWS, 16)
    check(found, "member/real_patches/two_windows")
    check(found[:, :, 2::4, 2::4], "member/real_patches/4x4")
    torch.testing.assert_close(patches.cut(images, FULL.expand(2, 3), 64), images, rtol=0, atol=2e-5)


def test_a_patch_of_an_image_is_the_image_of_a_cropped_camera() -> None:
    """Of a picture whose pixels say where they are: what a cropped camera projects there lies at the same place."""
    whole = cameras(pixels=64)
    for windows in (WINDOWS, FULL.expand(2, 3), torch.tensor([[0.25, 0.75, 0.75], [0.25, 0.0, 0.0]])):
        part = patches.crop(whole, windows, 16, 64)
        points = torch.tensor([[0.01, 0.02, 0.03], [-0.05, 0.0, 0.04]])
        in_image, _ = whole.project(points)
        in_patch, _ = part.project(points)
        ends = (in_image * 64 - 0.5) / 63  # 0..1 between the end points
        scale, left, bottom = windows[:, None].unbind(-1)
        x = ((ends[..., 0] - left) / scale * 15 + 0.5) / 16
        y = ((ends[..., 1] - (1 - bottom - scale)) / scale * 15 + 0.5) / 16
        torch.testing.assert_close(in_patch, torch.stack([x, y], -1), rtol=0, atol=2e-5)
    same = patches.crop(whole, FULL.expand(2, 3), 64, 64)
    torch.testing.assert_close(same.intrinsics, whole.intrinsics)
    views = patches.crop(whole[:, None].expand(2, 3), WINDOWS, 16, 64)
    assert torch.equal(views.intrinsics[:, 1], patches.crop(whole, WINDOWS, 16, 64).intrinsics)
    assert float(whole.intrinsics[0, 0, 0]) == pytest.approx(FOCAL * 63 / 64)


def test_published_blur() -> None:
    images = noise((8, 3, 16, 16), 1002).clamp(-1, 1)[:1]
    check(losses.gaussian_blur(images, 2.5), f"{LAWS}/blur_sigma2.5_of_D_image0")


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (PatchLaw("gamma"), "--patch-law=gamma: legal are beta, uniform, discrete, whole"),
        (PatchLaw(most=0.1), "patch_most=0.1: legal are 0.125 to 1"),
        (PatchLaw(beta=(0.0, 1.0)), "patch_beta"),
        (PatchLaw("discrete", support=(0.1,)), "patch_support"),
    ],
)
def test_illegal_laws_are_refused(law: PatchLaw, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        law.check("--patch-law")
