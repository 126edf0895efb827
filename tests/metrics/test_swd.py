"""Tests the sliced Wasserstein distance: its pyramid, a slow twin, and that it reacts."""

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from metrics import swd as module
from metrics.swd import PatchDescriptors, describe, distance, laplacian_pyramid, swd
from torch_utils import random


def blobs(count, seed, resolution=32):
    """Draws smooth colour images uint8 [count, 3, R, R]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, (resolution, resolution), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def test_pyramid_against_scipy():
    image = torch.randint(0, 256, (1, 1, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    levels = laplacian_pyramid(image)
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    weights = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    current = image[0, 0].double().numpy()
    for level in levels[:-1]:
        coarse = scipy.ndimage.convolve(current, weights, mode="mirror")[::2, ::2]
        spread = np.zeros_like(current)
        spread[::2, ::2] = coarse
        rest = current - scipy.ndimage.convolve(spread, 4 * weights, mode="mirror")
        np.testing.assert_allclose(level[0, 0], rest, atol=1e-4)
        current = coarse
    np.testing.assert_allclose(levels[-1][0, 0], current, atol=1e-4)


def slow_swd(images_a, images_b, seed):
    """Follows the definition in float64, one patch and one direction at a time."""
    directions = random.normal(seed, "metric/swd/directions", range(module.DIRECTIONS), (147,)).double().numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    result = {}
    for level in range(len(laplacian_pyramid(images_a))):
        sets = []
        for images in (images_a, images_b):
            values = laplacian_pyramid(images)[level].double().numpy()
            r = values.shape[-1]
            corners = random.uniform(seed, f"metric/swd/patch/{r}", range(len(values)), (128, 2)).numpy()
            corners = (corners * (r - 6)).astype(int)
            patches = [values[i, :, y : y + 7, x : x + 7] for i in range(len(values)) for x, y in corners[i]]
            patches = np.stack(patches)  # [M, 3, 7, 7]
            patches = patches - patches.mean(axis=(0, 2, 3), keepdims=True)
            sets.append((patches / patches.std(axis=(0, 2, 3), keepdims=True)).reshape(len(patches), -1))
        distances = [np.abs(np.sort(sets[0] @ d) - np.sort(sets[1] @ d)).mean() for d in directions]
        result[f"swd_{r}"] = 1e3 * np.mean(distances)
    return {**result, "mean": np.mean(list(result.values()))}


def test_against_the_slow_twin():
    a, b = blobs(12, 0), (blobs(12, 1) * 0.7).to(torch.uint8)
    fast, slow = swd(a, b, seed=3), slow_swd(a, b, seed=3)
    assert fast.keys() == slow.keys() == {"swd_32", "swd_16", "mean"}
    for name, value in slow.items():
        assert value > 5
        assert fast[name] == pytest.approx(value, rel=1e-4)  # worst seen 8e-6, from the descriptors' float16


def test_reacts_to_blur_and_noise():
    real, others = ((blobs(96, seed) > 127).to(torch.uint8) * 255 for seed in (0, 1))  # with sharp edges
    floor = swd(real, others)["mean"]
    noise = torch.randint(0, 256, real.shape, generator=torch.Generator().manual_seed(0))

    def blurred(width):
        padded = F.pad(real.float(), [width // 2] * 4, mode="reflect")
        return F.avg_pool2d(padded, width, stride=1).to(torch.uint8)

    blur = [swd(real, blurred(width))["mean"] for width in (3, 5, 9)]
    added = [swd(real, ((1 - share) * real + share * noise).to(torch.uint8))["mean"] for share in (0.1, 0.3, 1.0)]
    for steps in (blur, added):
        assert steps == sorted(steps)
    assert floor < blur[0] < added[-1]
    assert 2 * floor < min(blur[1], added[-1])


def test_falls_with_the_number_of_images():
    few, many = swd(blobs(32, 0), blobs(32, 1)), swd(blobs(256, 0), blobs(256, 1))
    assert many["mean"] < 0.5 * few["mean"]


def test_a_set_is_its_own_twin():
    images = blobs(20, 0)
    assert set(swd(images, images).values()) == {0.0}


def test_batch_size_and_seed():
    a, b = blobs(50, 0), blobs(50, 1)
    whole = distance(describe(a, 1, 50), describe(b, 1, 50))
    assert distance(describe(a, 1, 7), describe(b, 1, 13)) == whole
    assert swd(a.numpy(), b.numpy(), seed=1) == whole
    other = swd(a, b, seed=2)["mean"]
    assert other != whole["mean"]
    assert other == pytest.approx(whole["mean"], rel=0.2)


def test_a_constant_image_gives_a_finite_distance():
    assert np.isfinite(list(swd(blobs(8, 0), torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)).values())).all()


def test_illegal_input():
    images = blobs(4, 0)
    with pytest.raises(ValueError, match="16, 32, 64"):
        swd(images[..., :24, :24], images)
    with pytest.raises(ValueError, match="uint8 images"):
        swd(images.float(), images)
    with pytest.raises(ValueError, match="same count and size"):
        swd(images, images[:3])
    with pytest.raises(ValueError, match=r"5 images .* a set of 4"):
        PatchDescriptors(32, 4).add(range(5), blobs(5, 0))
