"""Reads published GGHead checkpoints into our classes, and writes them back.

Our modules and parameters carry the published names, so reading is: find the configuration that the shapes and the
file's own settings tell, then account for every name, shape and type. The anchors come with the file: no mesh is
needed. Files may hold more tensors than the published code reads; those are left out, and listed as dropped.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from gaussian.spherical_harmonics import NUM_COEFFICIENTS
from training.families.base import Option, PublishedFormat, PublishedRun, RunFields
from training.families.gghead.config import STORED, GeneratorConfig
from training.families.gghead.discriminator import Discriminator, DiscriminatorConfig
from training.families.gghead.generator import Generator
from training.families.gghead.objective import GgHeadObjectiveConfig
from training.families.gghead.presets import BATCH, BATCH_GPU, BETA_WEIGHT, D_LR, G_LR, PRESETS, STAGES, TV_WEIGHT
from training.networks.discriminator import PUBLISHED_CLAMP, channel_counts
from training.published import discriminator as published_discriminator
from training.published import eg3d
from training.published.pickle_file import StoredFile, StoredNetwork
from training.published.restricted_pickle import Instance
from training.published.state_dicts import (
    Shapes,
    check_room,
    check_tensors,
    commonest,
    converted,
    count_entries,
    lengths,
    listed,
    shapes_of,
    tensors_of,
)

PUBLISHED_YAW = 0.6 / 2.7  # radians to either side, as far as the published films turn
MAX_RESOLUTION = 2048
MAX_SPLATS = 10_000_000
_ANCHORS, _SYNTHESIS = "_flame_vertices", "backbone.synthesis."
_STATED_RESOLUTION = "generator.resolution"
_HEAD = "gghead.models."

# Settings of a file that would make another function of its tensors, and what they must be where they are there.
_FIXED = {
    "use_rodriguez": True,
    "use_rodriguez_rotation": True,
    "use_position_activation": True,
    "use_rotation_activation": True,
    "use_zero_conv_position": True,
    "disable_position_offsets": False,
    "clamp_opacity": False,
    "use_align_corners": False,
    "use_background_upsampler": False,
    "opacity_overshoot": 0.001,
}
# Settings that we have under other names: ours, and the types of a file's.
_OURS = {
    "position_range": ("position_range", (int, float)),
    "gen_pose_cond": ("pose_conditioning", (bool,)),
    "fix_alpha_blending": ("exact_backdrop", (bool,)),
}


# ---------------------------------------------------------------- state dicts


def generator_from_published(
    tensors: Mapping[str, Tensor], resolution: int, settings: Mapping[str, Any] | None = None
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published generator's, with which it shares memory.

    resolution: pixels of its images, which no tensor tells. settings: the file's own, by their published names.
    Raises ValueError that names every missing tensor, wrong shape or type, wrong filter, and setting that we lack.
    """
    config = generator_config(shapes_of(tensors), resolution, settings or {})
    expected = tensors_of(Generator, config)
    known = {name: value for name, value in tensors.items() if name in expected}
    published_discriminator.check_with_filters(known, expected)
    return config, known


