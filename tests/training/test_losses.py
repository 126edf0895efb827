"""The losses against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from training import losses


def test_logistic_loss_is_the_log_of_the_sigmoid():
    logits = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(losses.logistic(logits, real=True), -F.logsigmoid(logits))
    torch.testing.assert_close(losses.logistic(logits, real=False), -torch.log(1 - logits.sigmoid()))


def test_a_late_weight_is_whole_after_twice_the_images_at_which_it_begins():
    assert [losses.late_share(n, 4000) for n in (0, 4000, 6000, 8000, 10**6, None)] == [0, 0, 0.5, 1, 1, 1]
    assert losses.late_share(0, 0) == 1


def test_knn_distance_against_a_loop():
    points = torch.randn(3, 20, 3, dtype=torch.float64)
    expected = []
    for scene in points:
        total = []
        for i in range(20):
            squared = ((scene - scene[i]) ** 2).sum(1)
            total.append(squared.sort().values[1:6].mean() / 3)
        expected.append(torch.stack(total).mean())
    torch.testing.assert_close(losses.knn_distance(points, 5), torch.stack(expected), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="1 to 19"):
        losses.knn_distance(points, 20)


def test_knn_gradient_reaches_both_ends():
    points = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: losses.knn_distance(p, 2), points)


def test_relativistic_loss_by_hand():
    """softplus(-(preferred - other)): ln 2 where D finds both equally real, ln(1 + 1/3) where e^difference is 3."""
    preferred = torch.tensor([0.0, 5.0, math.log(3.0), -40.0], dtype=torch.float64)
    other = torch.tensor([0.0, 5.0, 0.0, 60.0], dtype=torch.float64)
    expected = torch.tensor([math.log(2), math.log(2), math.log(4 / 3), 100.0], dtype=torch.float64)
    torch.testing.assert_close(losses.relativistic(preferred, other), expected, rtol=1e-12, atol=0)


def test_a_penalty_is_the_squared_gradient_norm():
    weight = torch.randn(3, 8, 8)

    def linear(image):
        return (image * weight).sum(dim=(1, 2, 3))[:, None]

    penalty = losses.gradient_penalty(linear, torch.randn(5, 3, 8, 8))
    torch.testing.assert_close(penalty, weight.square().sum().expand(5))


def test_blur_schedule_and_filter():
    assert losses.blur_sigma_at(0, 10, 200_000) == 10
    assert losses.blur_sigma_at(50_000, 10, 200_000) == 7.5
    assert losses.blur_sigma_at(300_000, 10, 200_000) == 0
    image = torch.zeros(1, 3, 65, 65)
    image[:, :, 32, 32] = 1
    blurred = losses.gaussian_blur(image, 10.0)
    taps = torch.tensor([2.0 ** -((t / 10) ** 2) for t in range(-30, 31)])
    taps = taps / taps.sum()
    torch.testing.assert_close(blurred[0, 1, 2:63, 2:63], taps[:, None] * taps, rtol=1e-5, atol=1e-8)
    assert blurred[0, 0, 0, 0] == 0  # 61 taps reach no further than 30 pixels
    assert losses.gaussian_blur(image, 0.3) is image


def blur_by_convolutions(images, sigma):
    radius = math.floor(3 * sigma)
    taps = torch.arange(-radius, radius + 1).to(images).div(sigma).square().neg().exp2()
    taps = taps / taps.sum()
    planes = images.flatten(0, 1)[:, None]  # [N C, 1, H, W]
    planes = F.conv2d(planes, taps.view(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(planes, taps.view(1, 1, -1, 1), padding=(radius, 0)).view_as(images)


@pytest.mark.parametrize("sigma", [0.4, 2.5, 10.0])
def test_blur_matches_the_twin_twice(sigma):
    images = torch.randn(2, 3, 24, 40, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()

    def results(blur):
        y = blur(images, sigma)
        (first,) = torch.autograd.grad(y.cos().sum(), images, create_graph=True)
        return y, first, torch.autograd.grad(first.square().sum(), images)[0]

    for fast, slow in zip(results(losses.gaussian_blur), results(blur_by_convolutions), strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)  # worst seen 2e-15
    assert losses.gaussian_blur(images.to("meta"), sigma).shape == images.shape
