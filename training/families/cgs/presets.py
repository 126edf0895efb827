"""Lists the members of CGS-GAN in one table. The published values stay for 256 px and up.

For the small members: a coarse splat starts as many pixels wide as at 512 px (log scale -5 + ln(512 / R)), the initial
blur is 10 R / 512 px and fades within the first images, at most an eighth of the points are neighbours,
augmentation can go from none to all within a tenth of the run, and black splats still learn (networks/color.py): with
the published rule four fifths of the finest level die in the first minutes. They train on white, where a small
discriminator need not become blind to random colours first, and splats are hardly wider than they say, which at 64 px
would be more than the blur of a picture's own pixels. Their discriminators are told the direction of view in words that
they need not learn first (networks/camera_code.py): without, eyes stay one in the middle of the face for long
(docs/learning.md).
"""

from __future__ import annotations

from math import log

from training.families.base import Preset, RunFields
from training.families.cgs.generator import GeneratorConfig
from training.families.cgs.objective import CgsObjectiveConfig
from training.networks.discriminator import DiscriminatorConfig


def _published(resolution: int) -> Preset:
    return Preset(
        generator=GeneratorConfig.published(resolution),
        discriminator=DiscriminatorConfig.published(resolution),
        objective=CgsObjectiveConfig(),
        for_resolution=True,
    )


def _small(
    resolution: int,  # pixels
    points: int,  # splats of level 0
    ratios: tuple[int, ...],
    widths: tuple[int, ...],
    w_dim: int,
    blocks: int,  # transformer blocks before level 0
    heads: int,
    channel_base: int,  # D has base / size channels at each size,
    channel_max: int,  # and at most so many
    mapping_depth: int,  # layers of D's camera mapping
    num_views: int,
    gamma: float,
    blur_fade_kimg: float,
    ema_halflife_kimg: float,
    run: RunFields,
) -> Preset:
    return Preset(
        generator=GeneratorConfig(
            resolution=resolution,
            z_dim=w_dim,
            w_dim=w_dim,
            num_points=points,
            ratios=ratios,
            widths=widths,
            first_blocks=blocks,
            num_heads=heads,
            point_encoding="fourier+code",
            coarse_log_scale=-5.0 + log(512 / resolution),
            camera_embedding=False,
            published_keys=False,
            color_rule="inward",
            low_pass=0.05,
            start="surface",
        ),
        discriminator=DiscriminatorConfig.sized(resolution, channel_base, channel_max, mapping_depth).changed(
            direction_octaves=4
        ),
        objective=CgsObjectiveConfig(
            gamma=gamma,
            num_views=num_views,
            knn_neighbours=points // 8,
            blur_sigma=10 * resolution / 512,
            blur_fade_kimg=blur_fade_kimg,
            ema_halflife_kimg=ema_halflife_kimg,
            augment_kimg=0.1 * run["total_kimg"],
        ),
        run=RunFields(background="white", **run),
        for_resolution=True,
    )


# fmt: off
PRESETS = {
    "micro": _small(
        resolution=32, points=32, ratios=(1, 4, 4), widths=(64, 32, 16), w_dim=64, blocks=2, heads=4,
        channel_base=1024, channel_max=128, mapping_depth=2, num_views=2, gamma=0.5, blur_fade_kimg=1,
        ema_halflife_kimg=2.0,
        run=RunFields(total_kimg=20, batch=16, batch_gpu=16, g_lr=0.002, d_lr=0.002, tick_kimg=1, image_ticks=5,
                      snapshot_ticks=10, metrics=("swd1k",)),
    ),
    "tiny": _small(
        resolution=64, points=64, ratios=(1, 4, 4, 4), widths=(128, 64, 32, 16), w_dim=128, blocks=3, heads=4,
        channel_base=2048, channel_max=128, mapping_depth=4, num_views=2, gamma=1.0, blur_fade_kimg=1.5,
        ema_halflife_kimg=3.0,
        run=RunFields(total_kimg=50, batch=8, batch_gpu=8, g_lr=0.002, d_lr=0.002, tick_kimg=1, image_ticks=5,
                      snapshot_ticks=10, metrics=("swd1k",)),
    ),
    "small": _small(
        resolution=128, points=128, ratios=(1, 4, 4, 4, 2), widths=(256, 128, 64, 32, 16), w_dim=256, blocks=4, heads=8,
        channel_base=4096, channel_max=256, mapping_depth=6, num_views=2, gamma=1.0, blur_fade_kimg=2,
        ema_halflife_kimg=4.0,
        run=RunFields(total_kimg=200, batch=8, batch_gpu=8, g_lr=0.002, d_lr=0.002, tick_kimg=1, image_ticks=5,
                      snapshot_ticks=10, metrics=("swd2k",)),
    ),
    "cgs256": _published(256),
    "cgs512": _published(512),
    "cgs1024": _published(1024),
    "cgs2048": _published(2048),
}
# fmt: on

_TINY = PRESETS["tiny"]
PRESETS["cgs-control-tiny"] = Preset(  # 49 numbers of the procedural head, and 79 for what it does not describe
    generator=_TINY.generator.changed(controls="procedural", map_depth=0),
    discriminator=_TINY.discriminator.changed(direction_octaves=0),  # the model tells where a face looks
    objective=_TINY.objective.changed(recon_weight=1.0, recon_from_kimg=2.0, surface_weight=5.0, photo_weight=10.0),
    run=RunFields(  # a mirrored face has other coefficients
        **{**_TINY.run, "mirror": False}
    ),
)
