"""Makes a small CGOF and an untrained regressor for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from training.control.regressor import Regressor, RegressorConfig, save_regressor
from training.families import FAMILIES
from training.families.base import Preset, RunFields
from training.families.pigan.discriminator import DiscriminatorConfig
from training.morphable.head import procedural_head
from training.samples import Stage

TINY = FAMILIES["cgof"].presets["cgof-tiny"]
STAGES = (Stage(0, 8, 8, 4, 0.001, 0.002), Stage(32, 16, 4, 2, 0.001, 0.001))
GENERATOR = TINY.generator.changed(
    resolution=32, background=2, background_texture=2, width=12, layers=2, map_depth=1, samples=4, noise_kimg=0.04,
    guide_kimg=0.03, points=10_000,
)  # fmt: skip
SMALL = Preset(
    GENERATOR,
    DiscriminatorConfig(widths=(4, 6, 8, 8, 8), latent=GENERATOR.z_dim),
    TINY.objective.changed(fade_steps=4, topk_interval=2, warp_every=2, recon_from_kimg=0.008),
    RunFields(batch=8, batch_gpu=4, stages=STAGES, g_lr=0.001, d_lr=0.001, background="white"),
)


def small_regressor(folder: Path, key: str) -> Path:
    torch.manual_seed(0)
    config = RegressorConfig(key, procedural_head().sizes, resolution=32, widths=(4, 8, 8))
    save_regressor(folder / "regressor.pt", Regressor(config), {})
    return folder / "regressor.pt"
