"""Laws of cameras: their moments and bounds, and draws that are functions of seed, stream and index."""

from __future__ import annotations

import math

import pytest
import torch

from gaussian import Cameras
from training.data.poses import LAWS, POLE, PoseLaw, angles_of, hybrid, truncated

COUNT = 40_000
MEAN, SPREAD = (math.pi / 2, math.pi / 2), (0.3, 0.155)  # theta and phi


def law(name: str) -> PoseLaw:
    return PoseLaw(name, (MEAN[0], SPREAD[0]), (MEAN[1], SPREAD[1]), 12.0)


# By law, in spreads: variance, fourth moment, and the share that is more than 1 away. A normal number within +- z has
# the variance 1 - 2 z n(z) / P and the fourth moment 3 - (2 z^3 + 6 z) n(z) / P, where P of all are within z.
NORMAL_2, WITHIN_2 = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
BEYOND_1 = 1 - math.erf(math.sqrt(0.5))
MOMENTS = {
    "gaussian": (1.0, 3.0, BEYOND_1),
    "uniform": (1 / 3, 1 / 5, 0.0),
    "truncated_gaussian": (
        1 - 4 * NORMAL_2 / WITHIN_2,
        3 - 28 * NORMAL_2 / WITHIN_2,
        1 - (1 - BEYOND_1) / WITHIN_2,
    ),
    "hybrid": ((4 / 3 + 1) / 2, (16 / 5 + 3) / 2, (1 / 2 + BEYOND_1) / 2),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments(name: str) -> None:
    """Within 4 standard errors, of both angles of the labels."""
    theta, phi = angles_of(Cameras.from_labels(law(name).labels(0, "test", range(COUNT))).positions.double())
    variance, fourth, beyond = MOMENTS[name]
    for values, mean, spread in ((theta, MEAN[0], SPREAD[0]), (phi, MEAN[1], SPREAD[1])):
        offsets = (values - mean) / spread
        assert abs(float(offsets.mean())) < 4 * math.sqrt(variance / COUNT)
        assert abs(float(offsets.square().mean()) - variance) < 4 * math.sqrt((fourth - variance**2) / COUNT)
        share = float((offsets.abs() > 1 + 1e-5).double().mean())
        assert abs(share - beyond) <= 4 * math.sqrt(beyond * (1 - beyond) / COUNT)
    joint = (theta - MEAN[0]) * (phi - MEAN[1]) / (SPREAD[0] * SPREAD[1])
    assert abs(float(joint.mean())) < 4 * variance / math.sqrt(COUNT)


@pytest.mark.parametrize(("name", "bound"), [("uniform", 1.0), ("truncated_gaussian", 2.0)])
def test_bounds(name: str, bound: float) -> None:
    offsets = law(name).offsets(0, "test", range(COUNT))
    assert 0.99 * bound < float(offsets.abs().max()) <= bound


def test_the_first_of_four_within_two_spreads_counts() -> None:
    draws = [[2.5, -2.1, 1.0, 0.3], [0.1, 0.2, 0.3, 0.4], [-2.5, 3.0, 2.0, -2.0], [9.0, 9.0, 9.0, -1.9]]
    assert torch.equal(truncated(torch.tensor(draws)), torch.tensor([1.0, 0.1, -2.5, -1.9]))


def test_one_coin_is_for_both_angles_of_a_camera() -> None:
    even, normal = torch.tensor([[0.0, 0.75], [0.0, 0.75]]), torch.tensor([[0.3, -3.0], [0.3, -3.0]])
    found = hybrid(torch.tensor([[0.49], [0.5]]), even, normal)
    assert found.tolist() == [[-2.0, 1.0], normal[1].tolist()]
    both = law("hybrid").offsets(0, "test", range(COUNT)).square()
    same = float((both - both.mean(0)).prod(1).mean())  # the squares' mean is 4/3 or 1, by the coin
    spread = float((both - both.mean(0)).prod(1).std()) / math.sqrt(COUNT)
    assert abs(same - 1 / 36) < 4 * spread


@pytest.mark.parametrize("name", LAWS)
def test_draws_are_functions_of_seed_stream_and_index(name: str) -> None:
    """Equal for every split, bit by bit, and different for every index, stream and seed."""
    made = law(name)
    whole = made.labels(3, "G", range(1000, 1050))
    assert torch.equal(whole, torch.cat([made.labels(3, "G", range(a, a + 10)) for a in range(1000, 1050, 10)]))
    assert torch.equal(whole[[7, 2]], made.labels(3, "G", [1007, 1002]))
    others = [made.labels(3, "D", range(1000, 1050)), made.labels(4, "G", range(1000, 1050))]
    assert len(torch.cat([whole, *others]).unique(dim=0)) == 150


@pytest.mark.parametrize(
    ("theta", "phi", "message"),
    [
        ((math.nan, 0.3), (1.5, 0.1), "--h-mean=nan: must be finite"),
        ((1.5, -0.3), (1.5, 0.1), "--h-stddev=-0.3: must be finite and 0 or greater"),
        ((1.5, 0.3), (1.5, math.inf), "--v-stddev=inf: must be finite and 0 or greater"),
        ((7.0, 0.3), (1.5, 0.1), "--pose: theta 7 is out of range"),
        ((1.5, 0.3), (-1.5, 0.1), "--pose: phi -1.5 is out of range"),
    ],
)
def test_what_is_no_law_is_refused(theta: tuple[float, float], phi: tuple[float, float], message: str) -> None:
    for name in LAWS:
        with pytest.raises(ValueError, match=message):
            PoseLaw(name, theta, phi, 12.0)


@pytest.mark.parametrize("name", LAWS)
def test_cameras_stay_off_the_poles(name: str) -> None:
    """Where a spread takes angles beyond straight above and below, they end there."""
    wide = PoseLaw(name, (0.0, math.pi), (math.pi / 2, 2.5), 30.0)
    _, phi = wide.angles(*wide.offsets(0, "test", range(2000)).unbind(1))
    assert POLE <= float(phi.min()) < 0.01 and math.pi - 0.01 < float(phi.max()) <= math.pi - POLE