def generator_to_published(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts `generator_from_published`; of a run with two grids it keeps the one in use.

    Raises ValueError for a network that the published layout cannot hold.
    """
    plain = GeneratorConfig(config.resolution)
    legal = dataclasses.replace(
        config, log_scale_offset=plain.log_scale_offset, largest_log_scale=plain.largest_log_scale, use_noise=True,
        published_keys=True,
    )  # fmt: skip
    check_room(config.to_dict(), legal.to_dict())
    check_tensors(state_dict, tensors_of(Generator, config), {})
    first = _first_grid(config, state_dict)
    content = {name: value for name, value in state_dict.items() if not name.startswith(("_first_", "_refined"))}
    if first:
        content |= {name: state_dict[f"_first{name}"] for name in ("_uv_grid", _ANCHORS)}
    return content


def _first_grid(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> bool:
    """Says whether the network is still in the part of a run with two grids that uses the first one."""
    return bool(config.first_samples) and not bool(state_dict["_refined"])


def discriminator_from_published(tensors: Mapping[str, Tensor]) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published discriminator's, with which it shares memory.

    Raises ValueError that names every unknown or missing tensor, wrong shape or type, and wrong filter.
    """
    config = discriminator_config(shapes_of(tensors))
    published_discriminator.check_with_filters(tensors, tensors_of(Discriminator, config))
    return config, dict(tensors)


def discriminator_to_published(config: DiscriminatorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts `discriminator_from_published`. Raises ValueError for one that the published layout cannot hold."""
    check_room(config.to_dict(), dataclasses.replace(config, published_keys=True).to_dict())
    check_tensors(state_dict, tensors_of(Discriminator, config), {})
    return dict(state_dict)


def generator_config(shapes: Shapes, resolution: int, settings: Mapping[str, Any]) -> GeneratorConfig:
    """Returns the configuration that shapes and settings of a published generator tell."""
    if wrong := [f"{name}={settings[name]}" for name, value in _FIXED.items() if settings.get(name, value) != value]:
        raise ValueError(f"its settings {listed(wrong)} are not supported")
    prefix = re.escape(_SYNTHESIS)
    plane = max((int(m[1]) for n in shapes if (m := re.fullmatch(rf"{prefix}b(\d{{1,4}})\.torgb\.\w+", n))), default=0)
    if not 4 <= plane <= MAX_RESOLUTION:
        raise ValueError(f"not a published generator: its last map has {plane} texels an edge")
    channels = lengths(shapes, rf"{prefix}b\d+\.conv1\.bias", 0)
    top = commonest(
        lengths(shapes, rf"{prefix}b{plane}\.conv1\.(?:bias|weight)", 0), f"{_SYNTHESIS}b{plane}.conv1.bias"
    )
    w_dim = commonest(lengths(shapes, rf"{prefix}b\d+\.(?:conv\d|torgb)\.affine\.weight", 1), "the width of w")
    latent = commonest(lengths(shapes, r"backbone\.mapping\.fc0\.weight", 1), "backbone.mapping.fc0.weight")
    maps = commonest(lengths(shapes, rf"{prefix}b\d+\.torgb\.(?:bias|weight)", 0), f"{_SYNTHESIS}b{plane}.torgb.bias")
    splats = commonest(lengths(shapes, _ANCHORS, 1), _ANCHORS)
    if splats > MAX_SPLATS:
        raise ValueError(f"not a published generator: {splats:,} splats")
    degree, backdrop = _of_channels(maps)
    ours = {ours: settings[name] for name, (ours, kinds) in _OURS.items() if isinstance(settings.get(name), kinds)}
    samples = settings.get("n_uniform_flame_vertices")
    try:
        return GeneratorConfig(
            resolution=resolution,
            z_dim=latent - w_dim,
            w_dim=w_dim,
            map_depth=count_entries(shapes, r"backbone\.mapping\.fc(\d+)\.\w+"),
            plane_resolution=plane,
            channel_base=top * plane,
            channel_max=max(channels, default=top),
            template=STORED,
            samples=samples if isinstance(samples, int) else math.ceil(math.sqrt(splats)),
            splats=(splats,),
            sh_degree=degree,
            background_channels=backdrop,
            use_noise=any(name.endswith("noise_const") for name in shapes),
            **ours,
        )
    except ValueError as error:
        raise ValueError(f"not a published generator: {error}") from None


def _of_channels(count: int) -> tuple[int, int]:
    """Returns the degree of the colours and the channels of the backdrop of a map with so many channels."""
    for degree, coefficients in enumerate(NUM_COEFFICIENTS):
        for backdrop in (0, 3):
            if count == 10 + 3 * coefficients + backdrop:
                return degree, backdrop
    raise ValueError(f"not a published generator: a map of {count} channels")


def discriminator_config(shapes: Shapes) -> DiscriminatorConfig:
    """Returns the configuration that the shapes of a published discriminator tell."""
    sizes = [int(m[1]) for name in shapes if (m := re.fullmatch(r"b(\d{1,4})\.fromrgb\.weight", name))]
    if not sizes or max(sizes) > MAX_RESOLUTION:
        raise ValueError("missing or of a wrong shape: its first block (b*.fromrgb)")
    channels = published_discriminator.channels_of(shapes, max(sizes))
    told = any(name.startswith("mapping.") for name in shapes)
    width = r"mapping\.\w+\.(?:weight|bias)" if told else r"b4\.out\.(?:weight|bias)"
    try:
        return DiscriminatorConfig(
            resolution=max(sizes),
            channels=channels,
            embedding_dim=commonest(lengths(shapes, width, 0), "the width of its mapping"),
            mapping_depth=max(count_entries(shapes, r"mapping\.fc(\d+)\.\w+"), 1),
            conv_clamp=PUBLISHED_CLAMP,
            first_resolution=min(sizes) if len(sizes) > 1 else 0,
            image_channels=commonest(lengths(shapes, r"b\d+\.fromrgb\.weight", 1), "b*.fromrgb.weight"),
            pose_conditioning=told,
        )
    except ValueError as error:
        raise ValueError(f"not a published discriminator: {error}") from None


# ---------------------------------------------------------------- files


class GgHeadPublished(PublishedFormat):
    """Describes the files that the published GGHead code writes, checkpoints/checkpoint-<kimg>.pkl of a run folder."""

    looks_for = f"G_ema with tensors {_ANCHORS} and {_SYNTHESIS}*"
    records = frozenset({"G", "D", "G_ema", "training_set_kwargs", "augment_pipe"})
    classes = frozenset(
        {
            *(
                f"{_HEAD}{name}"
                for name in (
                    "gghead_model.GGHeadModel",
                    "gghead_model.GGHeadConfig",
                    "gghead_model.MappingNetworkConfig",
                    "gghead_model.SynthesisNetworkConfig",
                    "gghead_model.RenderingConfig",
                    "gghead_model.SuperResolutionConfig",
                    "stylegan2.GGHGenerator",
                    "stylegan2.GGHSynthesisNetwork",
                    "stylegan2.GGHSynthesisBlock",
                    "gaussian_discriminator.GaussianDiscriminator",
                )
            ),
            "gghead.config.gaussian_attribute.GaussianAttributeConfig",
            "gaussian_splatting.scene.gaussian_model.GaussianModel",
        }
    )
    options = (Option(("--image-size",), _STATED_RESOLUTION, "of a GGHead file without a D: pixels of its images"),)

    def recognises(self, file: StoredFile) -> bool:
        """Looks for the anchors and the synthesis network in G_ema."""
        network = file.network("G_ema")
        if network is None:
            return False
        return _ANCHORS in network.tensors and any(name.startswith(_SYNTHESIS) for name in network.tensors)

    def generator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]
    ) -> tuple[GeneratorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict. The resolution may be the map's, until `completed`."""
        settings = stored.attribute("", "_config", None)
        found = settings.state if isinstance(settings, Instance) else {}
        plane = commonest(lengths(shapes_of(tensors), "_uv_position_map", 1), "_uv_position_map")
        return generator_from_published(tensors, stated.get(_STATED_RESOLUTION) or plane, found)

    def completed(self, file: StoredFile, generator: GeneratorConfig, stated: Mapping[str, Any]) -> GeneratorConfig:
        """Returns the configuration with the resolution of D's images, which no tensor of a generator tells."""
        D = file.network("D")
        if D is not None:
            sizes = [int(m[1]) for name in D.tensors if (m := re.fullmatch(r"b(\d{1,4})\.fromrgb\.weight", name))]
            if sizes and 1 <= max(sizes) <= MAX_RESOLUTION:
                return dataclasses.replace(generator, resolution=max(sizes))
        if _STATED_RESOLUTION in stated:
            return generator
        raise ValueError("it holds no D, whose images would tell its resolution; state it with --image-size")

    def discriminator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor]
    ) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict; the modules tell the clamp and the minibatch-std group."""
        config, state_dict = discriminator_from_published(tensors)
        return published_discriminator.stated_by(stored, config), state_dict

    def run(
        self, file: StoredFile, generator: GeneratorConfig, discriminator: DiscriminatorConfig | None
    ) -> PublishedRun:
        """Returns the published cameras, and the losses of the stage that the resolution tells."""
        size, first = generator.resolution, STAGES[0][0]
        grown = size if size <= first else first
        default = DiscriminatorConfig(
            size, channel_counts(size), conv_clamp=PUBLISHED_CLAMP, first_resolution=grown if grown < size else 0
        )
        later = size > first
        return PublishedRun(
            preset=f"gghead-ffhq{size}" if f"gghead-ffhq{size}" in PRESETS else "published",
            discriminator=published_discriminator.fitting(discriminator, default),
            objective=GgHeadObjectiveConfig(
                tv_weight=TV_WEIGHT if later else 0.0,
                beta_weight=BETA_WEIGHT if later else 0.0,
            ),
            geometry=eg3d.geometry(),
            yaw_limit=PUBLISHED_YAW,
            fields=RunFields(
                background="white", mirror=False, batch=BATCH, batch_gpu=BATCH_GPU, g_lr=G_LR, d_lr=D_LR
            ),
        )  # fmt: skip

    def to_published(
        self,
        generator: GeneratorConfig,
        discriminator: DiscriminatorConfig,
        networks: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Any]:
        """Returns the state dicts, and the settings that no tensor tells, under their published names."""
        written = converted(
            networks, partial(generator_to_published, generator), partial(discriminator_to_published, discriminator)
        )
        first = any(_first_grid(generator, networks[name]) for name in networks if name != "D")
        return {
            "resolution": generator.resolution,
            "n_uniform_flame_vertices": generator.first_samples if first else generator.samples,
            "position_range": generator.position_range,
            "gen_pose_cond": generator.pose_conditioning,
            "fix_alpha_blending": generator.exact_backdrop,
            **written,
        }


PUBLISHED = GgHeadPublished()
