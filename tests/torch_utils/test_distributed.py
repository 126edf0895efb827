"""Tests ranks that differ, die or hang: each ends with a line that names it, and none goes on without another."""

import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch

from tests.torch_utils.ranks import run_ranks
from torch_utils import distributed
from training.checkpoint import save_checkpoint

HOST = socket.gethostname()
CPU = torch.device("cpu")


def test_equal_ranks_pass_the_self_test():
    assert run_ranks(2, lambda rank: distributed.self_test({"code": "a", "data": "b"}, CPU)) == [None, None]

    def act(rank):
        distributed.self_test({"code": "a"}, CPU)
        return float(distributed.all_reduce_sum(torch.tensor(rank + 1.0)))

    assert run_ranks(2, act) == [3.0, 3.0]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            ({"code": "a", "seed": "0"}, {"code": "b", "seed": "0"}),
            f"rank 1 on {HOST} has code b, rank 0 on {HOST} has a",
        ),
        (({"seed": "0"}, {}), f"rank 1 on {HOST} has seed none, rank 0 on {HOST} has 0"),
    ],
)
def test_ranks_that_differ_are_named(fields, line):
    for error in run_ranks(2, lambda rank: distributed.self_test(fields[rank], CPU)):
        assert isinstance(error, ValueError) and line in str(error), error


def test_nccl_is_told_its_device(monkeypatch):
    """The calls of a rank on the second of two GPUs."""
    told = []
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(distributed.LAUNCH_DIR, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *a, **k: told.append((a, k["device_id"])))
    monkeypatch.setattr(torch.distributed, "new_group", lambda **k: told.append(k["backend"]))
    assert distributed.initialise("auto") == torch.device("cuda", 1)
    assert told == [(("nccl",), torch.device("cuda", 1)), "gloo"]


@pytest.mark.parametrize("own", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_gpu_memory_grows_in_place_unless_the_user_has_set_it(monkeypatch, own):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    distributed.initialise("cpu")
    expected = {own: "max_split_size_mb:64"} if own else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")} == expected
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)


def test_a_rank_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "_START_TIMEOUT", timedelta(seconds=2))

    def act(rank):
        if rank == 1:
            time.sleep(900)
        distributed.self_test({}, CPU)

    start = time.monotonic()
    error, _ = run_ranks(2, act, awaited=[0])
    assert isinstance(error, distributed.RankLost) and "self-test failed" in str(error), error
    assert time.monotonic() - start < 600


@pytest.mark.parametrize("way", ["killed", "hangs"])
def test_a_lost_rank_ends_the_other_and_no_checkpoint_follows(monkeypatch, tmp_path, way):
    """Killed: noticed at once. Hanging: after the collective's timeout, 5 s here, by which no rank may lag before."""
    monkeypatch.setattr(distributed, "_TIMEOUT", timedelta(seconds=600 if way == "killed" else 5))

    def act(rank):
        parameter = torch.nn.Parameter(torch.zeros(3))
        for step in range(4):
            parameter.grad = torch.ones(3)
            if rank == 1 and step == 2:
                os.kill(os.getpid(), signal.SIGKILL if way == "killed" else signal.SIGSTOP)
            start = time.monotonic()
            try:
                distributed.all_reduce_gradients([parameter], torch.zeros(1))
            except distributed.RankLost as error:
                seconds = time.monotonic() - start
                with pytest.raises(distributed.RankLost):
                    save_checkpoint(tmp_path / "network-snapshot-000000.pkl", {})
                with pytest.raises(distributed.RankLost):
                    distributed.barrier()
                return step, seconds, str(error)
        return None

    (step, seconds, line), _ = run_ranks(2, act, awaited=[0])
    assert step == 2 and seconds < 300
    assert line.startswith(f"rank 0 of 2 on {HOST}: the sum of the gradients failed, another rank has ended or hangs")
    assert "\n" not in line and not list(tmp_path.iterdir())
