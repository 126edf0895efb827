"""The discriminator of patches: published numbers, what it is told, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.training.families.epigraf.golden import (
    CAMERAS,
    CLOSE,
    EXACT,
    WINDOWS,
    cameras,
    check,
    check_norms,
    discriminator,
    entry,
)  # fmt: skip
from tests.training.families.hashes import noise, uniform
from training import losses
from training.families.epigraf import patches, poses
from training.families.epigraf.discriminator import Discriminator, DiscriminatorConfig, dropped
from training.networks.base import Conditioning

ANGLES = torch.cat([CAMERAS, torch.tensor([[0.05, 1.2], [2.9, 1.9]])])


def images(count: int, size: int = 16, tensor_id: int = 1002) -> Tensor:
    return noise((count if size == 64 else 8, 3, size, size), tensor_id).clamp(-1, 1)[:count]


def told(*windows: int, **more: Tensor) -> Conditioning:
    """What holds for images in the windows of these numbers."""
    angles = ANGLES.repeat(2, 1)[: len(windows)]
    return Conditioning(cameras(angles).labels, WINDOWS[list(windows)], **more)


@torch.no_grad()
def test_published_numbers() -> None:
    D = discriminator()
    assert len(D.state_dict()) == 77 and sum(p.numel() for p in D.parameters()) == 1355552
    for window in (0, 1):
        logits = D.outputs(images(4), told(*[window] * 4)).logits
        check(logits[:, 0], f"member/D/batch4_window{window}/logits")
    check(D.outputs(images(8), told(0, 0, 0, 0, 1, 1, 1, 1)).logits[:, 0], "member/D/batch8_0000_1111/logits")
    code = D.scalar_enc(WINDOWS)
    check(code, "member/D/patch_code", EXACT)
    check(code[0, :24], "member/D/patch_code_row0_first_24", EXACT)
    hyper = D.hyper_mod_mapping(camera=code)
    check(hyper, "member/D/hyper_h")
    check(1 + D.b64.conv1.affine(hyper).tanh(), "member/D/hyper_factor_b64")
    check(D.projection(told(0, 1), code, code), "member/D/cmap")


@torch.no_grad()
def test_published_features_of_every_block() -> None:
    D, x = discriminator(), images(4)
    hyper = D.hyper_mod_mapping(camera=D.scalar_enc(told(0, 0, 0, 0).patch))
    for size in (64, 32, 16, 8):
        x = getattr(D, f"b{size}")(x, hyper, D._scaled())
        check(x, f"member/D/batch4_window0/after_b{size}")


@pytest.mark.parametrize("camera", ["fourier", "raw"])
@torch.no_grad()
def test_published_numbers_with_a_camera(camera: str) -> None:
    D = discriminator(camera=camera, camera_dropout=0.5)
    check(D.outputs(images(4), told(0, 0, 0, 0)).logits[:, 0], f"member/D/camera_{camera}/logits_no_dropout")
    factors = dropped(uniform((4, 24 if camera == "fourier" else 2), 1031), 0.5)
    logits = D.outputs(images(4), told(0, 0, 0, 0, dropout=factors)).logits
    check(logits[:, 0], f"member/D/camera_{camera}/logits_dropout")


@torch.no_grad()
def test_published_numbers_with_classes() -> None:
    D = discriminator(num_classes=10)
    logits = D.outputs(images(4), told(1, 1, 1, 1, classes=torch.tensor([3, 7, 0, 9]))).logits
    check(logits[:, 0], "member/D/classes10/logits")
    with pytest.raises(ValueError, match="is told the classes"):
        D.outputs(images(4), told(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ffhq512", {}),
        ("ffhq512_dcam_fourier", {"camera": "fourier"}),
        ("ffhq512_dcam_raw_gcam", {"camera": "raw"}),
        ("cats256_dcam", {"resolution": 256, "camera": "fourier"}),
        ("plants256_labels", {"resolution": 256, "num_classes": 198}),
        ("food256_labels", {"resolution": 256, "num_classes": 10}),
    ],
)
def test_published_sizes(name: str, config: dict) -> None:
    with torch.device("meta"):
        D = Discriminator(DiscriminatorConfig(**config))
    golden = entry(f"parameter_counts/{name}")
    assert sum(p.numel() for p in D.parameters()) == golden["D"]
    assert list(D.config.block_resolutions) == golden["D_blocks"]
    for part, ours in (("D_hyper", D.hyper_mod_mapping), ("D_head", D.head_mapping), ("D_embed", D.scalar_enc)):
        assert sum(p.numel() for p in ours.parameters()) == golden[part]


def test_published_losses() -> None:
    D = discriminator().requires_grad_(True)
    values = losses.logistic(D.outputs(images(4), told(0, 0, 0, 0)).logits, real=False)
    assert values.mean().item() == pytest.approx(entry("member/loss/D_fake_window0/mean"), abs=CLOSE)
    values.mean().backward()
    check_norms(D, "member/loss/D_fake_window0/grad_norm", {})
    generated = losses.logistic(D.outputs(images(4), told(0, 0, 0, 0)).logits, real=True).mean()
    assert generated.item() == pytest.approx(entry("member/loss/G_fake_window0/mean"), abs=CLOSE)
    real = patches.cut(images(4, 64, 1032), told(1, 1, 1, 1).patch, 16)
    logits = D.outputs(real, told(1, 1, 1, 1)).logits
    check(logits[:, 0], "member/loss/D_real_window1/logits")
    mean = losses.logistic(logits, real=True).mean()
    assert mean.item() == pytest.approx(entry("member/loss/D_real_window1/mean"), abs=CLOSE)
    D.zero_grad()
    penalty = losses.gradient_penalty(lambda x: D.outputs(x, told(1, 1, 1, 1)).logits, real)
    check(penalty, "member/loss/R1_window1/penalty")
    (0.1 / 2 * penalty).mean().backward()
    check_norms(D, "member/loss/R1_window1_gamma0.1/grad_norm", {})


@torch.no_grad()
def test_the_window_matters_at_equal_pixels_and_a_flip_is_told() -> None:
    D = discriminator()
    one, other = (D.outputs(images(4), told(*[w] * 4)).logits for w in (0, 1))
    assert (one - other).abs().min() > 0.01
    flipped = told(0, 1).mirrored(torch.tensor([True, False])).patch
    torch.testing.assert_close(flipped, torch.tensor([[0.5, 0.25, 0.125], [0.75, 0.05, 0.2]]))
    assert torch.equal(
        told(1, 0).mirrored(torch.tensor([True, False])).patch[0], torch.tensor([0.75, 1 - 0.75 - 0.05, 0.2])
    )


@torch.no_grad()
def test_a_whole_image_is_its_full_window() -> None:
    D, whole = discriminator(), images(4, 64, 1032)
    full = torch.tensor([[1.0, 0, 0]]).expand(4, 3)
    patch = patches.cut(whole, full, 16)
    labels = cameras(ANGLES).labels
    assert torch.equal(D(whole, labels), D.outputs(patch, Conditioning(labels, full)).logits)
    small = discriminator(resolution=16)
    assert torch.equal(small(patch, labels), small.outputs(patch, Conditioning(labels, full)).logits)


@torch.no_grad()
def test_splits_change_nothing() -> None:
    """Two groups of four in one call, and one after the other; and alternating with others."""
    D = discriminator(camera="raw")
    conditioning = told(0, 1, 0, 1, 1, 0, 1, 0)
    together = D.outputs(images(8), conditioning).logits
    for m in range(2):  # strided groups
        rows = torch.arange(m, 8, 2)
        part = Conditioning(conditioning.labels[rows], conditioning.patch[rows])
        torch.testing.assert_close(D.outputs(images(8)[rows], part).logits, together[rows], rtol=0, atol=1e-6)
    both = conditioning.interleaved(dataclasses.replace(conditioning, patch=conditioning.patch.flip(0)))
    assert torch.equal(both.patch[::2], conditioning.patch) and torch.equal(
        both.patch[1::2], conditioning.patch.flip(0)
    )


def test_camera_codes() -> None:
    laws = "schedules_and_laws"
    code = poses.camera_code(CAMERAS)
    torch.testing.assert_close(code, torch.tensor(entry(f"{laws}/camera_code_input_of_[0.3,1.4],[-0.5,1.75]")))
    waves = poses.fourier(
        code * poses.PERIOD, discriminator(camera="fourier").head_mapping.camera_scalar_enc.frequencies
    )
    torch.testing.assert_close(waves[0], torch.tensor(entry(f"{laws}/camera_code_fourier_row0")), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda D: D.outputs(torch.zeros(4, 3, 32, 32), told(0, 0, 0, 0)), "R = 16 px, got"),
        (lambda D: D(torch.zeros(4, 3, 32, 32), torch.zeros(4, 25)), "R = 16 px or 64 px"),
        (
            lambda D: D.outputs(torch.zeros(4, 3, 16, 16), Conditioning(torch.zeros(4, 25), torch.zeros(4, 2))),
            r"\[4, 3\]",
        ),
        (
            lambda D: D.outputs(torch.zeros(4, 3, 16, 16), Conditioning(torch.zeros(4, 5), WINDOWS[[0] * 4])),
            "labels must",
        ),
        (lambda D: D.outputs(torch.zeros(6, 3, 16, 16), told(0, 0, 0, 0, 0, 0)), "not a multiple of minibatch_std"),
    ],
)
def test_wrong_inputs_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(discriminator())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patch_resolution": 48}, "patch_resolution=48 must be a power of two"),
        ({"conv_clamp": -1.0}, "discriminator.conv_clamp=-1.0: legal are numbers above 0"),
        ({"resolution": 64, "patch_resolution": 128}, "--patch-resolution=128: images have 64 px"),
        ({"camera": "euler"}, "--disc-camera=euler: legal are none, raw, fourier"),
        ({"camera_dropout": 1.0}, "--disc-camera-dropout=1.0"),
        ({"channel_base": 100}, "--cbase=100 leaves no channel at 512 px"),
    ],
)
def test_what_cannot_be_built_is_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**config)
