"""Lists the members of EpiGRAF in one table: published ones, whose runs differ in few values, and a small one of ours.

World units are the project's, in which half an image is 0.3166 wide at the origin (`REFERENCE_HALF_EXTENT`). Published
fields have cameras 1 away, with a field of view of 12 degrees for faces and cats, and of 30 for things, between the
middles of the outermost pixels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from gaussian.geometry import REFERENCE_HALF_EXTENT
from training.families.base import Preset, RunFields
from training.families.epigraf.config import GeneratorConfig
from training.families.epigraf.discriminator import DiscriminatorConfig
from training.families.epigraf.objective import EpigrafObjectiveConfig

BATCH, BATCH_GPU, G_LR, D_LR = 64, 16, 0.0025, 0.002
NARROW, WIDE = 12.0, 30.0  # degrees of field of view
WIDE_CUBE = 0.475, 0.75, 1.25  # half its edge, and where rays begin and end, in distances of the camera
ANYWHERE: dict[str, Any] = {"pose": "spherical", "theta_std": math.pi, "phi_std": math.pi / 2}  # all over the sphere


def unit(fov: float) -> float:
    """Returns the units of a field per world unit, whose cameras are 1 away and see `fov` degrees across an image."""
    return math.tan(math.radians(fov / 2)) / REFERENCE_HALF_EXTENT


def whole_fov(fov: float, pixels: int) -> float:
    """Returns the degrees across an image of so many pixels, for those between the middles of its outermost ones."""
    return 2 * math.degrees(math.atan(math.tan(math.radians(fov / 2)) * pixels / (pixels - 1)))


def inner_fov(fov: float, pixels: int) -> float:
    """Inverts `whole_fov`."""
    return 2 * math.degrees(math.atan(math.tan(math.radians(fov / 2)) * (pixels - 1) / pixels))


def _published(resolution: int, gamma: float, faces: bool) -> Preset:
    fov = whole_fov(NARROW if faces else WIDE, resolution)
    generator = GeneratorConfig(resolution, unit=unit(fov))
    if not faces:
        cube, start, end = WIDE_CUBE
        generator = dataclasses.replace(generator, cube_scale=cube, ray_start=start, ray_end=end)
    return Preset(
        generator=generator,
        discriminator=DiscriminatorConfig(
            resolution=resolution, camera="fourier" if faces else "none", camera_dropout=0.5 if faces else 0.0
        ),
        objective=EpigrafObjectiveConfig(gamma=gamma, **({} if faces else {**ANYWHERE, "fov": fov})),
        run=RunFields(
            background="0.5,0.5,0.5" if faces else "white", total_kimg=50_000, batch=BATCH, batch_gpu=BATCH_GPU,
            g_lr=G_LR, d_lr=D_LR, mirror=True, tick_kimg=4, image_ticks=100, snapshot_ticks=250,
            metrics=("fid2k_full",),
        ),
    )  # fmt: skip


PRESETS = {
    "epigraf-tiny": Preset(
        generator=GeneratorConfig(
            64, z_dim=128, w_dim=128, plane_resolution=64, feature_dim=12, hidden_dim=32, channel_base=2048,
            channel_max=128, samples=12, opaque=False, unit=unit(13.37), cube_scale=0.22, density_gain=8.0,
            noise_fade_kimg=5.0, use_noise=False, published_keys=False,
        ),
        discriminator=DiscriminatorConfig(
            resolution=64, patch_resolution=32, channel_base=2048, channel_max=128, camera="raw", camera_dropout=0.2,
            conv_clamp=None, published_keys=False,
        ),
        objective=EpigrafObjectiveConfig(
            gamma=0.2, anneal_kimg=12.0, ema_halflife_kimg=2.0, blur_sigma=10 * 32 / 512, blur_fade_kimg=1.0,
            augment="noaug", augment_kimg=6.0,
        ),
        run=RunFields(
            total_kimg=40, batch=8, batch_gpu=8, g_lr=0.004, d_lr=0.002, tick_kimg=1, image_ticks=5,
            snapshot_ticks=10, metrics=("swd1k",),
        ),
    ),
    "epigraf-ffhq512": _published(512, 0.1, faces=True),
    "epigraf-ffhq256": _published(256, 0.05, faces=True),
    "epigraf-cats256": _published(256, 0.05, faces=True),
    "epigraf-plants256": _published(256, 0.05, faces=False),
    "epigraf-food256": _published(256, 0.05, faces=False),
}  # fmt: skip
