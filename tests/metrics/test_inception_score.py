"""Tests the Inception score against its formula and where its value is known."""

import pytest
import torch

from metrics.inception_score import SPLITS, SplitScores


def score(logits, batch_size):
    scores = SplitScores(len(logits), logits.shape[1])
    starts = list(range(0, len(logits), batch_size))
    for start in reversed(starts):  # the order does not matter
        batch = logits[start : start + batch_size]
        scores.add(range(start, start + len(batch)), batch)
    return scores.mean_std()


def test_against_the_formula():
    logits = 2 * torch.randn(137, 12, generator=torch.Generator().manual_seed(0))
    expected = []
    for split in range(SPLITS):
        p = logits.double().softmax(1)[split * 137 // SPLITS : (split + 1) * 137 // SPLITS]
        expected.append(float((p * (p / p.mean(0)).log()).sum(1).mean().exp()))
    expected = torch.tensor(expected, dtype=torch.float64)
    assert expected.mean() > 2
    for batch_size in (137, 16, 1):
        found = score(logits, batch_size)
        assert found == pytest.approx((float(expected.mean()), float(expected.std(correction=0))), rel=1e-12)


def test_known_answers():
    sure = 200 * torch.eye(4).repeat(10, 1)
    assert score(sure, 7) == pytest.approx((4.0, 0.0), abs=1e-12)  # as many as there are classes
    assert score(torch.randn(1, 4).expand(40, 4), 7) == pytest.approx((1.0, 0.0), abs=1e-12)  # always the same
