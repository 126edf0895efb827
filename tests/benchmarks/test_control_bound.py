"""What pictures can tell at most: more noise and fewer pixels tell less, and what leaves no trace is not told."""

import torch
import torch.nn.functional as F

from benchmarks.control_bound import LOOKS, told


def test_more_noise_and_fewer_pixels_tell_less() -> None:
    rows = torch.randn(4 + LOOKS + 2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[1] = 0.0
    sharp, noisy, coarse = told(rows, 1.0), told(rows, 3.0), told(F.avg_pool2d(rows, 2), 1.0)
    assert (noisy <= sharp).all() and (coarse <= sharp).all() and sharp[1] == 0 and 0.5 < sharp[0] < 1


def test_a_number_that_stands_alone_is_told_as_its_prior_and_noise_say() -> None:
    rows = torch.zeros(2 + LOOKS + 2, 3, 2, 2, dtype=torch.float64)
    rows[0, 0, 0, 0] = 2.0
    torch.testing.assert_close(told(rows, 4.0)[:2], torch.tensor([0.2, 0.0], dtype=torch.float64))  # 1 - 1 / (1 + 1/4)
