"""Lists the members of GSGAN in one table. The published values stay for 256 and 512 px (`_scripts` of the authors).

New training follows the labels: it has none of `config.PUBLISHED_CONVENTIONS`, which published weights need.

For the small member: a quarter of the points are neighbours, as at 256 px and up; scales start so that a level's splats
are half as large as the level's before and the last are a pixel wide (with the published start they are a quarter as
large, and a thousand clusters of four show as specks); the initial blur is 10 R / 512 px and fades within a kimg or
two; there is no background, since the masks of the small sets cut it away; and black splats still learn
(networks/color.py).
"""

from __future__ import annotations

from typing import NamedTuple

from training.families.base import Preset, RunFields
from training.families.gsgan.config import GeneratorConfig
from training.families.gsgan.discriminator import DiscriminatorConfig
from training.families.gsgan.objective import GsganObjectiveConfig
from training.networks.discriminator import channel_counts


class Data(NamedTuple):
    """Holds what the published settings change with the data."""

    swap_probability: float
    center_weight: float
    uniform_poses: float
    augment: str


DATA = {"ffhq": Data(0.5, 1.0, 0.5, "noaug"), "afhq": Data(0.8, 10.0, 0.0, "ada")}
BATCH_GPU = {256: 8, 512: 4}


def objective(data: str) -> GsganObjectiveConfig:
    """Returns the published losses for "ffhq" or "afhq"."""
    return GsganObjectiveConfig(**DATA[data]._asdict())


def run_fields(resolution: int) -> RunFields:
    """Returns where the published runs differ from the defaults."""
    return RunFields(
        mirror=False, background="black", batch_gpu=BATCH_GPU[resolution], tick_kimg=4, image_ticks=50,
        snapshot_ticks=50, metrics=("fid2k_full",),
    )  # fmt: skip


def _published(data: str, resolution: int) -> Preset:
    return Preset(
        generator=GeneratorConfig.published(resolution),
        discriminator=DiscriminatorConfig.published(resolution),
        objective=objective(data),
        run=run_fields(resolution),
    )


# fmt: off
PRESETS = {
    "gsgan-tiny": Preset(
        GeneratorConfig(
            resolution=64, z_dim=128, w_dim=128, num_points=64, widths=(128, 64, 32, 32), blocks=3, num_heads=4,
            neighbours=8, background_points=0, point_encoding="fourier+code", published_keys=False,
            scale_bias=2.0, color_rule="inward", start="surface",
        ),
        DiscriminatorConfig(
            64, channel_counts(64, 2048, 128), conv_clamp=None, published_keys=False, pose_width=128, pose_features=32,
        ),
        GsganObjectiveConfig(
            gamma=4.0, swap_fade_kimg=10.0, knn_neighbours=16, blur_sigma=1.25, blur_fade_kimg=1.5,
            ema_halflife_kimg=3.0,
        ),
        RunFields(total_kimg=40, batch=16, batch_gpu=16, g_lr=0.002, d_lr=0.002, tick_kimg=1, image_ticks=5,
                  snapshot_ticks=10, metrics=("swd1k",)),
    ),
    "gsgan-ffhq256": _published("ffhq", 256),
    "gsgan-ffhq512": _published("ffhq", 512),
    "gsgan-afhq256": _published("afhq", 256),
    "gsgan-afhq512": _published("afhq", 512),
}
# fmt: on
