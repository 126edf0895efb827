"""The members of the family as one table. The published CGS-GAN values stay for 256 px and up.

For the small members: a coarse splat starts as many pixels wide as at 512 px (log scale -5 + ln(512 / R)), the initial
blur is 10 R / 512 px and fades within the first 5 % of the run, and at most an eighth of the points are neighbours.
"""

from __future__ import annotations

from math import log

from training.config import TrainingConfig
from training.families.cgs.generator import GeneratorConfig
from training.networks.discriminator import DiscriminatorConfig, channel_counts

PUBLISHED = {"cgs256": 256, "cgs512": 512, "cgs1024": 1024, "cgs2048": 2048}

# fmt: off
# Networks of the small members. D has base / size channels at each size, at most max.
NETWORKS = {
    #        px   points  ratios            widths                   w  blocks heads | D base  max  layers
    "micro": (32,  32,  (1, 4, 4),       (64, 32, 16),             64,  2, 4,        1024, 128, 2),
    "tiny":  (64,  64,  (1, 4, 4, 4),    (128, 64, 32, 16),       128,  3, 4,        2048, 128, 4),
    "small": (128, 128, (1, 4, 4, 4, 2), (256, 128, 64, 32, 16),  256,  4, 8,        4096, 256, 6),
}
PUBLISHED_CHANNELS = (32768, 512)  # base and max of D

# Training of the small members, where it differs from the published defaults in TrainingConfig. tick, images and
# snapshots: kimg per tick, ticks per picture and per checkpoint.
TRAINING = {
    #        kimg  batch  views gamma  g_lr    d_lr    EMA kimg  tick images snapshots  metrics
    "micro": (20,   16, 16, 2,  2.0,  0.0020, 0.0020,  2.0,      1,   5,     10,      ("swd1k",)),
    "tiny":  (30,   16, 16, 2,  4.0,  0.0020, 0.0020,  3.0,      1,   5,     10,      ("swd1k",)),
    "small": (1000, 16, 8,  2,  4.0,  0.0020, 0.0020,  5.0,      1,   10,    50,      ("swd2k",)),
}
# fmt: on

PRESETS = (*NETWORKS, *PUBLISHED)


def channels(name: str) -> tuple[int, int]:
    """Base and maximum of the discriminator's channels, see `channel_counts`."""
    return NETWORKS[name][7:9] if name in NETWORKS else PUBLISHED_CHANNELS


def resolve(name: str | int, data: str) -> TrainingConfig:
    """The configuration of a preset, by name or by the resolution of the data. ValueError lists the legal ones."""
    by_resolution = {row[0]: preset for preset, row in NETWORKS.items()} | {r: p for p, r in PUBLISHED.items()}
    if isinstance(name, int):
        if name not in by_resolution:
            sizes = ", ".join(map(str, sorted(by_resolution)))
            raise ValueError(f"no preset for images of {name} px; legal are {sizes} (dataset_tool.py can resize)")
        name = by_resolution[name]
    if name in PUBLISHED:
        return _published(name, data)
    if name in NETWORKS:
        return _small(name, data)
    raise ValueError(f"unknown preset {name!r}; legal are {', '.join(PRESETS)}")


def _published(name: str, data: str) -> TrainingConfig:
    return TrainingConfig(
        generator=GeneratorConfig.published(PUBLISHED[name]),
        discriminator=DiscriminatorConfig.published(PUBLISHED[name]),
        preset=name,
        data=data,
    )


def _small(name: str, data: str) -> TrainingConfig:
    resolution, points, ratios, widths, w_dim, blocks, heads, base, most, layers = NETWORKS[name]
    channels = channel_counts(resolution, base, most)
    kimg, batch, batch_gpu, views, gamma, g_lr, d_lr, ema, tick, images, snapshots, metrics = TRAINING[name]
    generator = GeneratorConfig(
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
    )
    discriminator = DiscriminatorConfig(
        resolution=resolution,
        channels=channels,
        embedding_dim=channels[-1],
        mapping_depth=layers,
        conv_clamp=None,  # guards float16's range in the published networks
        published_keys=False,
    )
    return TrainingConfig(
        generator=generator,
        discriminator=discriminator,
        preset=name,
        data=data,
        total_kimg=kimg,
        batch=batch,
        batch_gpu=batch_gpu,
        num_views=views,
        gamma=gamma,
        g_lr=g_lr,
        d_lr=d_lr,
        ema_halflife_kimg=ema,
        tick_kimg=tick,
        image_ticks=images,
        snapshot_ticks=snapshots,
        knn_neighbours=points // 8,
        blur_sigma=10 * resolution / 512,
        blur_fade_kimg=0.05 * kimg,
        metrics=metrics,
    )
