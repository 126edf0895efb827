"""Brings tensors to a device without a wait: one page-locked buffer and one copy a type, on a stream of its own."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

_ALIGNMENT = 64  # numbers: each tensor of a buffer starts at a multiple, as kernels read 16 bytes at a time

_streams: dict[torch.device, torch.cuda.Stream] = {}  # that copy, one a device


class Transfer:
    """Carries named tensors to a device. Made in any thread, sent early, taken where they are needed.

    For a GPU the tensors of a type are packed into one page-locked buffer when the transfer is made; `send` starts one
    asynchronous copy of each buffer beside the work that is queued, and `take` lets the current stream, not the host,
    wait for it. On a CPU the tensors themselves are handed over.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device):
        self.device = device
        self._tensors = dict(tensors)  # on a CPU, or once they have arrived
        self._places: dict[str, tuple[torch.dtype, int, torch.Size]] = {}  # of the others: type, first number, shape
        self._buffers: dict[torch.dtype, Tensor] = {}  # on the host, then on the device
        self._arrived: torch.cuda.Event | None = None
        self._sent = device.type == "cpu"
        if not self._sent:
            self._pack()

    def send(self) -> None:
        """Starts the copies; does nothing where they have been started."""
        if self._sent:
            return
        self._sent = True
        if self.device.type == "cuda":
            stream = _stream(self.device)
            with torch.cuda.stream(stream):
                self._copy()
            self._arrived = stream.record_event()
        else:
            self._copy()

    def take(self) -> dict[str, Tensor]:
        """Returns the tensors on the device, by name. Work that the current stream is given from now on may use them.

        Tensors of a type share memory. The host does not wait.
        """
        self.send()
        if self._arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(self._arrived)
            for buffer in self._buffers.values():  # from the copying stream's memory: not to be reused before `current`
                buffer.record_stream(current)
            self._arrived = None
        for name, (dtype, start, shape) in self._places.items():
            self._tensors[name] = self._buffers[dtype][start : start + prod(shape)].view(shape)
        return self._tensors

    def _copy(self) -> None:
        # The host's buffers go back to PyTorch's cache of page-locked memory, which keeps them until they are copied.
        self._buffers = {dtype: buffer.to(self.device, non_blocking=True) for dtype, buffer in self._buffers.items()}

    def _pack(self) -> None:
        sizes: dict[torch.dtype, int] = {}
        for name, tensor in self._tensors.items():
            start = sizes.get(tensor.dtype, 0)
            self._places[name] = (tensor.dtype, start, tensor.shape)
            sizes[tensor.dtype] = start + -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT
        for dtype, size in sizes.items():
            self._buffers[dtype] = torch.empty(size, dtype=dtype, pin_memory=self.device.type == "cuda")
        for name, (dtype, start, shape) in self._places.items():
            self._buffers[dtype][start : start + prod(shape)].view(shape).copy_(self._tensors[name])
        self._tensors = {}


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns a tensor of the CPU on a device; on a GPU the copy is asynchronous, from page-locked memory."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]
