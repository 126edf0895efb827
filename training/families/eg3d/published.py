"""Reads the field of published EG3D networks into our classes: backbone and decoder, by their own names.

The superresolution, and the discriminator, which judges its images, are left out and listed as dropped.

A field has the units of the labels that it learnt under, which are the world's for faces. Those of ShapeNet's cars are
others, by which a data set of theirs is divided when it is read (`Geometry.world_scale`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gaussian import Geometry
from gaussian.geometry import REFERENCE_HALF_EXTENT
from training.families.adversarial_config import AdversarialConfig
from training.families.base import PublishedFormat, PublishedRun, RunFields
from training.families.eg3d.config import GeneratorConfig
from training.families.eg3d.generator import Generator
from training.networks.discriminator import DiscriminatorConfig
from training.published import eg3d
from training.published.discriminator import check_with_filters
from training.published.pickle_file import StoredFile, StoredNetwork
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

PIVOT = (0.0, 0.0, 0.2)  # that the cameras of FFHQ look at
YAW_LIMIT = 0.4  # radians to either side, for faces
FACES, THINGS = 2.7, 1.7  # distances of the cameras of films: of FFHQ and AFHQ, and of ShapeNet
LABELLED, LABELLED_FOCAL = 1.3, 131.25 / 128  # distance and focal length of ShapeNet's labels (Sitzmann et al. 2019)
THINGS_UNIT = LABELLED / (2 * LABELLED_FOCAL) / REFERENCE_HALF_EXTENT  # of these labels, per world unit
THINGS_FOCAL = 1.7074  # of the cameras of films
MAX_RESOLUTION = 2048
BACKBONE, DECODER = "backbone.synthesis.", "decoder.net."
DROPPED = "superresolution."
_RENDERING = "training.volumetric_rendering."


def generator_config(shapes: Shapes, resolution: int, settings: Mapping[str, Any]) -> GeneratorConfig:
    """Returns the configuration that shapes and rendering settings of a published generator tell."""
    prefix = re.escape(BACKBONE)
    sizes = [int(m[1]) for name in shapes if (m := re.fullmatch(rf"{prefix}b(\d{{1,4}})\.torgb\.\w+", name))]
    plane = max(sizes, default=0)
    if not 4 <= plane <= MAX_RESOLUTION:
        raise ValueError(f"not a published generator: its planes have {plane} texels an edge")
    top = commonest(lengths(shapes, rf"{prefix}b{plane}\.conv\d\.bias", 0), f"{BACKBONE}b{plane}.conv1.bias")
    w_dim = commonest(lengths(shapes, rf"{prefix}b\d+\.(?:conv\d|torgb)\.affine\.weight", 1), "the width of w")
    latent = commonest(lengths(shapes, r"backbone\.mapping\.fc0\.weight", 1), "backbone.mapping.fc0.weight")
    things = distance_of(settings) == THINGS
    unit, distance = (THINGS_UNIT, LABELLED) if things else (1.0, FACES)
    plain = GeneratorConfig()

    def number(name: str, default: float) -> Any:
        value = settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"not supported: its setting {name}={str(value)[:40]!r} is no number")
        return value

    if settings.get("clamp_mode", "softplus") != "softplus":
        raise ValueError("not supported: its setting clamp_mode is not softplus")
    return GeneratorConfig(
        resolution,
        z_dim=latent - w_dim,
        w_dim=w_dim,
        map_depth=count_entries(shapes, r"backbone\.mapping\.fc(\d+)\.\w+"),
        plane_resolution=plane,
        feature_dim=commonest(lengths(shapes, r"decoder\.net\.0\.weight", 1), f"{DECODER}0.weight"),
        hidden_dim=commonest(lengths(shapes, r"decoder\.net\.0\.(?:weight|bias)", 0), f"{DECODER}0.bias"),
        channel_base=top * plane,
        channel_max=max(lengths(shapes, rf"{prefix}b\d+\.conv1\.bias", 0)),
        use_noise=any(name.startswith(BACKBONE) and name.endswith("noise_const") for name in shapes),
        unit=unit,
        camera_distance=distance,
        box_warp=float(number("box_warp", plain.box_warp)),
        ray_start=float(number("ray_start", plain.ray_start)),
        ray_end=float(number("ray_end", plain.ray_end)),
        samples=int(number("depth_resolution", plain.samples)),
        fine_samples=int(number("depth_resolution_importance", plain.fine_samples)),
        pose_conditioning=settings.get("c_gen_conditioning_zero", False) is not True,
        pose_scale=float(number("c_scale", plain.pose_scale)),
    )


def distance_of(settings: Mapping[str, Any]) -> float:
    """Returns the distance of the cameras of films, which tells the data; FFHQ's where settings have none.

    Raises ValueError for that of other data.
    """
    radius = settings.get("avg_camera_radius", FACES)
    if isinstance(radius, float) and radius in (FACES, THINGS):
        return radius
    known = f"{FACES} (FFHQ, AFHQ) and {THINGS} (ShapeNet)"
    raise ValueError(f"not supported: its setting avg_camera_radius is {ascii(radius)[:40]}; known are {known}")


def film_geometry(settings: Mapping[str, Any]) -> Geometry:
    """Returns the cameras of the published films, in world units. Raises ValueError for a pivot that is none."""
    pivot = settings.get("avg_camera_pivot", PIVOT if distance_of(settings) == FACES else (0.0, 0.0, 0.0))
    numbers = pivot if isinstance(pivot, list | tuple) else ()
    if len(numbers) != 3 or not all(isinstance(v, int | float) and abs(v) < THINGS for v in numbers):
        raise ValueError(
            f"not supported: its setting avg_camera_pivot is {ascii(pivot)[:60]}, and not three numbers below {THINGS}"
        )
    x, y, z = (float(v) for v in numbers)
    if distance_of(settings) == FACES:
        return eg3d.geometry((x, y, z))
    unit, f = THINGS_UNIT, THINGS_FOCAL
    lens = ((f, 0.0, 0.5), (0.0, f, 0.5), (0.0, 0.0, 1.0))
    return Geometry((x / unit, y / unit, z / unit), (0.0, 0.0, 0.0), THINGS / unit, lens, world_scale=unit)


def generator_from_published(
    tensors: Mapping[str, Tensor], resolution: int, settings: Mapping[str, Any]
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published generator's field, with which it shares memory.

    Raises ValueError that names every unknown or missing tensor, wrong shape or type, and wrong filter.
    """
    field = {name: value for name, value in tensors.items() if not name.startswith(DROPPED)}
    config = generator_config(shapes_of(field), resolution, settings)
    check_with_filters(field, tensors_of(Generator, config))
    return config, field


