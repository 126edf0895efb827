"""Says before the first step what a run will do."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gaussian import Geometry, resolve_backend
from torch_utils import distributed
from training.config import TrainingConfig
from training.dataset import ImageDataset
from training.families import family
from training.families.base import Conditioning, Discriminator, Generator, StepContext
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
        f"Device      {device}, {torch.get_num_threads()} threads ({distributed.threads_from()}); rasterizer "
        f"{resolve_backend(config.rasterizer, device)}; convolutions and products "
        f"{'float32' if low is None else str(low).removeprefix('torch.')}",
    ]
    lines += [
        f"Stage       from {stage.from_nimg / 1000:g} kimg: {stage.resolution} px, batch {stage.batch}, "
        f"{stage.batch_gpu} at once, learning rates {stage.g_lr:g} and {stage.d_lr:g}"
        for stage in config.stages
    ]
    if config.cooldown_kimg:
        first = config.total_kimg - config.cooldown_kimg
        lines.append(f"Cooldown    from {first:g} kimg on both learning rates fall to 0 at {config.total_kimg:g}")
    if not dataset.has_masks:
        lines.append(
            "Warning: the set has no masks, so the scene must explain the background of the images too, "
            f"and what it leaves clear shows {config.background}"
        )
    if G.num_classes:
        lines.append(f"Classes     {G.num_classes} of the data, which both networks are told")
    elif dataset.num_classes:
        why = "as --use-labels=False says" if hasattr(config.objective, "use_labels") else "by this family"
        lines.append(f"Note        {dataset.num_classes} classes in the labels are not used {why}")
    elif dataset.class_problem is not None:
        lines.append(f"Note        classes are not used: {dataset.class_problem}")
    lines += [f"Note        {note}" for note in dataset.notes]
    return "\n".join(lines)


def cost_lines(config: TrainingConfig, geometry: Geometry, given: Collection[str], resumed: bool) -> list[str]:
    """Returns what the networks hold and compute, and where the weight of R1 comes from, one a line.

    given: names of the values that the command line sets. The networks are built without numbers, on PyTorch's meta
    device. A multiplication with its addition counts as two FLOPs; rendering is no matrix product and is not counted.
    """
    of, nothing = family(config.family), torch.device("meta")
    count = config.discriminator.minibatch_std_group
    with nothing, torch.no_grad(), FlopCounterMode(display=False) as counter:
        # The counter cannot follow parameters that learn through a module under no_grad.
        G = of.generator(config.generator).requires_grad_(False)
        D = of.discriminator(config.discriminator).requires_grad_(False)
        camera = geometry.orbit(torch.zeros(1, device="cpu")).to(nothing)
        G.synthesis(G.mapping(torch.zeros(1, G.z_dim), camera), StepContext(round(config.total_kimg * 1000)))
        g_flops = counter.get_total_flops()
        told = Conditioning(torch.zeros(count, 25), classes=torch.zeros(count, dtype=torch.int64))
        D.outputs(torch.zeros(count, 3, config.resolution, config.resolution), told)
        d_flops = (counter.get_total_flops() - g_flops) / count
    lines = [
        f"Generator      {_millions(G)}, {g_flops / 1e9:.3g} GFLOP a scene, without its rendering",
        f"Discriminator  {_millions(D)}, {d_flops / 1e9:.3g} GFLOP an image of {config.resolution} px",
    ]
    if (gamma := getattr(config.objective, "gamma", None)) is not None:
        origin = "the run that goes on" if resumed else f"preset {config.preset}"
        origin = "the command line" if "objective.gamma" in given else origin
        lines.append(f"Gamma          {gamma:g}, the weight of R1, from {origin}")
    return lines


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
