"""Reads published EpiGRAF snapshots into our classes, and writes their state dicts.

A name `synthesis.X` of a generator is `network.X` here, and `mapping.X` is `mapper.X`; those of a discriminator stay.
What no tensor tells is in the configuration that a network carries (`settings`), or has the published value.

Published cameras are 1 away from the origin, in units of the field; ours of the same lens are where the world's scale
is 1 (`Geometry.world_scale`). So the lens tells how many of these units make one of the world: `GeneratorConfig.unit`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaussian import Geometry
from gaussian.geometry import REFERENCE_HALF_EXTENT
from torch_utils import ops
from training.families.base import PublishedFormat, PublishedRun, RunFields
from training.families.epigraf import poses
from training.families.epigraf.config import GeneratorConfig
from training.families.epigraf.discriminator import (
    CAMERA_CODES,
    PATCH_CODE,
    WAVES,
    Discriminator,
    DiscriminatorConfig,
)
from training.families.epigraf.generator import Generator
from training.families.epigraf.objective import EpigrafObjectiveConfig
from training.families.epigraf.presets import (
    ANYWHERE,
    BATCH,
    BATCH_GPU,
    D_LR,
    G_LR,
    NARROW,
    PRESETS,
    inner_fov,
    unit,
    whole_fov,
)
from training.families.epigraf.settings import Settings
from training.published.discriminator import fitting
from training.published.pickle_file import StoredFile, StoredNetwork
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

MAX_RESOLUTION = 2048
YAW_LIMIT = 0.3  # radians to either side, as far as the published films turn
PLANES, DECODER = "synthesis.tri_plane_decoder.", "synthesis.tri_plane_mlp.model."
OURS = {"synthesis.": "network.", "mapping.": "mapper."}  # beginnings of names
CAMERA = "dataset.camera."


def our_name(name: str) -> str:
    """Returns our name of a published generator's tensor."""
    return next((ours + name[len(theirs) :] for theirs, ours in OURS.items() if name.startswith(theirs)), name)


def published_name(name: str) -> str:
    """Inverts `our_name`."""
    return next((theirs + name[len(ours) :] for theirs, ours in OURS.items() if name.startswith(ours)), name)


# ---------------------------------------------------------------- generators


def generator_config(shapes: Shapes, settings: Settings, resolution: int) -> GeneratorConfig:
    """Returns the configuration that shapes and settings of a published generator tell."""
    prefix = re.escape(PLANES)
    sizes = [int(m[1]) for name in shapes if (m := re.fullmatch(rf"{prefix}b(\d{{1,4}})\.torgb\.\w+", name))]
    plane = max(sizes, default=0)
    if not 4 <= plane <= MAX_RESOLUTION:
        raise ValueError(f"not a published generator: its planes have {plane} texels an edge")
    top = commonest(lengths(shapes, rf"{prefix}b{plane}\.conv\d\.bias", 0), f"{PLANES}b{plane}.conv1.bias")
    features = commonest(lengths(shapes, rf"{re.escape(DECODER)}0\.weight", 1), f"{DECODER}0.weight")
    painted = commonest(lengths(shapes, rf"{prefix}b\d+\.torgb\.bias", 0), f"{PLANES}b{plane}.torgb.bias")
    if painted - 3 * features not in (0, 3):
        raise ValueError(f"not supported: {painted} channels of planes for a decoder of {features} features")
    w_dim = commonest(lengths(shapes, rf"{prefix}b\d+\.(?:conv\d|torgb)\.affine\.weight", 1), "the width of w")
    told = "mapping.embed.weight" in shapes
    condition = commonest(lengths(shapes, r"mapping\.embed\.weight", 1), "mapping.embed.weight") if told else 0
    camera = condition >= 2 and settings.get("camera_cond", condition == 2, bool)
    sphere = any(name.startswith("synthesis.bg_model.") for name in shapes)
    plain = GeneratorConfig(resolution)
    unsupported = {
        "dataset.last_back": settings.get("dataset.last_back", False, bool),
        "tri_plane.has_view_cond": settings.get("tri_plane.has_view_cond", False, bool),
        "dataset.white_back with a background model": (sphere or painted > 3 * features)
        and settings.get("dataset.white_back", False, bool),
        "a camera radius that is not 1": settings.get(f"{CAMERA}radius", 1.0, int, float) != 1,
    }
    if wrong := [name for name, value in unsupported.items() if value]:
        raise ValueError(f"its settings are not supported: {listed(wrong)}")
    widths = lengths(shapes, r"synthesis\.bg_model\.blocks\.[01]\.conv1\.bias", 0)
    most = max(widths, default=0)  # the second block is narrower only where the base says so
    return GeneratorConfig(
        resolution,
        z_dim=commonest(lengths(shapes, r"mapping\.fc0\.weight", 1), "mapping.fc0.weight") - (w_dim if told else 0),
        w_dim=w_dim,
        map_depth=count_entries(shapes, r"mapping\.fc(\d+)\.\w+"),
        plane_resolution=plane,
        feature_dim=features,
        hidden_dim=commonest(lengths(shapes, rf"{re.escape(DECODER)}0\.(?:weight|bias)", 0), f"{DECODER}0.bias"),
        channel_base=top * plane,
        channel_max=max(lengths(shapes, rf"{prefix}b\d+\.conv1\.bias", 0)),
        use_noise=any(name.endswith("noise_const") for name in shapes),
        unit=unit(whole_fov(_fov(settings), resolution)),
        cube_scale=settings.get("dataset.cube_scale", plain.cube_scale, int, float),
        ray_start=settings.get(f"{CAMERA}ray_start", plain.ray_start, int, float),
        ray_end=settings.get(f"{CAMERA}ray_end", plain.ray_end, int, float),
        samples=settings.get("num_ray_steps", plain.samples, int),
        density=settings.get("clamp_mode", plain.density, str),
        density_shift=float(settings.get("density_shift", 0.0, int, float)),
        backdrop="sphere" if sphere else "plane" if painted > 3 * features else "none",
        backdrop_samples=settings.get("bg_model.num_steps", plain.backdrop_samples, int),
        backdrop_start=float(settings.get("bg_model.start", 1.0, int, float)),
        backdrop_base=plain.backdrop_base if min(widths, default=0) == most else 8 * min(widths),
        backdrop_max=most or plain.backdrop_max,
        camera_conditioning=camera,
        camera_dropout=float(settings.get("camera_cond_drop_p", 0.0, int, float)),
        num_classes=condition - (2 if camera else 0),
    )


