"""What --background, --disc-c-noise and --freezed change in a step."""

import pytest
import torch

from tests.training.gan import make_step, make_stream, network, phase_gradients
from training.dataset import Batch
from training.samples import SampleStream


def micro_batches(stream: SampleStream, masks: torch.Tensor | None):
    images = torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)
    return stream.micro_batches(0, Batch(images, masks, stream.labels[stream.items(0)]))


CLEAR = torch.zeros(8, 1, 32, 32, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "colour"), [("white", (1, 1, 1)), ("black", (0, 0, 0)), ("0.25,0.5,1", (0.25, 0.5, 1))]
)
def test_one_colour_stands_behind_real_and_fake(name, colour):
    (part,) = micro_batches(make_stream(background=name), CLEAR)
    colour = torch.tensor(colour, dtype=torch.float32)
    assert torch.equal(part.real, (2 * colour - 1)[:, None, None].expand(8, 3, 32, 32))
    assert torch.equal(part.d_background, colour.expand(8, 3))
    assert torch.equal(part.g_background, colour.expand(8, 2, 3))


def test_random_backgrounds_differ_and_real_and_fake_share_them():
    (part,) = micro_batches(make_stream(background="random"), CLEAR)
    assert torch.allclose(part.real[:, :, 0, 0], 2 * part.d_background - 1)
    assert len(part.d_background.unique(dim=0)) == 8 and len(part.g_background.flatten(0, 1).unique(dim=0)) == 16


def test_without_masks_reals_stay_as_they_are():
    (part,) = micro_batches(make_stream(background="black"), None)
    assert torch.equal(part.real, torch.full_like(part.real, 200 / 127.5 - 1))


def test_label_noise_reaches_the_discriminator_only_and_scales_with_the_labels():
    clean, noisy = make_stream(), make_stream(label_noise=0.5)
    (a,), (b,) = micro_batches(clean, CLEAR), micro_batches(noisy, CLEAR)
    assert torch.equal(a.g_cameras.cam2world, b.g_cameras.cam2world)
    assert torch.equal(a.d_cameras.cam2world, b.d_cameras.cam2world)
    noise = torch.cat([(y - x).flatten(0, -2) for x, y in ((a.real_labels, b.real_labels), (a.g_labels, b.g_labels))])
    assert torch.equal(noise[:, 0], torch.zeros(24))  # this entry is the same in all labels
    ratio = noise[:, 1:].std(0) / noisy.label_std[1:]
    assert 0.4 < ratio.mean() < 0.6  # 0.48 seen
    parts = micro_batches(make_stream(label_noise=0.5, batch_gpu=4), CLEAR)
    assert torch.equal(torch.cat([p.real_labels for p in parts]), b.real_labels)  # by sample, not by micro-batch


def test_frozen_layers_do_not_learn_and_the_others_do():
    step, micro = make_step(8, torch.float32, freeze_d=2)
    before = {name: p.clone() for name, p in network(step, "D").named_parameters()}
    step.run(0, 0, micro)
    still = {name for name, p in network(step, "D").named_parameters() if torch.equal(p, before[name])}
    frozen = {"b32.fromrgb.weight", "b32.fromrgb.bias", "b32.conv0.weight", "b32.conv0.bias"}
    assert frozen == still & {name for name in before if name.startswith("b32.")}
    assert "b32.conv1.weight" not in still and "b4.out.weight" not in still


def test_freezing_leaves_the_other_gradients_as_they_are():
    whole = phase_gradients(*make_step(8, torch.float64))
    step, micro = make_step(8, torch.float64, freeze_d=3)
    (phase,) = (p for p in step.phases if p.name == "D")
    step.accumulate(phase, 0, micro)
    for name, parameter in network(step, "D").named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole[f"D/{name}"], rtol=1e-12, atol=1e-14)
