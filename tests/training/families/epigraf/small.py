"""Small members of EpiGRAF, and steps over them, that several test modules share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gaussian import Cameras
from tests.training.families.epigraf.golden import cameras
from torch_utils.training_stats import Collector
from training.config import TrainingConfig
from training.dataset import Batch
from training.families import family
from training.families.epigraf.discriminator import DiscriminatorConfig
from training.families.epigraf.generator import GeneratorConfig
from training.families.epigraf.objective import EpigrafObjectiveConfig
from training.families.epigraf.presets import unit
from training.presets import resolve
from training.samples import MicroBatch, SampleStream
from training.step import GanStep


def generator_config(**changes: Any) -> GeneratorConfig:
    """The published layout for 16 px, with a narrow network."""
    values: dict[str, Any] = {
        "z_dim": 16, "w_dim": 12, "plane_resolution": 16, "channel_base": 128, "channel_max": 16, "feature_dim": 4,
        "hidden_dim": 8, "samples": 4, "backdrop_samples": 3, "backdrop_max": 8,
    }  # fmt: skip
    return GeneratorConfig(16, **{**values, **changes})


def for_heads() -> GeneratorConfig:
    """The same for synthetic heads of 32 px."""
    return dataclasses.replace(generator_config(), resolution=32, unit=unit(13.37), cube_scale=0.22)


def discriminator_config(**changes: Any) -> DiscriminatorConfig:
    values: dict[str, Any] = {"resolution": 16, "patch_resolution": 8, "channel_base": 128, "channel_max": 8}
    return DiscriminatorConfig(**{**values, **changes})


def run_config(batch_gpu: int = 4, objective: dict[str, Any] | None = None, **changes: Any) -> TrainingConfig:
    """Batches of 8, and a law of patches that has come half its way at 100 images."""
    settings = EpigrafObjectiveConfig(anneal_kimg=0.2, blur_sigma=1.0, blur_fade_kimg=0.2, augment="noaug")
    values: dict[str, Any] = {
        "generator": generator_config(noise_fade_kimg=0.2),
        "discriminator": discriminator_config(),
        "objective": settings.changed(**(objective or {})),
        "batch": 8,
        "batch_gpu": batch_gpu,
        "metrics": (),
        "background": "white",
    }
    return dataclasses.replace(resolve("epigraf-tiny", data=""), **{**values, **changes})


def poses(count: int) -> Cameras:
    """Cameras of many angles for images of 16 px."""
    angles = torch.stack([torch.linspace(-0.5, 0.5, count), torch.linspace(1.3, 1.8, count)], dim=1)
    return cameras(angles, 16)


def classes_of(config: TrainingConfig) -> torch.Tensor | None:
    """Classes of the 24 items; the first class has most of them."""
    if not config.generator.num_classes:
        return None
    return (torch.arange(24) % (2 * config.generator.num_classes) - config.generator.num_classes).clamp_min(0)


def make_step(config: TrainingConfig, nimg: int = 0) -> tuple[GanStep, list[MicroBatch]]:
    """Returns a step and the micro-batches of this rank's share after nimg images; equal at every call."""
    torch.manual_seed(0)
    of, device = family(config.family), torch.device("cpu")
    G, D = of.generator(config.generator), of.discriminator(config.discriminator)
    averaged = {"G_ema": of.generator(config.generator)}
    step = GanStep(
        config, G.requires_grad_(False), of.objective(config, G, D.requires_grad_(False)), averaged, Collector()
    )
    stream = SampleStream(config, poses(24).labels, G.z_dim, device, classes_of(config))
    share = stream.share(nimg)
    numbers = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (32, 3, 16, 16), generator=numbers, dtype=torch.uint8)[
        torch.tensor(list(share)) % 32
    ]
    labels = stream.labels[stream.items(nimg)]
    return step, stream.micro_batches(nimg, Batch(images, None, labels))
