"""Computes sums whose rounding does not depend on how many processes share the work."""

from __future__ import annotations

import torch
from torch import Tensor


class PairwiseSum:
    """Sums a sequence of tensor lists in the order of a binary tree.

    Each half of 2^n terms is summed on its own: two processes that sum a half each and then add their results get the
    same floats as one that sums all. Stores log2(terms) + 1 lists at most.
    """

    def __init__(self) -> None:
        self._partial: list[tuple[int, list[Tensor]]] = []  # (number of terms, their sum), largest first

    def __bool__(self) -> bool:
        """Tells whether there is a term."""
        return bool(self._partial)

    def add(self, term: list[Tensor]) -> None:
        """Adds a term, and may change its tensors later. All terms have equally many tensors of equal shapes."""
        count = 1
        while self._partial and self._partial[-1][0] == count:
            term = self._merged(term)
            count *= 2
        self._partial.append((count, term))

    def total(self) -> list[Tensor]:
        """Returns the sum of all terms since the last call, of which there must be one, and resets it."""
        _, total = self._partial.pop()
        while self._partial:
            total = self._merged(total)
        return total

    def _merged(self, later: list[Tensor]) -> list[Tensor]:
        _, earlier = self._partial.pop()
        torch._foreach_add_(earlier, later)
        return earlier
