"""Reads published GSGAN checkpoints into our classes, and writes them back.

Our modules and parameters carry the published names, so reading is: find the configuration that the shapes tell, then
account for every name, shape and type. Nothing is skipped and nothing is filled in. What shapes do not tell, the size
of the images and whose cameras were learnt, stands in plain attributes of the stored network.

Published networks are read with `PUBLISHED_CONVENTIONS`: they learnt under these cameras and this rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from training.families.base import PublishedFormat, PublishedRun
from training.families.gsgan import presets
from training.families.gsgan.config import PUBLISHED_CONVENTIONS, GeneratorConfig, published_constants
from training.families.gsgan.discriminator import PUBLISHED_RESOLUTIONS, Discriminator, DiscriminatorConfig
from training.families.gsgan.generator import Generator
from training.networks.discriminator import PUBLISHED_CLAMP, channel_counts
from training.published import discriminator as published_discriminator
from training.published import eg3d
from training.published.pickle_file import StoredFile, StoredNetwork
from training.published.state_dicts import (
    Shapes,
    check_room,
    check_tensors,
    commonest,
    converted,
    count_entries,
    lengths,
    shapes_of,
    tensors_of,
)

PIVOTS = {"ffhq": (0.0, 0.0, 0.2), "afhq": (0.0, 0.0, -0.06)}  # what frontal cameras look at, world units
YAW = 0.35  # radians to either side, as far as the published film turns
NUM_HEADS, NEIGHBOURS = 8, 16  # of the published code, at every size
MAX_LEVELS = 8
MAX_RESOLUTION = 2048
_LEVELS = "point_gen.blocks."  # CGS-GAN, whose other names are alike, has point_gen.transformer.


# ---------------------------------------------------------------- state dicts


def from_published(
    tensors: Mapping[str, Tensor], resolution: int | None = None, pose_conditioned: bool = True
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published generator's state dict, with which it shares memory.

    resolution: pixels of its images; None: the published one for so many levels.
    Raises ValueError that names every unknown or missing tensor, every wrong shape or type, and every constant that
    does not fit the sizes.
    """
    config = config_from(shapes_of(tensors), resolution, pose_conditioned)
    check_tensors(tensors, tensors_of(Generator, config), published_constants(config))
    return config, dict(tensors)


def config_from(shapes: Shapes, resolution: int | None = None, pose_conditioned: bool = True) -> GeneratorConfig:
    """Returns the configuration that the shapes of a published generator tell."""
    levels = count_entries(shapes, r"point_gen\.out_layers\.\w+\.block_(\d{1,5})\.[01]\.\w+")
    if not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"not a published generator: it has heads for {levels} levels, legal are 2 to {MAX_LEVELS}")
    names = [4 << i for i in range(levels)]
    widths = tuple(
        commonest(lengths(shapes, rf"point_gen\.out_layers\.\w+\.block_{name}\.0\.weight", 1), f"width of level {name}")
        for name in names
    )
    w_dim = commonest(lengths(shapes, r"mapping_network\.fc\d+\.(?:weight|bias)", 0), "the width of w")
    latent = commonest(lengths(shapes, r"mapping_network\.fc0\.weight", 1), "mapping_network.fc0.weight")
    blocks = count_entries(shapes, r"point_gen\.blocks\.block_4\.0\.resblocks\.(\d+)\..*")
    if not blocks or latent <= w_dim:
        raise ValueError(f"not a published generator: {blocks} transformer blocks, a latent of {latent - w_dim}")
    try:
        return GeneratorConfig(
            resolution=resolution or 4 * names[-1],
            z_dim=latent - w_dim,
            w_dim=w_dim,
            num_points=commonest(lengths(shapes, "_xyz", 0), "_xyz"),
            widths=widths,
            blocks=blocks,
            num_heads=NUM_HEADS,
            neighbours=NEIGHBOURS,
            map_depth=count_entries(shapes, r"mapping_network\.fc(\d+)\.\w+"),
            pose_conditioned=pose_conditioned,
            view_features=commonest(lengths(shapes, r"point_gen\.encoder_camera_cond\.\w+", 0), "encoder_camera_cond"),
            background_points=commonest(lengths(shapes, "_xyz_bg", 0), "_xyz_bg"),
            background_width=commonest(lengths(shapes, r"point_gen_bg\.conv_in\..*", 0), "point_gen_bg.conv_in"),
            conventions=PUBLISHED_CONVENTIONS,
        )
    except ValueError as error:
        raise ValueError(f"not a published generator: {error}") from None


