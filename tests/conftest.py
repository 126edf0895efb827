"""What several test modules share: one thread per process, a geometry, a checkpoint of an untrained generator."""

import os

import pytest
import torch

from gaussian import Cameras, Geometry
from tests.slow import SLOW
from torch_utils import random


def pytest_configure(config):
    """Gives each worker a core of its own: runs in two processes that each take all cores wait for one another's
    threads, and take several times as long.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.startswith(tuple(SLOW)):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread():
    """Scripts set the thread count and the float mode of their process; a test must not inherit them."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    """FFHQ-like, with the pivot a little in front of the centre."""
    intrinsics = ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0))
    return Geometry(pivot=(0.0, 0.0, 0.2), centre=(0.0, 0.0, 0.0), radius=2.7, intrinsics=intrinsics)


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory, geometry):
    """A whole checkpoint of the 32 px member as it is before the first step, w_avg apart, so that truncation acts."""
    # Imported here so that the tests of gaussian/ need no training/.
    from tests.training.gan import awaken
    from training import presets
    from training.checkpoint import save_checkpoint
    from training.families.cgs.generator import Generator
    from training.networks.discriminator import Discriminator

    torch.manual_seed(0)
    config = presets.resolve("micro", data="unused")
    G, D = Generator(config.generator), Discriminator(config.discriminator)
    awaken(G, std=0.5)
    with torch.no_grad():
        G.update_average(G.mapping(torch.randn(64, G.z_dim)).mean(0), batch=10**6)
    yaws = torch.linspace(-0.6, 0.5, 5)
    path = tmp_path_factory.mktemp("checkpoint") / "network-snapshot-000000.pkl"
    save_checkpoint(
        path,
        {
            "config": config.to_dict(),
            "geometry": geometry.to_dict(),
            "progress": {"nimg": 0, "step": 0, "tick": 0},
            "G": G.state_dict(),
            "D": D.state_dict(),
            "G_ema": G.state_dict(),
            "opt": {"G": {}, "D": {}},
            "grid": {"z": random.normal(0, "grid/z", range(4), (G.z_dim,)), "labels": geometry.orbit(yaws).labels},
            "best": {},
        },
    )
    return path


@pytest.fixture(scope="session")
def orbit_cameras(geometry) -> Cameras:
    """Twelve cameras [12] on a level circle."""
    return geometry.orbit(torch.arange(12) * (torch.pi / 6))
