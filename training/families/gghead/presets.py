"""Lists the members of GGHead in one table. The published values hold from 256 px up; the stages are one run each.

Published runs are continued by hand with other options; here a run has stages. The map keeps its 256 texels. AFHQ's
run starts from the weights of FFHQ's second stage (--init-from), and is of that stage to its end.

    from kimg   0: 256 px, 256 x 256 samples of the template
             6400: 512 px, 512 x 512 samples, and the terms that make a surface of the splats
            25000: 1024 px
"""

from __future__ import annotations

from training.families.base import Preset, RunFields
from training.families.gghead.config import GeneratorConfig
from training.families.gghead.discriminator import DiscriminatorConfig
from training.families.gghead.objective import GgHeadObjectiveConfig
from training.networks.discriminator import PUBLISHED_CLAMP, channel_counts
from training.samples import Stage

STAGES = ((256, 0), (512, 6_400_000), (1024, 25_000_000))  # pixels, images seen when they begin
SAMPLES = (256, 512)  # of the template, of the first stage and of the others
TV_WEIGHT, BETA_WEIGHT = 100.0, 1.0  # of the second stage and later
BATCH, BATCH_GPU, G_LR, D_LR = 32, 8, 0.0025, 0.002


def _published(resolution: int, total_kimg: float) -> Preset:
    grows = resolution > STAGES[0][0]
    refined = STAGES[1][1]  # images seen
    stages = tuple(Stage(start, size, BATCH, BATCH_GPU, G_LR, D_LR) for size, start in STAGES if size <= resolution)
    return Preset(
        generator=GeneratorConfig(
            resolution,
            samples=SAMPLES[grows],
            first_samples=SAMPLES[0] if grows else 0,
            refined_nimg=refined if grows else 0,
        ),
        discriminator=DiscriminatorConfig(
            resolution,
            channel_counts(resolution),
            conv_clamp=PUBLISHED_CLAMP,
            first_resolution=STAGES[0][0] if grows else 0,
        ),
        objective=GgHeadObjectiveConfig(
            tv_weight=TV_WEIGHT if grows else 0.0,
            beta_weight=BETA_WEIGHT if grows else 0.0,
            surface_from_kimg=refined / 1000 if grows else 0.0,
        ),
        run=RunFields(
            background="white", total_kimg=total_kimg, batch=BATCH, batch_gpu=BATCH_GPU, g_lr=G_LR, d_lr=D_LR,
            mirror=False, stages=stages if grows else (), tick_kimg=4, image_ticks=50, snapshot_ticks=50,
        ),
    )  # fmt: skip


def _fine_tuned(grown: Preset, total_kimg: float) -> Preset:
    """Returns the last stage of a preset alone, for --init-from with weights of the stages before."""
    return Preset(
        generator=grown.generator.changed(first_samples=0, refined_nimg=0),
        discriminator=grown.discriminator,
        objective=grown.objective.changed(surface_from_kimg=0.0),
        run=RunFields(**{**grown.run, "total_kimg": total_kimg, "stages": ()}),
    )


PRESETS = {
    "gghead-tiny": Preset(
        generator=GeneratorConfig(
            64, z_dim=128, w_dim=128, plane_resolution=64, channel_base=2048, channel_max=128, samples=64,
            sh_degree=0, log_scale_offset=-4.0, initial_maps=0.2, use_noise=False, published_keys=False,
        ),
        discriminator=DiscriminatorConfig.sized(64, channel_base=2048, channel_max=128, mapping_depth=4),
        objective=GgHeadObjectiveConfig(
            gamma=4.0, position_weight=0.5, swap_fade_kimg=3.0, ema_halflife_kimg=3.0, blur_sigma=10 * 64 / 512,
            blur_fade_kimg=1.5, augment_kimg=6.0,
        ),
        run=RunFields(
            total_kimg=60, batch=8, batch_gpu=8, g_lr=0.002, d_lr=0.002, tick_kimg=1, image_ticks=5,
            snapshot_ticks=10, metrics=("swd1k",),
        ),
    ),
    "gghead-ffhq256": _published(256, total_kimg=6_400),
    "gghead-ffhq512": _published(512, total_kimg=25_000),
    "gghead-ffhq1024": _published(1024, total_kimg=27_000),
}  # fmt: skip
PRESETS["gghead-afhq512"] = _fine_tuned(PRESETS["gghead-ffhq512"], total_kimg=5_000)
