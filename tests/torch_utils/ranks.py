"""Runs several ranks inside one test, as forked processes, so that torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from torch_utils import distributed


def run_ranks(count: int, act: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0) -> list[Any]:
    """Calls `act(rank, *arguments)` in `count` gloo ranks and returns per rank its result or the exception it raised.

    The entry is None if the rank ended without either or did not end within `timeout_s`.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(count):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(rank, count, store.port, theirs, act, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    results, deadline = [], time.monotonic() + timeout_s
    for pipe, process in zip(pipes, processes, strict=True):
        try:
            results.append(pipe.recv() if pipe.poll(max(0.0, deadline - time.monotonic())) else None)
        except EOFError:
            results.append(None)
        process.kill()
        process.join()
    return results


def _rank(rank: int, count: int, port: int, pipe: Any, act: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    try:
        distributed.initialise("cpu")
        result = act(rank, *arguments)
    except Exception as error:  # handed to the test
        result = error
    pipe.send(result)
    pipe.close()
    os._exit(0)  # no teardown of what pytest set up
