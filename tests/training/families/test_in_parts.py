"""D judges what G made a part at a time: the gradient is the same, and so is everything that is reported."""

import math

import pytest
import torch

from tests.training.families.gsgan import small as gsgan
from tests.training.gan import AUGMENTED, RELATIVISTIC, make_step, network, phase_gradients
from torch_utils.training_stats import Collector
from training.families.in_parts import EVERY, grafted, part_by_part, parts


@pytest.mark.parametrize(
    ("count", "groups", "at_once", "number"),
    [
        (8, 4, 0, 1), (8, 4, 8, 1), (8, 4, 7, 2), (8, 4, 3, 4), (8, 4, 1, 4),  # a group of two stays whole
        (128, 32, 32, 4), (64, 16, 32, 2), (24, 6, 8, 3), (32, 1, 8, 1), (24, 6, 5, 6),
        (44, 11, 32, 1), (37, 37, 32, 1), (88, 22, 32, 2), (44, 11, 8, 11),  # not 11, 37 and 11 parts
    ],
)  # fmt: skip
def test_parts_are_small_enough_not_too_many_and_hold_whole_groups(count, groups, at_once, number):
    split = parts(count, groups, at_once)
    assert len(split) == number
    held = [set(range(count)[part]) for part in split]
    assert sorted(i for part in held for i in part) == list(range(count))
    for group in (set(range(m, count, groups)) for m in range(groups)):
        assert sum(group <= part for part in held) == 1
    for part, members in zip(split, held, strict=True):  # group m of a part is a group of the whole
        rows = list(range(count)[part])
        for m in range(groups // number):
            assert {i % groups for i in rows[m :: groups // number]} == {rows[m] % groups}, members


def close(found, expected, bound=1e-10):
    """Compares gradients by name; one that is zero up to rounding has no relative error."""
    assert found.keys() == expected.keys() and len(expected) > 100
    for name, value in expected.items():
        if value.norm() > 1e-12:
            assert (found[name] - value).norm() < bound * value.norm(), name


@pytest.mark.parametrize("objective", [{}, RELATIVISTIC, AUGMENTED])
@pytest.mark.parametrize("mbstd", [1, 4])
def test_gradients_do_not_depend_on_the_parts(objective, mbstd):
    """Of 16 images, 8 scenes from 2 views."""

    def of(at_once):
        step, micro = make_step(8, torch.float64, mbstd, objective={**objective, "judged_at_once": at_once})
        return phase_gradients(step, micro)

    whole = of(0)
    for at_once in (8, 4, 1):
        close(of(at_once), whole)


def test_gradients_of_a_contrast_do_not_depend_on_the_parts():
    """GSGAN's pose branch finds each image's own camera among all, whichever part the image is in."""

    def of(at_once):
        changes = {"augment": "fixed", "augment_p": 0.5, "judged_at_once": at_once}
        return phase_gradients(*gsgan.make_step(gsgan.run_config(8, changes), torch.float64))

    whole = of(0)
    for at_once in (4, 2):
        close(of(at_once), whole)


def test_a_scaled_loss_leaves_the_gradients_as_they_are():
    """D's gradient of the images has float16's scale in it, and it comes off once."""
    changes = {"judged_at_once": 4}
    plain = phase_gradients(*make_step(8, torch.float32, objective=changes))
    step, micro = make_step(8, torch.float32, objective=changes)
    step.loss_scale = 1024.0
    scaled = phase_gradients(step, micro)
    assert all(torch.equal(scaled[name], plain[name]) for name in plain) and len(plain) > 100


def generator_phase(at_once, monkeypatch):
    """Runs phase G, and returns what is reported of it, its loss, and the images of each call of D."""
    step, micro = make_step(8, torch.float64, 4, objective={"judged_at_once": at_once})
    step.stats, counts = Collector(), []
    D = network(step, "D")
    judge = D.outputs
    monkeypatch.setattr(D, "outputs", lambda images, *rest: counts.append(len(images)) or judge(images, *rest))
    step.accumulate(step.phases[0], 0, micro)
    return step.stats.reduce(), step.loss.item(), counts


def test_d_judges_no_more_than_asked_and_the_report_stays_the_same(monkeypatch):
    expected, loss, counts = generator_phase(0, monkeypatch)
    assert counts == [16] and {"Loss/G/adversarial", "Logits/G", "Logits/G/sign", "Loss/G/knn"} <= expected.keys()
    found, same, counts = generator_phase(4, monkeypatch)
    assert counts == [4] * 4 and same == pytest.approx(loss, rel=1e-12)
    assert found.keys() == expected.keys()
    for name, moments in expected.items():
        assert found[name] == pytest.approx(moments, rel=1e-9, abs=1e-12), name


def test_a_loss_that_is_not_finite_is_seen(monkeypatch):
    step, micro = make_step(8, torch.float32, 4, objective={"judged_at_once": 4})
    monkeypatch.setattr("training.losses.logistic", lambda logits, real: logits + math.nan)
    step.accumulate(step.phases[0], 0, micro)
    _, flags, _, bad = step.reduce(step.phases[0], torch.zeros(0))
    assert bool(bad) and flags[0] == 1


def test_zeros_hand_on_a_gradient_as_it_is():
    images = torch.randn(4, 3, 2, 2, requires_grad=True)
    gradient = torch.randn(4, 3, 2, 2)
    zeros = grafted(2 * images, gradient)
    assert torch.equal(zeros, torch.zeros(4))
    (0.125 * zeros).sum().backward()
    assert torch.equal(images.grad, 2 * gradient)


def test_who_asks_for_the_next_part_before_the_last_went_back_is_told():
    opinion = lambda images, part: (images.flatten(1).sum(1), images.flatten(1).mean(1), {})  # noqa: E731
    images = torch.randn(4, 3, 2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="has to go back before the next"):
        list(part_by_part(images, parts(4, 2, 2), opinion))
    assert list(part_by_part(images, [EVERY], opinion)) == []


def test_a_number_that_is_none_is_refused():
    step, _ = make_step(8, torch.float32)
    config = step.config.objective.changed(judged_at_once=-1)
    with pytest.raises(ValueError, match=r"objective.judged_at_once=-1: must be 1 or greater, or 0 for all"):
        config.check(step.config)