class Eg3dPublished(PublishedFormat):
    """Describes the files that the published EG3D code writes, network-snapshot-NNNNNN.pkl."""

    looks_for = f"G_ema with tensors {BACKBONE}* and {DECODER}*"
    records = frozenset({"G", "D", "G_ema", "training_set_kwargs", "augment_pipe"})
    classes = frozenset(
        f"{_RENDERING}{name}"
        for name in ("renderer.ImportanceRenderer", "ray_marcher.MipRayMarcher2", "ray_sampler.RaySampler")
    )

    def recognises(self, file: StoredFile) -> bool:
        """Looks for the network of the planes and the decoder in G_ema."""
        network = file.network("G_ema")
        names = () if network is None else network.tensors
        return all(any(name.startswith(start) for name in names) for start in (BACKBONE, DECODER))

    def generator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]
    ) -> tuple[GeneratorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict of the field."""
        settings = stored.attribute("", "rendering_kwargs", {})
        pixels = stored.attribute("", "neural_rendering_resolution", GeneratorConfig().resolution)
        if type(pixels) is not int or not 1 <= pixels <= MAX_RESOLUTION:
            raise ValueError("neural_rendering_resolution is no legal number")
        return generator_from_published(tensors, pixels, settings if isinstance(settings, dict) else {})

    def discriminator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor]
    ) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
        """Returns a discriminator of ours for images of the field, and no tensor for it."""
        return _fresh_discriminator(GeneratorConfig().resolution), {}

    def run(
        self, file: StoredFile, generator: GeneratorConfig, discriminator: DiscriminatorConfig | None
    ) -> PublishedRun:
        """Returns the cameras of the published films, and losses of ours."""
        network = file.network("G_ema")
        settings = {} if network is None else network.attribute("", "rendering_kwargs", {})
        settings = settings if isinstance(settings, dict) else {}
        white = settings.get("white_back") is True
        return PublishedRun(
            preset="published",
            discriminator=_fresh_discriminator(generator.resolution),
            objective=AdversarialConfig(),
            geometry=film_geometry(settings),
            yaw_limit=YAW_LIMIT if distance_of(settings) == FACES else math.pi,
            fields=RunFields(background="white" if white else "black"),
        )

    def to_published(
        self, generator: GeneratorConfig, discriminator: Any, networks: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Any]:
        """Returns the state dicts of the fields, which lack the superresolution, and the settings of rendering."""
        things = (generator.unit, generator.camera_distance) == (THINGS_UNIT, LABELLED)
        unit, distance = (THINGS_UNIT, LABELLED) if things else (1.0, FACES)
        legal = dataclasses.replace(generator, use_noise=True, published_keys=True, unit=unit, camera_distance=distance)
        check_room(generator.to_dict(), legal.to_dict())
        content: dict[str, Any] = {name: dict(state) for name, state in networks.items() if name != "D"}
        for state in content.values():
            check_tensors(state, tensors_of(Generator, generator), {})
        content["neural_rendering_resolution"] = generator.resolution
        content["rendering_kwargs"] = {
            "box_warp": generator.box_warp, "ray_start": generator.ray_start, "ray_end": generator.ray_end,
            "depth_resolution": generator.samples, "depth_resolution_importance": generator.fine_samples,
            "c_gen_conditioning_zero": not generator.pose_conditioning, "c_scale": generator.pose_scale,
            "avg_camera_radius": THINGS if things else FACES,
        }  # fmt: skip
        return content


def _fresh_discriminator(resolution: int) -> DiscriminatorConfig:
    size = 1 << max(resolution, 8).bit_length() - 1  # a power of two
    return DiscriminatorConfig.sized(size, channel_base=32768, channel_max=512, mapping_depth=8)


PUBLISHED = Eg3dPublished()
