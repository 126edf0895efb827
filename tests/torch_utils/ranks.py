"""Runs several ranks inside one test, as forked processes, so that torch is imported once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Collection
from typing import Any

import torch

from torch_utils import distributed

PATIENCE = 900.0  # seconds that ranks get, on however slow a machine; a hang is the alternative


def run_ranks(
    count: int, act: Callable[..., Any], *arguments: Any, awaited: Collection[int] | None = None
) -> list[Any]:
    """Calls `act(rank, *arguments)` in `count` gloo ranks and returns per rank its result or the exception it raised.

    The entry is None if the rank ended without either, or not within PATIENCE.

    awaited: the ranks that are waited for, by default all; the others are killed then.
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
    results: list[Any] = [None] * count
    deadline = time.monotonic() + PATIENCE
    for rank in range(count) if awaited is None else awaited:
        with contextlib.suppress(EOFError):
            results[rank] = pipes[rank].recv() if pipes[rank].poll(max(0.0, deadline - time.monotonic())) else None
    for process in processes:
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
