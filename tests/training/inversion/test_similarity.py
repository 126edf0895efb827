"""Tests the losses of an inversion: each must see what it is there for, and the discriminator must stay as it was."""

import torch

from metrics import vgg
from training.checkpoint import load_discriminator
from training.inversion.similarity import (
    DiscriminatorFeatures,
    PerceptualFeatures,
    Similarity,
    gradient_l1,
    mask_distance,
    psnr,
    pyramid_l1,
)

DRAWS = torch.Generator().manual_seed(0)
IMAGES = torch.rand(2, 3, 32, 32, generator=DRAWS)


def test_a_pyramid_weighs_what_is_wrong_everywhere_more_than_noise():
    shifted, noisy = IMAGES + 0.1, IMAGES + 0.1 * torch.randn(IMAGES.shape, generator=DRAWS).sign()
    torch.testing.assert_close(pyramid_l1(shifted, IMAGES), torch.full((2,), 0.1))
    assert (pyramid_l1(noisy, IMAGES) < 0.08).all()


def test_gradients_see_edges_and_no_brightness():
    assert gradient_l1(IMAGES + 0.3, IMAGES).max() < 1e-6
    assert gradient_l1(IMAGES.roll(1, -1), IMAGES).min() > 0.1


def test_masks_are_compared_by_intersection_over_union():
    left, half = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    left[..., :4], half[..., :2] = 1, 1
    assert mask_distance(left, left).item() == 0
    assert mask_distance(half, left).item() == 0.5
    assert mask_distance(1 - left, left).item() == 1


def test_features_of_the_discriminator(checkpoint_path):
    D = load_discriminator(checkpoint_path)
    labels = torch.zeros(2, 25)
    before = D(2 * IMAGES - 1, labels, 2)
    features = DiscriminatorFeatures(D)
    maps, logits = features.with_logits(IMAGES, labels)
    sizes = [made.shape[-1] for made in maps]
    assert sizes == sorted(set(sizes), reverse=True) and min(sizes) >= 8 and len(sizes) >= 2
    torch.testing.assert_close(logits[:, None], before)
    images = IMAGES.clone().requires_grad_(True)
    sum(made.sum() for made in features(images, labels)).backward()
    assert images.grad.abs().min(dim=0).values.sum() > 0 and all(p.grad is None for p in D.parameters())
    features.release()
    assert not any(module._forward_hooks for module in D.modules())


def test_every_term_is_0_where_nothing_differs_and_trials_are_apart(checkpoint_path):
    masks = (IMAGES[:, :1] > 0.5).float()
    features = DiscriminatorFeatures(load_discriminator(checkpoint_path))
    perceptual = PerceptualFeatures(vgg.untrained().features)
    similarity = Similarity(IMAGES, masks, features, perceptual)
    images = torch.stack([IMAGES, IMAGES.flip(-1)])  # two trials
    alpha = torch.stack([masks, masks.flip(-1)])
    losses = similarity(images, alpha, torch.zeros(2, 2, 25))
    assert losses.shape == (2, 2)
    assert losses[0].max() < 1e-5 and losses[1].min() > 0.3
    alone = Similarity(IMAGES[1:], masks[1:], features, perceptual)(
        images[1:, 1:], alpha[1:, 1:], torch.zeros(1, 1, 25)
    )
    torch.testing.assert_close(alone[0, 0], losses[1, 1])


def test_psnr():
    torch.testing.assert_close(psnr(IMAGES, (IMAGES + 0.1)), torch.full((2,), 20.0))
    torch.testing.assert_close(psnr(IMAGES + 5, torch.ones_like(IMAGES)), torch.full((2,), 100.0))
