"""Says before the first step what a run will do."""

from __future__ import annotations

import torch
from torch import nn

from gaussian import resolve_backend
from torch_utils import distributed
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.families.base import Discriminator, Generator
from training.samples import Stage


def describe(
    config: TrainingConfig, dataset: ImageDataset, G: Generator, D: Discriminator, device: torch.device, nimg: int = 0
) -> str:
    """Returns the choices that decide what a run does and costs, one a line. nimg: images seen so far."""
    low = D.low_dtype
    lines = [
        f"Preset      {config.preset}: {config.resolution} px, {G.scene_size()} a scene; "
        f"G {_millions(G)}, D {_millions(D)}",
        f"Data        {dataset.name}: {len(dataset):,} items{', mirrored at random' if config.mirror else ''}",
        f"Index list  {dataset.index_description}",
        f"Background  {_background(config, dataset)}",
        f"Batch       {batch_line(config, config.stage_at(nimg), distributed.world_size())}",
        f"Device      {device}, {torch.get_num_threads()} threads; rasterizer "
        f"{resolve_backend(config.rasterizer, device)}; convolutions "
        f"{'float32' if low is None else str(low).removeprefix('torch.')}",
    ]
    lines += [
        f"Stage       from {stage.from_nimg / 1000:g} kimg: {stage.resolution} px, batch {stage.batch}, "
        f"{stage.batch_gpu} at once, learning rates {stage.g_lr:g} and {stage.d_lr:g}"
        for stage in config.stages
    ]
    if not dataset.has_masks:
        lines.append(
            "Warning: the set has no masks, so the scene must explain the background of the images too, "
            f"and what it leaves clear shows {config.background}"
        )
    return "\n".join(lines)


def batch_line(config: TrainingConfig, stage: Stage, ranks: int) -> str:
    """Says how a total batch is worked off in a stage of the run, and which samples share a statistic."""
    rounds = stage.batch // (stage.batch_gpu * ranks)
    count = len(config.objective.views)
    views = f", {count} view{'' if count == 1 else 's'} a scene"
    size = min(config.discriminator.minibatch_std_group, stage.batch_gpu)
    if size > 1:
        groups = f"; minibatch standard deviation over {stage.batch_gpu // size} x {size} samples"
    else:
        groups = "; no minibatch standard deviation"
    return (
        f"{stage.batch} samples a step = {ranks} process{'' if ranks == 1 else 'es'} x {rounds} accumulation "
        f"round{'' if rounds == 1 else 's'} x {stage.batch_gpu} at once{views}{groups}"
    )


def _background(config: TrainingConfig, dataset: ImageDataset) -> str:
    if config.background == "random":
        return "random, one colour for the real and the generated image of a sample; pictures and metrics on white"
    reals = "real and generated images" if dataset.has_masks else "generated images (no masks: real ones as they are)"
    return f"{config.background} behind {reals}"


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M parameters"
