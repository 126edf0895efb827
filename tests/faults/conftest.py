"""Gives the tests of faults a data set, and one core to the processes that they start."""

import os

import pytest

from training.data.synthetic.synthesize import synthesize_heads


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("faults") / "heads", 16, 32, seed=0, workers=1).images


@pytest.fixture(autouse=True)
def one_core():
    """Processes started here train with one thread each: two that spin on shared cores are many times slower."""
    before = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(before)[worker % len(before)]})
    yield
    os.sched_setaffinity(0, before)
