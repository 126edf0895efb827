"""Tells mappings another sample's camera now and then, so that they cannot rely on it (EG3D, Chan et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from gaussian import Cameras
from training.samples import WholeStep


def swap_probability(nimg: int, final: float, fade_nimg: float) -> float:
    """Lowers the probability of a swap linearly from 1 to `final` over the first `fade_nimg` images."""
    done = min(nimg / fade_nimg, 1.0) if fade_nimg > 0 else 1.0
    return (1 - done) + final * done


def swapped(labels: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Returns labels [n, 25], where the draws [n], uniform in 0..1, are below the probability those of the row before.

    Before the first row comes the last one.
    """
    return torch.where((draws < probability)[:, None], labels.roll(1, dims=0), labels)


def told_cameras(whole: WholeStep, phase: str, labels: Tensor, probability: float) -> Cameras:
    """Returns the cameras [b] that the mapping is told of a micro-batch's samples.

    Another sample is the one before in the step, over all ranks. (Published code takes it from the micro-batch.)
    labels: [n, 25] of all samples of the step; phase: "G" or "D".
    """
    return Cameras.from_labels(swapped(labels, whole.draws.uniform(f"{phase}/swap"), probability)[whole.own])
