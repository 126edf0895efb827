"""Tests metrics on 1, 2 and 3 gloo processes: one value, shared failures, and no timeout for what takes long."""

from datetime import timedelta

import pytest

from metrics import compute_metric
from tests.metrics.rank import METRICS, TIMEOUT_S, act
from tests.metrics.toys import ToyGenerator
from tests.torch_utils.ranks import run_ranks
from torch_utils import distributed
from training.dataset import ImageDataset


@pytest.fixture(scope="module")
def runs(data_folder, tmp_path_factory):
    """Runs both worlds: {world size: {rank: results}}. The ranks of each fill one cache folder together."""
    found = {}
    for world in (2, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path_factory.mktemp("ranks") / "cache"))
            patch.setattr(distributed, "_TIMEOUT", timedelta(seconds=TIMEOUT_S))
            results = run_ranks(world, act, data_folder)
        assert all(result is None or isinstance(result, dict) for result in results), results
        found[world] = {rank: result for rank, result in enumerate(results) if result is not None}
    return found


@pytest.fixture(scope="module")
def alone(data_folder, tiny_detector):
    dataset, G = ImageDataset(data_folder), ToyGenerator(leak=0.3)
    options = {"detector": tiny_detector, "batch_size": 7, "cache": False}
    return {name: compute_metric(name, G, dataset, **options).values for name in METRICS}


@pytest.mark.parametrize("name", METRICS)
def test_one_value_on_1_2_and_3_processes(runs, alone, name):
    expected = alone[name]
    assert max(abs(v) for v in expected.values()) > 0.05
    assert sorted(runs[2]) == [0] and sorted(runs[3]) == [0, 1, 2]  # of two, one leaves without a word
    for ranks in runs.values():
        for results in ranks.values():
            assert results[name] == pytest.approx(expected, rel=1e-6)  # worst seen 7e-15


def test_a_metric_outlasts_the_timeout_of_collectives(runs):
    """Rank 0 sleeps for longer than the timeout before its share; the others wait, and the value is the same."""
    for ranks in runs.values():
        for results in ranks.values():
            assert results["slow"] == pytest.approx(results["fid60_full"], rel=1e-9)


def test_what_fails_on_one_rank_is_raised_on_all(runs):
    for ranks in runs.values():
        for results in ranks.values():
            assert results["refused"] == "the generator's images hold NaN or infinite values"


def test_the_patient_wait_notices_a_lost_rank(runs):
    assert runs[2][0]["noticed_the_loss_after_s"] < 300
