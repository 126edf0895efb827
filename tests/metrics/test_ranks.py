"""Tests metrics on 1, 2 and 3 gloo processes: one value, shared failures, and no timeout for what takes long."""

import json
import os
import socket
import subprocess
import sys

import pytest

from dnnlib import ROOT
from metrics import compute_metric
from tests.metrics.rank import METRICS
from tests.metrics.toys import ToyGenerator
from training.dataset import ImageDataset


def start_ranks(world, data, out):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "tests.metrics.rank", str(data), str(out)]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **{k: str(v) for k, v in common.items()}, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def runs(data_folder, tmp_path_factory):
    """Runs both worlds at once: {world size: {rank: results}}. They fill one cache folder together."""
    out = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLATGAN_CACHE_DIR", str(out / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        processes = [process for world in (2, 3) for process in start_ranks(world, data_folder, out)]
        for process in processes:
            assert process.wait(120) == 0, process.stderr.read()
    found = {}
    for path in out.glob("*.json"):
        world, rank = map(int, path.stem.split("-"))
        found.setdefault(world, {})[rank] = json.loads(path.read_text())
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
    assert sorted(runs) == [2, 3] and sorted(runs[3]) == [0, 1, 2]
    for ranks in runs.values():
        for results in ranks.values():
            assert results[name] == pytest.approx(expected, rel=1e-6)  # worst seen 7e-15


def test_a_metric_outlasts_the_timeout_of_collectives(runs):
    """Rank 0 sleeps 4 s before its share, twice the timeout; the others wait, and the value is the same."""
    for ranks in runs.values():
        for results in ranks.values():
            assert results["slow"] == pytest.approx(results["fid60_full"], rel=1e-9)


def test_what_fails_on_one_rank_is_raised_on_all(runs):
    for ranks in runs.values():
        for results in ranks.values():
            assert results["refused"] == "the generator's images hold NaN or infinite values"


def test_the_patient_wait_notices_a_lost_rank(runs):
    assert runs[2][0]["noticed_the_loss_after_s"] < 60
