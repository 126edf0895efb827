"""Numbers that the golden files of all families were made with: a hash of (element, tensor), equal on every machine."""

import math

import numpy as np
import torch
from torch import Tensor


def _hash(shape: torch.Size | tuple[int, ...], tensor_id: int) -> np.ndarray:
    t = np.arange(1, math.prod(shape) + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
    t += np.uint32((tensor_id + 1) * 0x85EBCA77 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        t ^= t >> np.uint32(shift)
        t *= np.uint32(factor)
    t ^= t >> np.uint32(16)
    return t


def noise(shape: torch.Size | tuple[int, ...], tensor_id: int) -> Tensor:
    """Uniform values of variance 1 from an integer hash of (element, tensor_id)."""
    values = (_hash(shape, tensor_id).astype(np.float64) * 2.0**-31 - 1) * math.sqrt(3)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def uniform(shape: torch.Size | tuple[int, ...], tensor_id: int) -> Tensor:
    """Uniform values in 0..1, below 1, from the same hash."""
    values = np.minimum(_hash(shape, tensor_id).astype(np.float64) * 2.0**-32, 1 - 2.0**-24)
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)