def to_published(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the published state dict of one of our generators, sharing memory with ours; inverts `from_published`.

    Raises ValueError for a network that the published layout cannot hold, and as `from_published` does for its tensors.
    """
    legal = dataclasses.replace(
        config,
        num_heads=NUM_HEADS,
        neighbours=NEIGHBOURS,
        background_points=config.background_points or 2000,
        point_encoding="fourier+table",
        color_rule="published",
        start="published",
        published_keys=True,
    )
    check_room(config.to_dict(), legal.to_dict())
    check_tensors(state_dict, tensors_of(Generator, config), published_constants(config))
    return dict(state_dict)


def discriminator_from_published(tensors: Mapping[str, Tensor]) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published discriminator, as `from_published` does."""
    shapes = shapes_of(tensors)
    resolution, channels = published_discriminator.trunk_of(shapes)
    branch = r"aux_branch_(?:feat|camera)"
    try:
        config = DiscriminatorConfig(
            resolution,
            channels,
            conv_clamp=PUBLISHED_CLAMP,
            pose_width=commonest(lengths(shapes, rf"{branch}\.0\.(?:weight|bias)", 0), "aux_branch_feat.0.weight"),
            pose_features=commonest(lengths(shapes, rf"{branch}\.1\.(?:weight|bias)", 0), "aux_branch_feat.1.weight"),
        )
    except ValueError as error:
        raise ValueError(f"not a published discriminator: {error}") from None
    published_discriminator.check_with_filters(tensors, tensors_of(Discriminator, config))
    return config, dict(tensors)


def discriminator_to_published(config: DiscriminatorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts `discriminator_from_published`. Raises ValueError for a network that the layout cannot hold."""
    check_room(config.to_dict(), dataclasses.replace(config, published_keys=True).to_dict())
    published_discriminator.check_with_filters(state_dict, tensors_of(Discriminator, config))
    return dict(state_dict)


# ---------------------------------------------------------------- files


class GsganPublished(PublishedFormat):
    """Describes the files that the published GSGAN code writes. They hold no state of an optimiser."""

    looks_for = f"G_ema with tensors {_LEVELS}*"
    records = frozenset({"G", "D", "G_ema", "training_set_kwargs", "augment_pipe"})
    classes = frozenset({"training.gaussian3d_splatting.renderer.Renderer"})

    def recognises(self, file: StoredFile) -> bool:
        """Looks for the levels of points in G_ema."""
        network = file.network("G_ema")
        return network is not None and any(name.startswith(_LEVELS) for name in network.tensors)

    def generator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]
    ) -> tuple[GeneratorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict; attributes tell the size of the images."""
        resolution = stored.attribute("", "img_resolution", None)
        if resolution is not None and not (type(resolution) is int and 32 <= resolution <= MAX_RESOLUTION):
            raise ValueError(f"img_resolution is {ascii(resolution)[:40]}; legal are 32 to {MAX_RESOLUTION}")
        kwargs = _rendering_kwargs(stored)
        if kwargs.get("c_scale", 1) != 1:
            raise ValueError(f"c_scale is {ascii(kwargs['c_scale'])[:40]}; cameras are told as they are, legal is 1")
        told = kwargs.get("c_gen_conditioning_zero", False) is not True
        config, state_dict = from_published(tensors, resolution, told)
        if any(stored.attribute(path, "num_ws", config.num_ws) != config.num_ws for path in ("", "mapping_network")):
            raise ValueError(f"num_ws of another network; legal is {config.num_ws}")
        return config, state_dict

    def discriminator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor]
    ) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict; the modules tell the clamp and the minibatch-std group."""
        config, state_dict = discriminator_from_published(tensors)
        return published_discriminator.stated_by(stored, config), state_dict

    def run(
        self, file: StoredFile, generator: GeneratorConfig, discriminator: DiscriminatorConfig | None
    ) -> PublishedRun:
        """Returns the published settings of the data whose pivot the file has; FFHQ's where it has none."""
        size = generator.resolution
        default = DiscriminatorConfig(size, channel_counts(size), conv_clamp=PUBLISHED_CLAMP)
        network = file.network("G_ema")
        assert network is not None  # the file was recognised by it
        data = data_of(_rendering_kwargs(network).get("avg_camera_pivot"))
        known = size in PUBLISHED_RESOLUTIONS
        return PublishedRun(
            preset=f"gsgan-{data}{size}" if known else "published",
            discriminator=published_discriminator.fitting(discriminator, default),
            objective=presets.objective(data),
            geometry=eg3d.geometry(PIVOTS[data]),
            yaw_limit=YAW,
            fields=presets.run_fields(size if known else 512),
        )

    def to_published(
        self,
        generator: GeneratorConfig,
        discriminator: DiscriminatorConfig,
        networks: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Any]:
        """Returns `resolution`, `conventions` and the state dicts. The published code knows but its own conventions."""
        written = converted(
            networks, partial(to_published, generator), partial(discriminator_to_published, discriminator)
        )
        return {"resolution": generator.resolution, "conventions": generator.conventions.to_dict(), **written}


def _rendering_kwargs(stored: StoredNetwork) -> dict[str, Any]:
    kwargs = stored.attribute("", "rendering_kwargs", {})
    return kwargs if isinstance(kwargs, dict) else {}


def data_of(pivot: Any) -> str:
    """Returns whose pivot it is, "ffhq" or "afhq"; "ffhq" for none. Raises ValueError for one of other data."""
    if pivot is None:
        return "ffhq"
    numbers = pivot if isinstance(pivot, list | tuple) else ()
    if all(isinstance(number, int | float) for number in numbers):
        for name, known in PIVOTS.items():
            if len(numbers) == 3 and all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(numbers, known, strict=True)):
                return name
    raise ValueError(f"avg_camera_pivot is {ascii(pivot)[:60]}; known are {PIVOTS}")


PUBLISHED = GsganPublished()
