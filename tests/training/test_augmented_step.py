"""Augmentation in a run: cameras follow flips, p follows real logits, nothing depends on splits, resumes keep p."""

import numpy as np
import pytest
import torch

from gaussian import Cameras, Gaussians, render
from tests.training.gan import make_step, micro_config, phase_gradients
from training import augment
from training.augment import Augmentation
from training.families.base import Conditioning, StepContext

CPU = torch.device("cpu")


def generator(seed):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- cameras


def symmetric_scene():
    """Splats and their mirror images at x -> -x."""
    means = torch.rand(1, 20, 3, generator=generator(0)) * 0.3 - 0.15
    quats, colors = torch.randn(1, 20, 4, generator=generator(1)), torch.randn(1, 20, 1, 3, generator=generator(2))
    scales = torch.rand(1, 20, 3, generator=generator(3)) - 4.5
    flip = torch.tensor([-1.0, 1.0, 1.0])
    return Gaussians(
        torch.cat([means, means * flip], 1),
        scales.repeat(1, 2, 1),
        torch.cat([quats, quats * torch.tensor([1.0, 1.0, -1.0, -1.0])], 1),
        torch.full((1, 40, 1), 2.0),
        colors.repeat(1, 2, 1, 1),
    )


def test_a_flipped_image_is_what_its_new_camera_sees(monkeypatch):
    monkeypatch.setitem(augment.PIPES, "blit", ("xflip",))
    step, (micro,) = make_step(
        8, torch.float32, objective={"augment": "fixed", "augment_p": 1.0, "augment_pipe": "blit"}
    )
    eyes = torch.randn(8, 3, generator=generator(4)) * torch.tensor([1.0, 0.5, 0.2]) + torch.tensor([0.0, 0.0, 2.7])
    intrinsics = torch.tensor([[4.3, 0.0, 0.53], [0.0, 4.2, 0.46], [0.0, 0.0, 1.0]])
    cameras = Cameras.look_at(eyes, (0.0, 0.0, 0.0), intrinsics=intrinsics)[None]
    background = torch.zeros(1, 8, 3)

    at = StepContext(10**7, micro.draws)  # long after the blur has gone

    def seen_by(cameras):
        return render(symmetric_scene(), cameras, 48, background).image[0]

    images, told = step.objective.seen(seen_by(cameras), Conditioning(cameras.labels[0]), at, "G")
    flipped = (told.labels != cameras.labels[0]).any(1)
    assert 0 < flipped.sum() < 8
    assert torch.equal(images[~flipped], seen_by(cameras)[~flipped])
    torch.testing.assert_close(images, seen_by(Cameras.from_labels(told.labels)[None]), rtol=0, atol=1e-4)
    assert (images - seen_by(cameras))[flipped].abs().max() > 0.5


def test_a_patch_is_mirrored_with_its_image():
    told = Conditioning(torch.randn(2, 25), torch.tensor([[0.25, 0.1, 0.6], [0.25, 0.1, 0.6]]))
    mirrored = told.mirrored(torch.tensor([True, False]))
    torch.testing.assert_close(mirrored.patch, torch.tensor([[0.25, 0.65, 0.6], [0.25, 0.1, 0.6]]))
    assert torch.equal(mirrored.labels[1], told.labels[1]) and not torch.equal(mirrored.labels[0], told.labels[0])


# ---------------------------------------------------------------- p


def ada(target=0.6, kimg=0.1):
    return Augmentation("ada", "bgc", 0.2, target, kimg, CPU)


def play(augmentation, steps, share, batch=10):
    """Takes steps in which a share of the real logits is positive; returns p in each."""
    logits = torch.where(torch.arange(batch) < share * batch, 1.0, -1.0)
    found = []
    for step in range(steps):
        augmentation.note(logits[:3])
        augmentation.note(logits[3:])
        statistics = augmentation.end_step(step)
        found.append(float(statistics["Augment/p"]))
        assert abs(statistics["Augment/sign"] - (2 * share - 1)) < 1e-6
    return found


