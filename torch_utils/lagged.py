"""Reads small tensors back to the host without waiting for the device."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor


class LaggedReader:
    """Returns tensors on the CPU, in the order in which they were put, once reading them no longer stalls the device.

    A GPU tensor is copied asynchronously into pinned memory and returned when the next one is put: by then the device
    has more work queued, so that it never idles for the reader. A CPU tensor is returned at once.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Any, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, key: Any, values: Tensor) -> list[tuple[Any, Tensor]]:
        """Takes `values` under `key`; returns the (key, values) that can be read now, oldest first."""
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending.append((key, host, event))
            return self._take(keep=1)
        self._pending.append((key, values, None))
        return self._take(keep=0)

    def flush(self) -> list[tuple[Any, Tensor]]:
        """Returns everything that was put and not returned yet; waits for the device."""
        return self._take(keep=0)

    def _take(self, keep: int) -> list[tuple[Any, Tensor]]:
        ready = []
        while len(self._pending) > keep:
            key, values, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            ready.append((key, values))
        return ready
