"""Reads published StyleGAN2 discriminators (training/networks/discriminator.py) into our class, and writes them back.

Our modules and parameters carry the published names, so reading is: find the configuration that the shapes tell, then
account for every name, shape and type. Nothing is skipped and nothing is filled in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor

from torch_utils import ops
from training.networks.discriminator import PUBLISHED_CLAMP, Discriminator, DiscriminatorConfig
from training.published.pickle_file import StoredNetwork
from training.published.state_dicts import (
    Shapes,
    check_room,
    check_tensors,
    commonest,
    count_entries,
    lengths,
    shapes_of,
    tensors_of,
)

MAX_RESOLUTION = 2048


class Sized(Protocol):
    """States what the configuration of any discriminator of images tells."""

    @property
    def resolution(self) -> int: ...


AnyConfig = TypeVar("AnyConfig", bound=DiscriminatorConfig)
Judge = TypeVar("Judge", bound=Sized)


def from_published(tensors: Mapping[str, Tensor]) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published state dict, with which it shares memory.

    Raises ValueError that names every unknown or missing tensor, every wrong shape or type, and every resampling filter
    that is not ours.
    """
    config = config_from(shapes_of(tensors))
    _check(config, tensors)
    return config, dict(tensors)


def from_stored(stored: StoredNetwork, tensors: Mapping[str, Tensor]) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    """Does the same for a network of a file, whose modules tell the clamp and the minibatch-std group besides."""
    config, state_dict = from_published(tensors)
    return stated_by(stored, config), state_dict


def stated_by(stored: StoredNetwork, config: AnyConfig) -> AnyConfig:
    """Returns the configuration with the clamp and the minibatch-std group that the modules of a file state."""
    clamp = stored.attribute(f"b{config.resolution}.conv0", "conv_clamp", config.conv_clamp)
    group = stored.attribute("b4.mbstd", "group_size", config.minibatch_std_group)
    if not isinstance(clamp, int | float | None) or not isinstance(group, int):
        raise ValueError("conv_clamp or group_size is not a number")
    clamp = None if clamp is None else float(clamp)
    return dataclasses.replace(config, conv_clamp=clamp, minibatch_std_group=group)


def fitting(found: Judge | None, published: Judge) -> Judge:
    """Returns the discriminator of a file, or the `published` one for its generator's images where the file has none.

    Raises ValueError for one of images of another size.
    """
    if found is not None and found.resolution != published.resolution:
        raise ValueError(f"its G makes {published.resolution} px, its D reads {found.resolution} px")
    return found or published


def to_published(config: DiscriminatorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts `from_published`. Raises ValueError for a network that the published layout cannot hold."""
    check_room(config.to_dict(), dataclasses.replace(config, published_keys=True).to_dict())
    _check(config, state_dict)
    return dict(state_dict)


def _check(config: DiscriminatorConfig, tensors: Mapping[str, Tensor]) -> None:
    check_with_filters(tensors, tensors_of(Discriminator, config))


def check_with_filters(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Checks names, shapes and types, and that every resampling filter is ours. Raises ValueError."""
    filters = {name: ops.fir_filter() for name in expected if name.endswith("resample_filter")}
    check_tensors(tensors, expected, filters)


def config_from(shapes: Shapes) -> DiscriminatorConfig:
    """Returns the configuration that the shapes of a published discriminator tell."""
    resolution, channels = trunk_of(shapes)
    try:
        return DiscriminatorConfig(
            resolution=resolution,
            channels=channels,
            embedding_dim=commonest(lengths(shapes, r"mapping\.\w+\.(?:weight|bias)", 0), "the width of its mapping"),
            mapping_depth=max(count_entries(shapes, r"mapping\.fc(\d+)\.\w+"), 1),
            conv_clamp=PUBLISHED_CLAMP,
        )
    except ValueError as error:
        raise ValueError(f"not a published discriminator: {error}") from None


def trunk_of(shapes: Shapes) -> tuple[int, tuple[int, ...]]:
    """Returns the resolution and the channels of the blocks that the shapes of a published discriminator tell."""
    firsts = (re.fullmatch(r"b(\d{1,4})\.fromrgb\.\w+", name) for name in shapes)
    resolution = commonest([int(m[1]) for m in firsts if m], "its first block (b*.fromrgb)")
    if resolution > MAX_RESOLUTION:
        raise ValueError(f"not a published discriminator: {resolution} px, legal are up to {MAX_RESOLUTION}")
    return resolution, channels_of(shapes, resolution)


def channels_of(shapes: Shapes, resolution: int) -> tuple[int, ...]:
    """Returns the channels of the blocks from `resolution` px down to 4 px."""
    sizes = [resolution >> i for i in range(resolution.bit_length() - 3)]
    channels = [
        commonest(lengths(shapes, rf"b{size}\.conv0\.(?:weight|bias)", 0), f"b{size}.conv0.weight") for size in sizes
    ]
    channels.append(commonest(lengths(shapes, r"b4\.conv\.(?:weight|bias)", 0), "b4.conv.weight"))
    return tuple(channels)