def generator_from_published(
    tensors: Mapping[str, Tensor], settings: Settings, resolution: int
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published generator's, with which it shares memory.

    Raises ValueError that names every unknown or missing tensor, wrong shape or type, and wrong constant.
    """
    config = generator_config(shapes_of(tensors), settings, resolution)
    expected = {published_name(name): value for name, value in tensors_of(Generator, config).items()}
    check_tensors(tensors, expected, _constants(expected))
    return config, {our_name(name): value for name, value in tensors.items()}


def generator_to_published(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts `generator_from_published`. Raises ValueError for one that the published layout cannot hold."""
    legal = dataclasses.replace(config, use_noise=True, published_keys=True, opaque=True, density_gain=1.0)
    check_room(config.to_dict(), legal.to_dict())
    check_tensors(state_dict, tensors_of(Generator, config), {})
    return {published_name(name): value for name, value in state_dict.items()}


# ---------------------------------------------------------------- discriminators


def discriminator_config(shapes: Shapes, settings: Settings) -> DiscriminatorConfig:
    """Returns the configuration that shapes and settings of a published discriminator tell."""
    sizes = [int(m[1]) for name in shapes if (m := re.fullmatch(r"b(\d{1,4})\.conv0\.(?:weight|bias)", name))]
    resolution = max(sizes, default=0)
    if not 8 <= resolution <= MAX_RESOLUTION:
        raise ValueError("missing or of a wrong shape: its first block (b*.conv0)")
    pattern = rf"b{resolution}\.conv0\.(?:weight|bias)"
    top = commonest(lengths(shapes, pattern, 0), f"b{resolution}.conv0.bias")
    width = commonest(lengths(shapes, r"b4\.conv\.(?:weight|bias)", 0), "b4.conv.bias")
    patch = any(name.startswith("scalar_enc.") for name in shapes)
    fourier = any(name.startswith("head_mapping.camera_scalar_enc.") for name in shapes)
    raw = not fourier and settings.get("camera_cond", False, bool)
    camera = "fourier" if fourier else "raw" if raw else "none"
    widths = lengths(shapes, r"head_mapping\.embed\.weight", 1)
    told = commonest(widths, "head_mapping.embed.weight") if widths or patch or camera != "none" else 0
    flat = settings.get("num_additional_start_blocks", None, int)
    pixels = resolution >> flat if flat is not None and 0 <= flat < 8 else settings.get("patch.resolution", 64, int)
    return DiscriminatorConfig(
        resolution=resolution,
        patch_resolution=pixels,
        channel_base=top * resolution,
        channel_max=width,
        mapping_depth=count_entries(shapes, r"head_mapping\.fc(\d+)\.\w+") or DiscriminatorConfig.mapping_depth,
        patch_conditioning=patch,
        camera=camera,
        camera_dropout=float(settings.get("camera_cond_drop_p", 0.0, int, float)),
        num_classes=told - (PATCH_CODE if patch else 0) - CAMERA_CODES[camera],
    )


def discriminator_from_published(
    tensors: Mapping[str, Tensor], settings: Settings
) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published discriminator's, with which it shares memory."""
    config = discriminator_config(shapes_of(tensors), settings)
    expected = tensors_of(Discriminator, config)
    check_tensors(tensors, expected, _constants(expected))
    return config, dict(tensors)


def discriminator_to_published(config: DiscriminatorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts `discriminator_from_published`. Raises ValueError for one that the published layout cannot hold."""
    check_room(config.to_dict(), dataclasses.replace(config, published_keys=True).to_dict())
    check_tensors(state_dict, tensors_of(Discriminator, config), {})
    return dict(state_dict)


def _constants(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what the constants of a network are, by name."""
    found = {name: ops.fir_filter() for name in expected if name.endswith("resample_filter")}
    for name, value in expected.items():
        if name.endswith("fourier_coefs"):
            period = 2.0**WAVES if len(value) == WAVES else poses.PERIOD
            found[name] = 2.0 ** torch.arange(len(value)) * (math.pi / period)
    return found


# ---------------------------------------------------------------- files

_OMEGACONF = (
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
)


class EpigrafPublished(PublishedFormat):
    """Describes the files of the published EpiGRAF code, output/network-snapshot-NNNNNN.pkl of a run folder."""

    looks_for = f"G_ema with tensors {PLANES}* and {DECODER}*"
    records = frozenset({"training_set_kwargs", "G", "D", "G_ema", "augment_pipe", "G_opt", "D_opt", "vis", "stats"})
    goes_on_warm = False  # a run goes on from its whole state
    classes = frozenset(
        {*_OMEGACONF, "typing.Any", "torch.optim.adam.Adam", "builtins.dict", "builtins.int", "builtins.list"}
    )

    def recognises(self, file: StoredFile) -> bool:
        """Looks for the network of the planes and the decoder in G_ema."""
        network = file.network("G_ema")
        names = () if network is None else network.tensors
        return all(any(name.startswith(start) for name in names) for start in (PLANES, DECODER))

    def generator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]
    ) -> tuple[GeneratorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict. Raises ValueError if the file does not say how large its images are."""
        settings = _settings(stored)
        size = stored.attribute("", "img_resolution", settings.get("dataset.resolution", None, int))
        if type(size) is not int or not 2 <= size <= MAX_RESOLUTION:
            raise ValueError("img_resolution, the pixels of its images, is missing or no legal number")
        return generator_from_published(tensors, settings, size)

    def discriminator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor]
    ) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict."""
        return discriminator_from_published(tensors, _settings(stored))

    def run(
        self, file: StoredFile, generator: GeneratorConfig, discriminator: DiscriminatorConfig | None
    ) -> PublishedRun:
        """Returns the published cameras, those of the file's configuration, and the published losses."""
        network = file.network("G_ema")
        settings = _settings(network) if network is not None else Settings(None)
        fov, size = _fov(settings), generator.resolution
        radius = 1 / generator.unit
        focal = radius / (2 * REFERENCE_HALF_EXTENT)
        found = fitting(discriminator, DiscriminatorConfig(resolution=size, patch_resolution=min(64, size)))
        white = settings.get("dataset.white_back", fov != NARROW, bool)
        faces = fov == NARROW
        name = {512: "epigraf-ffhq512", 256: "epigraf-ffhq256" if faces else "epigraf-plants256"}.get(size, "")
        gamma = PRESETS[name].objective.gamma if name else EpigrafObjectiveConfig().gamma  # type: ignore[attr-defined]
        return PublishedRun(
            preset=name or "published",
            discriminator=found,
            objective=EpigrafObjectiveConfig(  # runs that go on have no blur
                gamma=gamma, blur_sigma=0.0, **({} if faces else {**ANYWHERE, "fov": whole_fov(fov, size)})
            ),
            geometry=Geometry(
                (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), radius, ((focal, 0.0, 0.5), (0.0, focal, 0.5), (0.0, 0.0, 1.0))
            ),
            yaw_limit=YAW_LIMIT,
            fields=RunFields(
                background="white" if white else "0.5,0.5,0.5", mirror=True, batch=BATCH, batch_gpu=BATCH_GPU,
                g_lr=G_LR, d_lr=D_LR,
            ),
        )  # fmt: skip

    def to_published(
        self,
        generator: GeneratorConfig,
        discriminator: DiscriminatorConfig,
        networks: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Any]:
        """Returns the state dicts, and the settings that no tensor tells, under their published names."""
        content: dict[str, Any] = {
            "img_resolution": generator.resolution,
            "num_ray_steps": generator.samples,
            "clamp_mode": generator.density,
            "density_shift": generator.density_shift,
            "camera_cond": generator.camera_conditioning,
            "fov": inner_fov(2 * math.degrees(math.atan(generator.unit * REFERENCE_HALF_EXTENT)), generator.resolution),
            "cube_scale": generator.cube_scale,
            "ray_start": generator.ray_start,
            "ray_end": generator.ray_end,
            "num_additional_start_blocks": discriminator.flat_blocks,
            "disc_camera_cond": discriminator.camera != "none",
            "disc_camera_cond_raw": discriminator.camera == "raw",
        }
        return content | converted(
            networks,
            partial(generator_to_published, generator),
            partial(discriminator_to_published, discriminator),
        )


def _fov(settings: Settings) -> float:
    """Returns the field of view, degrees between the middles of an image's outermost pixels. Raises ValueError."""
    fov = float(settings.get(f"{CAMERA}fov", NARROW, int, float))
    if not 0 < fov < 180:
        raise ValueError(f"{CAMERA}fov={fov}: must be between 0 and 180 degrees")
    return fov


def _settings(stored: StoredNetwork) -> Settings:
    return Settings(stored.attribute("", "cfg", None))


PUBLISHED = EpigrafPublished()
