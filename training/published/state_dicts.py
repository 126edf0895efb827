"""Accounts for published state dicts: what shapes tell of a network, and every name, shape, type and constant."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

CONSTANT_TOLERANCE = 1e-5  # absolute; published files hold constants in float32
LONGEST_LIST = 8  # names in a message

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes by name. Raises ValueError for what is no tensor."""
    if others := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"not a tensor: {listed(others)}")
    return {name: tuple(value.shape) for name, value in tensors.items()}


def lengths(shapes: Shapes, pattern: str, axis: int) -> list[int]:
    """Returns one length of every tensor whose name fits the pattern."""
    return [shape[axis] for name, shape in shapes.items() if re.fullmatch(pattern, name) and len(shape) > axis]


def commonest(values: Iterable[int], what: str) -> int:
    """Returns the commonest value, so that one wrong tensor is called wrong and not all others.

    Raises ValueError with `what` if there are no values.
    """
    counted = Counter(values)
    if not counted:
        raise ValueError(f"missing or of a wrong shape: {what}")
    return counted.most_common(1)[0][0]


def count_entries(names: Iterable[str], pattern: str) -> int:
    """Counts the entries of a numbered list, of which the pattern's first group is the number.

    Lists that differ in nothing but that number should be equally long: the commonest length, else the largest.
    """
    entries: dict[str, set[str]] = {}
    for name in names:
        if found := re.fullmatch(pattern, name):
            rest = name[: found.start(1)] + "#" + name[found.end(1) :]
            entries.setdefault(rest, set()).add(found[1])
    counted = Counter(len(numbers) for numbers in entries.values())
    return max(counted, key=lambda length: (counted[length], length), default=0)


@functools.lru_cache(maxsize=32)
def tensors_of(network: Callable[[Any], nn.Module], config: Any) -> dict[str, Tensor]:
    """Returns the state dict of network(config): names, shapes and types, without memory for the numbers."""
    with torch.device("meta"):
        return network(config).state_dict()


def converted(
    networks: Mapping[str, Mapping[str, Tensor]],  # state dicts by name
    generator: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    discriminator: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> dict[str, dict[str, Tensor]]:
    """Converts "D" by `discriminator` and all others by `generator`; a ValueError begins with the network's name."""
    content = {}
    for name, state_dict in networks.items():
        try:
            content[name] = discriminator(state_dict) if name == "D" else generator(state_dict)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return content


def check_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],  # shapes and types; the numbers are not read
    constants: Mapping[str, Tensor],  # what tensors must hold that no training changes
) -> None:
    """Raises ValueError that names every unknown or missing tensor, wrong shape, wrong type and wrong constant."""
    found: list[str] = []
    if unknown := sorted(set(tensors) - set(expected)):
        found.append(f"unknown: {listed(unknown)}")
    if missing := sorted(set(expected) - set(tensors)):
        found.append(f"missing: {listed(missing)}")
    both = [(name, tensors[name], expected[name]) for name in expected if name in tensors]
    if shapes := [f"{name} {list(a.shape)} for {list(b.shape)}" for name, a, b in both if a.shape != b.shape]:
        found.append(f"wrong shape: {listed(shapes)}")
    if types := [f"{name} {a.dtype} for {b.dtype}" for name, a, b in both if a.dtype != b.dtype]:
        found.append(f"wrong type: {listed(types)}")
    if not found and (wrong := _wrong_constants(tensors, constants)):
        found.append(f"wrong constant: {listed(wrong)}")
    if found:
        raise ValueError("; ".join(found))


def _wrong_constants(tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> list[str]:
    wrong = []
    for name, value in constants.items():
        error = (tensors[name].double() - value.double()).abs().max().item()
        if not error <= CONSTANT_TOLERANCE:  # NaN too
            wrong.append(f"{name} is off by {error:.3g}")
    return wrong


def check_room(ours: Mapping[str, Any], legal: Mapping[str, Any]) -> None:
    """Raises ValueError that names the values of a configuration that differ from what a published layout can hold."""
    if differences := [f"{name} = {ours[name]} (legal: {legal[name]})" for name in ours if ours[name] != legal[name]]:
        raise ValueError(f"the published layout has no room for {'; '.join(differences)}")


def listed(names: list[str]) -> str:
    """Joins the first names for a message and counts the others."""
    more = f" and {len(names) - LONGEST_LIST} more" if len(names) > LONGEST_LIST else ""
    return ", ".join(names[:LONGEST_LIST]) + more
