"""Gives the tests of faults a data set, a run of two ranks, and one core to the processes that they start."""

import pytest

from benchmarks.soak import Run
from tests.faults.runs import FLAGS, RUN, one_core
from training.data.synthetic.synthesize import synthesize_heads


@pytest.fixture(scope="package", autouse=True)
def pinned():
    with one_core():
        yield


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("faults") / "heads", 16, 32, seed=0, workers=1).images


@pytest.fixture(scope="package")
def two_ranks(data, pinned, tmp_path_factory):
    """The run by --gpus=2, undisturbed; not to be changed."""
    run = Run(data, tmp_path_factory.mktemp("two") / "whole", **RUN, flags=(*FLAGS, "--gpus=2"))
    run.finish()
    return run
