"""Draws counter-based random numbers: each is a function of (seed, stream name, global sample index).

Nothing here has a state. Sample i gets the same latent, flip, camera and background in any process, on any rank, in any
micro-batch and after any resume. The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"), vectorised in NumPy over all samples at once; it always runs on the CPU, so that devices agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from torch_utils.transfer import to_device

Indices = Sequence[int] | np.ndarray | range

_MASK = np.uint64(0xFFFFFFFF)
_MUL = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))  # round multipliers of Philox4x32
_WEYL = (0x9E3779B9, 0xBB67AE85)  # key increments
_ROUNDS = 10


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Applies Philox4x32-10 to `counter` [..., 4] with a key of two 32-bit words: uint64 [..., 4], each < 2^32."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) & _MASK for i in range(4))
    for i in range(_ROUNDS):
        k0, k1 = (np.uint64((key[j] + i * _WEYL[j]) & 0xFFFFFFFF) for j in range(2))
        p0, p1 = _MUL[0] * c0, _MUL[1] * c2
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & _MASK, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1)


def _words(seed: int, stream: str, indices: Indices, count: int) -> np.ndarray:
    """Draws `count` 32-bit words per index: uint64 [len(indices), count]. The key hashes seed and stream name."""
    digest = hashlib.blake2b(f"{int(seed)}/{stream}".encode(), digest_size=8).digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
    index = np.asarray(indices, dtype=np.uint64)  # [S]
    blocks = np.arange(-(-count // 4), dtype=np.uint64)  # four words a block
    counter = np.zeros((len(index), len(blocks), 4), dtype=np.uint64)
    counter[..., 0] = blocks
    counter[..., 2] = (index & _MASK)[:, None]
    counter[..., 3] = (index >> np.uint64(32))[:, None]
    return philox(counter, key).reshape(len(index), -1)[:, :count]


def uniform(seed: int, stream: str, indices: Indices, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws uniform numbers in [0, 1) with 24 bits: float32 [len(indices), *shape]."""
    words = _words(seed, stream, indices, prod(shape))
    values = (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
    return torch.from_numpy(values.reshape(len(words), *shape))


def normal(seed: int, stream: str, indices: Indices, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws standard normal numbers (Box and Muller's method in float64): float32 [len(indices), *shape]."""
    count = prod(shape)
    words = _words(seed, stream, indices, 2 * count).reshape(-1, count, 2)
    u = (words.astype(np.float64) + 0.5) * 2.0**-32  # in (0, 1): the logarithm is finite
    values = np.sqrt(-2.0 * np.log(u[..., 0])) * np.cos(2.0 * np.pi * u[..., 1])
    return torch.from_numpy(values.astype(np.float32).reshape(len(words), *shape))


def integers(seed: int, stream: str, indices: Indices, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws integers in [0, high), high < 2^32: int64 [len(indices), *shape]. The bias is under high / 2^32."""
    if not 0 < high < 2**32:
        raise ValueError(f"integers: high must be in 1 to 2^32 - 1, got {high}")
    words = _words(seed, stream, indices, prod(shape))
    values = (words * np.uint64(high)) >> np.uint64(32)
    return torch.from_numpy(values.astype(np.int64).reshape(len(words), *shape))


def permutation(seed: int, stream: str, epoch: int, n: int) -> np.ndarray:
    """Returns the order of `n` items in one epoch: int64 [n], by sorting 64-bit keys (equal on every NumPy version)."""
    words = _words(seed, f"{stream}/epoch{int(epoch)}", range(n), 2)
    return np.argsort((words[:, 0] << np.uint64(32)) | words[:, 1], kind="stable").astype(np.int64)


class EpochOrder:
    """Maps a global sample index to a data item: every epoch is a fresh permutation of `n` items."""

    def __init__(self, seed: int, stream: str, n: int):
        if n <= 0:
            raise ValueError(f"EpochOrder: needs at least one item, got n={n}")
        self.seed, self.stream, self.n = seed, stream, n
        self._epochs: dict[int, np.ndarray] = {}  # a cache of the last two epochs, no state

    def __call__(self, indices: Indices) -> np.ndarray:
        """Returns the items of the samples `indices`: int64 [len(indices)]."""
        index = np.asarray(indices, dtype=np.int64)
        items = np.empty_like(index)
        for epoch in np.unique(index // self.n):
            chosen = index // self.n == epoch
            items[chosen] = self._order(int(epoch))[index[chosen] % self.n]
        return items

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = permutation(self.seed, self.stream, epoch, self.n)
        return self._epochs[epoch]


@dataclass(frozen=True)
class Draws:
    """Draws random numbers for a fixed set of samples, each a function of (seed, stream, sample) alone."""

    seed: int
    indices: Indices  # global sample indices
    device: torch.device | str = "cpu"  # where the results are put; they are drawn on the CPU

    def normal(self, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Returns standard normal numbers, float32 [len(indices), *shape]."""
        return to_device(normal(self.seed, stream, self.indices, shape), self.device)

    def uniform(self, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Returns numbers in [0, 1), float32 [len(indices), *shape]."""
        return to_device(uniform(self.seed, stream, self.indices, shape), self.device)

    def integers(self, stream: str, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Returns integers in [0, high), int64 [len(indices), *shape]."""
        return to_device(integers(self.seed, stream, self.indices, high, shape), self.device)


# ---------------------------------------------------------------- many numbers a sample, where the keys are


def hashed_uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draws uniform numbers in [0, 1) with 24 bits, float32 [B, *shape], each a function of key and place in shape.

    keys: int64 [B], 0 to 2^31 - 1, from `Draws.integers`. For rays and pixels, of which a sample has too many to be
    drawn on the CPU. Two rounds of MurmurHash3's finaliser (Appleby) in int32, whose products wrap. Devices agree.
    """
    bits = _hashed(keys, prod(shape)) >> 8 & 0xFFFFFF
    return (bits.float() * 2.0**-24).view(-1, *shape)


def hashed_normal(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draws standard normal numbers, float32 [B, *shape], like `hashed_uniform`, by Box and Muller's method.

    Devices agree but for the rounding of logarithm and cosine. The largest values are 5.9.
    """
    count = prod(shape)
    half = -(-count // 2)
    bits = (_hashed(keys, 2 * half) >> 8 & 0xFFFFFF).float()
    radius = (-2 * ((bits[:, :half] + 0.5) * 2.0**-24).log()).sqrt()
    angle = bits[:, half:] * (2.0 * np.pi * 2.0**-24)
    values = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return values[:, :count].reshape(-1, *shape)


def _hashed(keys: Tensor, count: int) -> Tensor:
    """Returns 32 random bits, int32 [B, count], for each key and each number below `count`."""
    key = _mixed(keys.to(torch.int32))[:, None]
    place = torch.arange(count, dtype=torch.int32, device=keys.device) * _signed(0x9E3779B1)
    return _mixed(_mixed(place ^ key) + key)


def _mixed(x: Tensor) -> Tensor:
    """Mixes int32 numbers so that every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 16 & 0xFFFF)) * _signed(0x85EBCA6B)
    x = (x ^ (x >> 13 & 0x7FFFF)) * _signed(0xC2B2AE35)
    return x ^ (x >> 16 & 0xFFFF)


def _signed(word: int) -> int:
    """Returns the int32 with the bits of a 32-bit word."""
    return word - (word >> 31 << 32)
