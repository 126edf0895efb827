"""Tests counter-based randomness: known answers, independence of grouping, and the distributions."""

import numpy as np
import pytest
import torch

from torch_utils import random


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known-answer vectors that Random123 publishes for philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert tuple(int(v) for v in random.philox(np.array(counter, dtype=np.uint64), key)) == expected


@pytest.mark.parametrize("draw", [random.uniform, random.normal, lambda *a: random.integers(*a[:3], 1000, a[3])])
def test_samples_do_not_depend_on_their_batch(draw):
    whole = draw(7, "G/z", range(100, 116), (5, 3))
    parts = torch.cat([draw(7, "G/z", range(start, start + 4), (5, 3)) for start in range(100, 116, 4)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, draw(8, "G/z", range(100, 116), (5, 3)))
    assert not torch.equal(whole, draw(7, "D/z", range(100, 116), (5, 3)))


def test_large_indices_stay_distinct():
    low, high = random.uniform(0, "s", [5], (4,)), random.uniform(0, "s", [5 + 2**32], (4,))
    assert not torch.equal(low, high)


def test_distributions():
    z = random.normal(0, "z", range(2000), (64,))
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01  # 128,000 draws: 0.0028 is one standard error
    assert abs((z**4).mean() - 3) < 0.1
    u = random.uniform(0, "u", range(50_000))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01
    counts = torch.bincount(random.integers(0, "i", range(50_000), 10), minlength=10)
    assert counts.min() > 4700 and counts.max() < 5300


def test_every_epoch_is_a_fresh_permutation():
    order = random.EpochOrder(0, "data", 37)
    epochs = [order(range(37 * e, 37 * (e + 1))) for e in range(3)]
    assert all(sorted(e) == list(range(37)) for e in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    across = order(range(30, 50))
    assert np.array_equal(across, np.concatenate([epochs[0][30:], epochs[1][:13]]))


def test_hashed_numbers_are_functions_of_key_and_place():
    """They do not depend on the batch or the count, differ between keys that differ in a bit, and are well spread."""
    keys = random.integers(0, "rays", range(64), 2**31)
    uniform, normal = random.hashed_uniform(keys, (50, 40)), random.hashed_normal(keys, (50, 41))
    assert uniform.shape == (64, 50, 40) and normal.shape == (64, 50, 41)
    assert (random.hashed_uniform(keys[3:5], (50, 40)) == uniform[3:5]).all()
    assert (random.hashed_normal(keys[3:5], (50, 41)) == normal[3:5]).all()
    assert 0 <= float(uniform.min()) < 1e-3 and 1 - 1e-3 < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 3e-3 and abs(float(uniform.var()) - 1 / 12) < 1e-3
    assert abs(float(normal.mean())) < 0.01 and abs(float(normal.std()) - 1) < 0.01
    assert abs(float((normal**4).mean()) - 3) < 0.1
    near = random.hashed_normal(torch.arange(64), (2050,))
    for values in (uniform.flatten(1), normal.flatten(1), near):
        assert torch.corrcoef(values).sub(torch.eye(64)).abs().max() < 0.12  # 1 / sqrt(2000) is 0.022
        assert torch.corrcoef(values.t()[:100]).sub(torch.eye(100)).abs().max() < 0.6  # 1 / sqrt(64) is 0.125
