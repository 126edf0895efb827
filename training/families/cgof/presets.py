"""Lists the members of CGOF in one table.

"cgof" has the released values: 64 px, 80,000 steps of 64 images (8 to each of 8 GPUs, in 4 micro-batches of 2), 12
samples a pass. Its latent has 411 numbers with a model of the Basel kind (--morphable=FILE.npz, 80 + 64 + 80 + 27), and
discriminator.latent follows it; with the procedural head, which needs no file, it has 209.

The small member is pi-GAN's, with three passes of 6 samples: one of them has no gradient. Its terms of the surface
weigh less, as its run is short, and its gradients are clipped on their sum with what D says. They begin to count after
4,000 images: from the start they led to an empty field, as a regressor knows nothing of what is no head. What
the published one does not do: its colours are compared with those of the surface.
"""

from __future__ import annotations

from training.families.base import Preset, RunFields
from training.families.cgof.config import GeneratorConfig
from training.families.cgof.objective import CgofObjectiveConfig
from training.families.pigan.config import unit_of
from training.families.pigan.discriminator import DiscriminatorConfig
from training.samples import Stage

STEPS, BATCH = 80_000, 64
FRAMING = 13.3725  # degrees across the images of sets with EG3D's labels, fx 4.2647; the synthetic heads are one

_PUBLISHED = GeneratorConfig(64, last_back=True, noise_kimg=5_000 * BATCH / 1000, guide_kimg=200 * BATCH / 1000)
_TINY = GeneratorConfig(
    64, background=12, background_texture=12, width=48, layers=4, map_depth=0, near=0.86, far=1.14, samples=6,
    fine_samples=6, unit=unit_of(FRAMING), activation="softplus", density_gain=30.0, last_delta=0.02,
    density_noise=0.5, noise_kimg=4.0, guide_kimg=2.0,
)  # fmt: skip

# fmt: off
PRESETS = {
    "cgof-tiny": Preset(
        _TINY,
        DiscriminatorConfig(widths=(24, 48, 96, 128, 128, 128), latent=_TINY.z_dim),
        CgofObjectiveConfig(gamma=1.0, fade_steps=200, topk_interval=100, topk_least=0.75, pose_weight=5.0,
                            ema_decay=0.995, slow_ema_decay=0.999, theta_std=0.48, phi_std=0.13, fov=FRAMING,
                            recon_weight=2.0, distance_weight=100.0, background_weight=100.0, normal_weight=1.0,
                            depth_weight=50.0, landmark_weight=0.05, warp_weight=0.1, warp_every=4,
                            recon_from_kimg=4.0, photo_weight=10.0),
        RunFields(stages=(Stage(0, 32, 8, 4, 3e-4, 8e-4), Stage(16_000, 64, 8, 4, 1.5e-4, 4e-4)), total_kimg=20,
                  batch=8, batch_gpu=4, g_lr=3e-4, d_lr=8e-4, tick_kimg=1, image_ticks=5, snapshot_ticks=10,
                  metrics=("swd1k",), mirror=False),
    ),
    "cgof": Preset(
        _PUBLISHED,
        DiscriminatorConfig(latent=_PUBLISHED.z_dim),
        CgofObjectiveConfig(pose="gaussian", fade_steps=5_000),
        RunFields(background="black", mirror=True, batch=BATCH, batch_gpu=2, g_lr=6e-5, d_lr=2e-4,
                  total_kimg=STEPS * BATCH / 1000, tick_kimg=4, image_ticks=10, snapshot_ticks=50,
                  metrics=("fid2k_full",)),
    ),
}
# fmt: on
