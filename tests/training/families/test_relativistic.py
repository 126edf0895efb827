"""The relativistic objective: pairs of one camera, its gradients against the formula, R2, and what is refused."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.training.gan import RELATIVISTIC, make_step, make_stream, micro_config, network
from training.dataset import Batch
from training.families.base import StepContext

CLEAR = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
AT = StepContext(nimg=10**7)  # long after the blur has gone


def paired_batch(**changes):
    stream = make_stream(objective=RELATIVISTIC, **changes)
    images = torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)
    labels = stream.labels[stream.items(0)]
    return stream.micro_batches(0, Batch(images, CLEAR, labels)), labels


def test_a_pair_has_one_camera_and_one_background():
    """The camera of the real image after its flip; the scenes of two samples are seen from the cameras of both."""
    (part,), labels = paired_batch()
    assert not torch.equal(part.real_labels, labels)  # some are mirrored
    assert torch.equal(part.d_cameras.labels[:, 0], part.real_labels)
    assert part.pairs.tolist() == [[1, 0], [0, 1], [3, 2], [2, 3], [5, 4], [4, 5], [7, 6], [6, 7]]
    assert torch.equal(part.g_cameras.labels, part.real_labels[part.pairs])
    assert torch.equal(part.g_background, part.d_background[part.pairs])


def test_a_pair_is_told_one_label_however_noisy():
    (part,), _ = paired_batch(label_noise=0.5)
    (clean,), _ = paired_batch()
    assert torch.equal(part.g_cameras.labels, clean.g_cameras.labels)
    assert torch.equal(part.d_labels, part.real_labels) and not torch.equal(part.d_labels, clean.d_labels)
    assert torch.equal(part.g_labels, part.real_labels[part.pairs])


def test_pairs_do_not_depend_on_the_micro_batches():
    (whole,), _ = paired_batch()
    parts, _ = paired_batch(batch_gpu=2, mbstd=1)
    for name in ("g_labels", "g_background", "d_labels"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name)), name


def make(mbstd=4):
    """Returns the objective, G, D and a micro-batch of 8 in float64; D judges in two groups."""
    step, (micro,) = make_step(8, torch.float64, mbstd, objective=RELATIVISTIC)
    return step.objective, step.G, network(step, "D").requires_grad_(True), micro


def gradient(loss, module):
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def assert_same_gradient(loss, expected, module):
    loss, expected = gradient(loss, module), gradient(expected, module)
    assert (loss - expected).norm() < 1e-10 * expected.norm()  # seen: 2e-15


def test_gradient_of_the_generator_is_that_of_the_formula():
    objective, G, D, micro = make()
    (loss,) = objective.generator_losses(micro, AT)
    image = G.render(G.synthesis(G.mapping(micro.g_z)), micro.g_cameras, background=micro.g_background).image
    real = D(micro.real, micro.real_labels)[:, 0]
    terms = [
        F.softplus(-(D(image[:, v], micro.real_labels[rows])[:, 0] - real[rows]))
        for v, rows in enumerate(micro.pairs.T)
    ]
    adversarial = loss.report["Loss/G/adversarial"]
    torch.testing.assert_close(adversarial, torch.stack(terms).mean(0))
    assert_same_gradient(adversarial.mean(), torch.stack(terms).mean(), G)


def test_gradient_of_the_discriminator_is_that_of_the_formula():
    """Through both logits of a pair, and none to G."""
    objective, G, D, micro = make()
    (loss,) = objective.discriminator_losses(micro, AT)
    image = G.render(G.synthesis(G.mapping(micro.d_z)), micro.d_cameras, background=micro.d_background[:, None]).image
    fake, real = D(image[:, 0].detach(), micro.real_labels), D(micro.real, micro.real_labels)
    assert_same_gradient(loss.total.mean(), F.softplus(-(real - fake)).mean(), D)
    assert torch.equal(loss.ws, G.mapping(micro.d_z)) and not loss.ws.requires_grad
    assert all(g is None for g in torch.autograd.grad(loss.total.sum(), list(G.parameters()), allow_unused=True))


def test_r2_is_the_penalty_at_the_generated_images_alone(monkeypatch):
    """A linear D has its weight for a gradient; the penalty is its squared norm, times gamma / 2 and the interval."""
    objective, _, D, micro = make()
    weight, judged = torch.randn(3, 32, 32, dtype=torch.float64), []

    def outputs(images, conditioning, num_groups=None):
        judged.append(images)
        return dataclasses.make_dataclass("Output", ["logits"])((images * weight).sum((1, 2, 3))[:, None])

    monkeypatch.setattr(D, "outputs", outputs)
    objective.settings = dataclasses.replace(objective.settings, r2_gamma=3.0, blur_sigma=0.0)
    (loss,) = objective.r2_losses(micro, AT)
    norm = weight.square().sum().expand(8)
    torch.testing.assert_close(loss.report["Loss/D/r2_penalty"], norm)
    torch.testing.assert_close(loss.total, 3.0 / 2 * 16 * norm)
    assert torch.equal(judged[0], objective.fakes(micro, AT)[1]) and loss.ws is None
    assert judged[0].is_leaf  # the graph ends at the image


@pytest.mark.parametrize(
    ("changes", "phases", "rate"),
    [
        ({}, ["G", "D", "R1"], 16 / 17),
        (RELATIVISTIC, ["G", "D", "R1", "R2"], 16 / 18),
        ({"gamma": 0.0, "r2_gamma": 1.0, "r1_interval": 4}, ["G", "D", "R2"], 4 / 5),
        ({"gamma": 0.0}, ["G", "D"], 1.0),
    ],
)
def test_phases_and_the_rate_that_makes_up_for_them(changes, phases, rate):
    step, _ = make_step(8, torch.float32, objective=changes)
    assert [phase.name for phase in step.phases] == phases
    assert {phase.every for phase in step.phases[2:]} <= {changes.get("r1_interval", 16)}
    assert step.objective.learning_rates(step.config.stage_at(0))["D"] == 0.002 * rate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "--objective=hinge: legal are logistic, relativistic"),
        ({"r2_gamma": -1.0}, "--r2-gamma=-1.0: must be finite and 0 or greater"),
        ({"r1_interval": 0}, "--r1-interval=0: must be 1 or greater"),
        ({"num_views": 3, **RELATIVISTIC}, "--batch-gpu=8 is not a multiple of the 3 views of a scene"),
    ],
)
def test_illegal_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        micro_config(objective=changes).check()
