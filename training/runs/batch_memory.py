"""Estimates the GPU memory of a step before one runs, from what autograd would keep, and chooses --batch-gpu by it.

The networks run on the meta device, where tensors have shapes and no content: what is saved for the backward is counted
there for one and for two samples. `--dry-run --measure` finds the true peak, on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gaussian import Cameras
from training import losses
from training.config import TrainingConfig
from training.families import family
from training.families.in_parts import parts
from training.networks.base import Conditioning, Discriminator
from training.networks.layers import CAMERA_DIM

MOST = 32  # largest --batch-gpu that is chosen: more fills a GPU no better
SHARE = 0.8  # of a GPU's memory; the rest is for what the estimate leaves out and for fragments
RUNTIME_BYTES = 2 << 30  # CUDA itself, the libraries' work space
SPLAT_BYTES, PIXEL_BYTES = 120, 48  # that a rasteriser keeps of each splat and each pixel of a view
COPIES = {"G": 6, "D": 5}  # of the parameters: weights, gradient, a partial sum, two moments of Adam; G's average


@dataclass(frozen=True)
class StepMemory:
    """Says what a step takes, in bytes."""

    fixed: int
    generated: int  # per sample, of G and the rasteriser in G's phase
    judged: int  # per image that D judges at once in G's phase
    in_a_part: Callable[[int], int]  # images that D judges at once there, of so many samples
    learnt: int  # per sample, in the phases in which D learns

    def of(self, batch_gpu: int) -> int:
        """Returns the estimate for a size of the micro-batches."""
        generator = batch_gpu * self.generated + self.in_a_part(batch_gpu) * self.judged
        return self.fixed + max(generator, batch_gpu * self.learnt)


def estimate(config: TrainingConfig, low: torch.dtype | None) -> StepMemory | None:
    """Estimates a step with convolutions and large products in type `low`; None for what it cannot tell.

    It cannot where scenes are no splats, as then the renderer keeps the most, and where a network has to see numbers to
    know what comes next: none of ours does.
    """
    of = family(config.family)
    with torch.device("meta"):
        G, D = of.generator(config.generator), of.discriminator(config.discriminator)
    if not G.makes_splats:
        return None
    G.low_dtype = D.low_dtype = low
    views, size = len(config.objective.views), config.resolution

    def generation(count: int) -> None:
        cameras = Cameras.from_labels(torch.zeros(count, CAMERA_DIM, device="meta"))
        G.synthesis(G.mapping(torch.zeros(count, G.z_dim, device="meta"), cameras))

    def judgement(count: int) -> None:
        D.requires_grad_(False)
        _judged(D, _images(count, size).requires_grad_(True))

    def discriminator_phase(count: int) -> None:
        D.requires_grad_(True)
        _judged(D, _images(2 * count, size))

    def penalty_phase(count: int) -> None:
        D.requires_grad_(True)
        losses.gradient_penalty(lambda images: _judged(D, images), _images(count, size))

    phases = (generation, judgement, discriminator_phase, penalty_phase)
    try:
        saved = [[_saved_bytes(run, n) for n in (1, 2)] for run in phases]
    except RuntimeError as error:
        if not _lacks_numbers(error):
            raise
        return None
    generated, judged, *learnt = (two - one for one, two in saved)
    weights = {"G": G, "D": D}
    kept = sum(COPIES[name] * sum(4 * p.numel() for p in network.parameters()) for name, network in weights.items())
    once = max(2 * one - two for one, two in saved)
    return StepMemory(
        fixed=RUNTIME_BYTES + kept + once,
        generated=generated + views * (G.scene_numbers * SPLAT_BYTES + size**2 * PIXEL_BYTES),
        judged=judged,
        in_a_part=partial(_in_a_part, D, views, getattr(config.objective, "judged_at_once", 0)),
        learnt=max(learnt),
    )


def _in_a_part(D: Discriminator, views: int, at_once: int, samples: int) -> int:
    count = samples * views
    return count // len(parts(count, views * D.num_groups(samples), at_once))


def largest_that_fits(config: TrainingConfig, low: torch.dtype | None, gpu_bytes: int, sizes: Iterable[int]) -> int:
    """Returns the first of `sizes`, given largest first, whose step fits a GPU: the last if none does.

    The configuration's own --batch-gpu where nothing can be estimated.
    """
    memory = estimate(config, low)
    if memory is None:
        return config.batch_gpu
    size = config.batch_gpu
    for size in sizes:
        if memory.of(size) <= SHARE * gpu_bytes:
            break
    return size


def _images(count: int, size: int) -> Tensor:
    return torch.zeros(count, 3, size, size, device="meta")


def _lacks_numbers(error: RuntimeError) -> bool:
    """Says whether an operation failed as its result depends on numbers, which tensors of the meta device lack."""
    return isinstance(error, NotImplementedError) or "meta tensors" in str(error)


def _judged(D: Discriminator, images: Tensor) -> Tensor:
    labels = torch.zeros(len(images), CAMERA_DIM, device="meta")
    return D.outputs(images, Conditioning(labels), len(images)).logits


def _saved_bytes(run: Callable[[int], None], count: int) -> int:
    """Returns the bytes that autograd keeps of `run(count)` besides parameters, each memory once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # so that no memory is freed and its number given to another
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(count)
    return sum(kept.values())
