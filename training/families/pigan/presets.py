"""Lists the members of pi-GAN in one table: the released curricula, in images.

    from step    CelebA, Cats                 CARLA
          0      64 px, batch 56 or 28        32 px, batch 30
     10,000                                   64 px, batch 14
     55,000                                   128 px, batch 10
    200,000      end                          end

Batches are those of one GPU, as many as the released settings have. Images are of 128 px, as the published metrics are:
where training ends at 64 px, pictures and metrics still show 128.

For the small member: a field of 4 layers of 48 sines and 8 + 8 samples along a ray, four times as much work at 64 px as
at 32 (`python -m benchmarks.training_step --preset=pigan-tiny`); micro-batches of 4 stay in a core's caches. Rates
are larger, and fades, warm-ups and averages as much shorter, as the run is. No wall is at the end of the rays, and
backgrounds are random, so that a field has to be a head and not a picture of one; softplus leaves no density without a
gradient.
"""

from __future__ import annotations

import math

from training.families.base import Preset, RunFields
from training.families.pigan.config import GeneratorConfig, unit_of
from training.families.pigan.discriminator import DiscriminatorConfig
from training.families.pigan.objective import PiganObjectiveConfig
from training.samples import Stage

STEPS = 200_000  # of all released curricula
NOISE_STEPS = 5_000  # over which the noise on densities fades
SIZE = 128  # pixels of the published metrics
METRICS = ("fid2k_full",)
FRAMING = 13.3725  # degrees across the images of sets with EG3D's labels, fx 4.2647; the synthetic heads are one


def _run(background: str, stages: tuple[Stage, ...], total_kimg: float, mirror: bool) -> RunFields:
    first = stages[0]
    return RunFields(
        background=background, mirror=mirror, stages=stages, batch=first.batch, batch_gpu=first.batch_gpu,
        g_lr=first.g_lr, d_lr=first.d_lr, total_kimg=total_kimg, tick_kimg=4, image_ticks=10, snapshot_ticks=50,
        metrics=METRICS,
    )  # fmt: skip


def _celeba(batch: int, batch_gpu: int) -> RunFields:
    return _run("black", (Stage(0, 64, batch, batch_gpu, 6e-5, 2e-4),), STEPS * batch / 1000, True)


_CARLA_STAGES = (
    Stage(0, 32, 30, 30, 4e-5, 4e-4),
    Stage(10_000 * 30, 64, 14, 7, 2e-5, 2e-4),
    Stage(10_000 * 30 + 45_000 * 14, 128, 10, 2, 1e-5, 1e-4),
)
_CARLA_KIMG = (10_000 * 30 + 45_000 * 14 + 145_000 * 10) / 1000

# fmt: off
PRESETS = {
    "pigan-tiny": Preset(
        GeneratorConfig(64, z_dim=64, width=48, layers=4, map_depth=2, near=0.86, far=1.14, samples=8, fine_samples=8,
                        unit=unit_of(FRAMING), activation="softplus", density_gain=30.0, last_delta=0.02,
                        density_noise=0.5, noise_kimg=4.0),
        DiscriminatorConfig(widths=(24, 48, 96, 128, 128, 128), latent=64),
        PiganObjectiveConfig(gamma=1.0, fade_steps=200, topk_interval=100, topk_least=0.75, pose_weight=5.0,
                             ema_decay=0.995, slow_ema_decay=0.999, theta_std=0.48, phi_std=0.13, fov=FRAMING),
        RunFields(stages=(Stage(0, 32, 8, 4, 3e-4, 8e-4), Stage(20_000, 64, 8, 4, 1.5e-4, 4e-4)), total_kimg=25,
                  batch=8, batch_gpu=4, g_lr=3e-4, d_lr=8e-4, tick_kimg=1, image_ticks=5, snapshot_ticks=10,
                  metrics=("swd1k",)),
    ),
    "pigan-celeba": Preset(
        GeneratorConfig(SIZE, noise_kimg=NOISE_STEPS * 56 / 1000),
        DiscriminatorConfig(),
        PiganObjectiveConfig(pose="gaussian"),
        _celeba(batch=56, batch_gpu=28),
    ),
    "pigan-cats": Preset(
        GeneratorConfig(SIZE, near=0.8, far=1.2, samples=24, fine_samples=24, noise_kimg=NOISE_STEPS * 28 / 1000),
        DiscriminatorConfig("strided", latent=0),
        PiganObjectiveConfig(pose="uniform", theta_std=0.5, phi_std=0.4, pose_weight=0.0),
        _celeba(batch=28, batch_gpu=7),
    ),
    "pigan-carla": Preset(
        GeneratorConfig(SIZE, variant="tall", unit=unit_of(30.0), half_width=0.3, near=0.7, far=1.3, samples=48,
                        fine_samples=48, noise_kimg=NOISE_STEPS * 30 / 1000),
        DiscriminatorConfig.progressive(),
        PiganObjectiveConfig(
            gamma=10.0, clip=1.0, topk_interval=1000, topk_least=1.0, pose_weight=0.0, pose="spherical",
            theta_std=math.pi, phi_mean=math.pi / 4 * 85 / 90, phi_std=math.pi / 4 * 85 / 90, fov=30.0,
        ),
        _run("white", _CARLA_STAGES, _CARLA_KIMG, False),
    ),
}
# fmt: on
