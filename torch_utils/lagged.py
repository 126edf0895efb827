"""Small tensors on their way to the host without a wait: at once from a CPU, one put later from a GPU."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor


class LaggedReader:
    """Hands out what was put in, in order and on the CPU, when reading it no longer holds up the device.

    From a GPU a tensor is copied asynchronously into pinned memory and handed out after the next one was put: by then
    the device has long been given more work, so that it never idles for the reader.
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
        """Everything that was put and not handed out yet; waits for the device."""
        return self._take(keep=0)

    def _take(self, keep: int) -> list[tuple[Any, Tensor]]:
        ready = []
        while len(self._pending) > keep:
            key, values, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            ready.append((key, values))
        return ready
