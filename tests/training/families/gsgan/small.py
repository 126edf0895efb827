"""Makers of a small GSGAN that the tests share: configuration, networks, a step and its samples."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from gaussian import Cameras, Geometry, Rendering
from torch_utils.training_stats import Collector
from training.config import TrainingConfig
from training.dataset import Batch
from training.families.gsgan.discriminator import Discriminator, DiscriminatorConfig
from training.families.gsgan.generator import Generator, GeneratorConfig
from training.families.gsgan.objective import GsganObjective, GsganObjectiveConfig
from training.presets import resolve
from training.samples import MicroBatch, SampleStream
from training.step import GanStep

FFHQ = Geometry((0.0, 0.0, 0.2), (0.0, 0.0, 0.0), 2.7, ((4.2647, 0.0, 0.5), (0.0, 4.2647, 0.5), (0.0, 0.0, 1.0)))


def generator_config(**changes: Any) -> GeneratorConfig:
    """Four levels, so that both kinds of levels are there, and a background from 24 images on."""
    values: dict[str, Any] = {
        "resolution": 32, "z_dim": 16, "w_dim": 24, "num_points": 12, "widths": (32, 16, 16, 8), "blocks": 2,
        "num_heads": 4, "neighbours": 3, "view_features": 8, "background_points": 10, "background_width": 16,
        "background_nimg": 24, "point_encoding": "fourier+code", "published_keys": False,
    }  # fmt: skip
    return GeneratorConfig(**values | changes)


def discriminator_config(**changes: Any) -> DiscriminatorConfig:
    values: dict[str, Any] = {"published_keys": False, "pose_width": 16, "pose_features": 8, "minibatch_std_group": 2}
    return DiscriminatorConfig(32, (8, 12, 16, 16), **values | changes)


def run_config(batch_gpu: int = 4, objective: Any = (), **changes: Any) -> TrainingConfig:
    """The configuration of a run with a batch of 8, and with everything on that GSGAN has."""
    settings = {"gamma": 1.0, "swap_fade_kimg": 0.1, "uniform_poses": 0.5, "style_mixing": 0.5, "knn_neighbours": 4,
                "blur_sigma": 1.0, "blur_fade_kimg": 0.02}  # fmt: skip
    values = {"generator": generator_config(), "discriminator": discriminator_config(), "batch": 8} | changes
    losses = GsganObjectiveConfig(**settings | dict(objective))
    return dataclasses.replace(resolve("gsgan-tiny", data=""), objective=losses, batch_gpu=batch_gpu, **values)


def awaken(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Lets every branch act: layer scales start at 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".ls" in name:
                parameter.add_(std * torch.randn_like(parameter))
    return module


def networks(config: TrainingConfig, dtype: torch.dtype = torch.float32) -> tuple[Generator, Discriminator]:
    """G, with pictures in place of the rasteriser, and D. Their weights are the same at every call."""
    torch.manual_seed(0)
    G, D = Generator(config.generator).to(dtype), Discriminator(config.discriminator).to(dtype)
    awaken(G)
    planes = torch.randn(6 * 64, 3 * 32 * 32, dtype=torch.float64) / math.sqrt(6 * 64)

    def render(scene: Any, cameras: Cameras, resolution: Any, background: Tensor, at: Any) -> Rendering:
        directions = cameras.cam2world[..., :3, 2].to(scene.means)
        features = torch.cat([scene.means, scene.viewed_colors(directions)[:, 0]], -1)[:, :64].flatten(1)
        rgb = (features.double() @ planes).view(-1, 1, 3, 32, 32) + cameras.labels.mean(-1)[..., None, None, None]
        rgb = rgb.to(scene.means)
        return Rendering(rgb=rgb, alpha=rgb[:, :, :1], depth=rgb[:, :, :1])

    G.render = render  # type: ignore[method-assign]
    return G, D


def make_step(
    config: TrainingConfig, dtype: torch.dtype = torch.float32, nimg: int = 0
) -> tuple[GanStep, list[MicroBatch]]:
    """A step and this rank's micro-batches after `nimg` images; equal for every split and for every number of ranks."""
    G, D = networks(config, dtype)
    average = Generator(config.generator).to(dtype)
    average.load_state_dict(G.state_dict())
    step = GanStep(config, G, GsganObjective(config, G, D), {"G_ema": average}, Collector())
    labels = FFHQ.orbit(torch.linspace(-1, 1, 50), torch.linspace(-0.3, 0.4, 50)).labels.to(dtype)
    stream = SampleStream(config, labels, G.z_dim, torch.device("cpu"))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    share = stream.share(nimg)
    own = slice(share.start - nimg, share.stop - nimg)
    micro = stream.micro_batches(nimg, Batch(images[own], None, labels[stream.items(nimg)]))
    for part in micro:
        for name in ("real", "g_z", "d_z"):
            setattr(part, name, getattr(part, name).to(dtype))
    return step, micro