def test_p_follows_the_signs_of_real_logits():
    """Every fourth step, by the images since then over 1000 kimg, between 0 and 1."""
    augmentation = ada()
    np.testing.assert_allclose(play(augmentation, 9, 0.9), [0] * 4 + [0.4] * 4 + [0.8], rtol=1e-6)
    assert play(augmentation, 16, 1.0)[-1] == 1.0
    np.testing.assert_allclose(play(augmentation, 8, 0.7)[-1], 0.6, rtol=1e-6)  # a sign of 0.4, below the target
    assert play(augmentation, 16, 0.7)[-1] == 0.0
    np.testing.assert_allclose(play(augmentation, 12, 0.8), 0, atol=0)  # exactly at the target of 0.6


def test_p_is_the_same_however_a_step_is_cut():
    whole, parts = ada(), ada()
    logits = torch.randn(16, generator=generator(0)) + 2
    for step in range(8):
        whole.note(logits)
        for part in logits.split(2):
            parts.note(part)
        assert whole.end_step(step) == parts.end_step(step)
    assert whole.p > 0 and all(torch.equal(value, parts.state()[name]) for name, value in whole.state().items())


def test_logits_that_are_no_numbers_do_not_spoil_p():
    augmentation = ada()
    for step in range(8):
        augmentation.note(torch.tensor([torch.nan, 1.0]))
        augmentation.end_step(step)
    assert augmentation.p == 0  # a mean sign of 0.5


def test_an_objective_that_notes_nothing_is_told_so():
    with pytest.raises(RuntimeError, match="note no logits of real images"):
        ada().end_step(0)
    assert Augmentation("noaug", "bgc", 0.2, 0.6, 500, CPU).end_step(0) == {}


def test_a_fixed_p_does_not_move():
    augmentation = Augmentation("fixed", "bgc", 0.25, 0.6, 0.1, CPU)
    assert play(augmentation, 8, 1.0) == [0.25] * 8


# ---------------------------------------------------------------- in a step


def test_with_p_at_0_a_step_is_that_without_augmentation_to_the_bit():
    expected = phase_gradients(*make_step(8, torch.float32))
    found = phase_gradients(*make_step(8, torch.float32, objective={"augment": "ada"}))
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)
    found = phase_gradients(*make_step(8, torch.float32, objective={"augment": "fixed", "augment_p": 0.9}))
    for name in ("G/_xyz", "D/b4.fc.weight", "R1/b4.fc.weight"):
        assert not torch.equal(found[name], expected[name]), name


def test_every_phase_has_draws_of_its_own_and_real_images_the_same_in_both(monkeypatch):
    seen = []
    original = Augmentation.__call__

    def spy(self, images, draws, stream):
        seen.append((stream, len(images)))
        return original(self, images, draws, stream)

    monkeypatch.setattr(Augmentation, "__call__", spy)
    objective = {"augment": "fixed", "augment_p": 0.9, "r2_gamma": 1.0}
    phase_gradients(*make_step(8, torch.float32, objective=objective))
    assert seen == [("G", 16), ("fake", 8), ("real", 8), ("real", 8), ("fake", 8)]  # G, D, R1, R2


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "all"}, "--aug=all: legal are noaug, ada, fixed"),
        ({"augment_pipe": "bgcfnc"}, "--augpipe=bgcfnc: legal are blit, geom, color, bg, bgc"),
        ({"augment": "fixed", "augment_p": 1.5}, "--p=1.5: must be 0 to 1"),
        ({"augment": "fixed", "augment_p": float("nan")}, "--p=nan: must be 0 to 1"),
        ({"augment": "ada", "augment_target": 1.0}, "--target=1.0: must be greater than 0 and less than 1"),
        ({"augment": "ada", "augment_kimg": 0.0}, "--ada-kimg=0.0: must be finite and greater than 0"),
        ({"augment": "ada", "augment_p": 0.5}, "--p=0.5 acts with --aug=fixed, and this run has --aug=ada"),
        ({"augment_target": 0.5}, "--target=0.5 acts with --aug=ada, and this run has --aug=noaug"),
    ],
)
def test_illegal_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        micro_config(objective=changes).check()
