"""Spells the direction of a camera out for a discriminator that has little time to learn to read its label.

A label is a pose and intrinsics in one row of 25 numbers, and most of its length is the same for all cameras: between
two that look at a head from 30 degrees to its left and to its right, the cosine is 0.90 (distance 2.7, fx 4.26). A
discriminator with a projection that starts there hardly tells them apart. Sines and cosines of the direction of view,
as in positional encoding (Mildenhall et al. 2020), tell them apart from the first step on.
"""

import math

import torch
from torch import Tensor

from torch_utils.constants import kept
from training.networks.layers import CAMERA_DIM

FEATURES_PER_OCTAVE = 6  # a sine and a cosine of each component of a direction
LENGTH = 4.0  # of each pair of a sine and a cosine: together they outweigh the label
MOST_OCTAVES = 16  # beyond, float32 has no phase left
FORWARD = slice(2, 11, 4)  # where a label has the camera's axis of view: the third column of cam2world


def code_dim(octaves: int) -> int:
    """Returns how many numbers `with_direction` gives."""
    return CAMERA_DIM + FEATURES_PER_OCTAVE * octaves


@kept
def _frequencies(octaves: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns pi/2, pi, 2 pi, ... [octaves, 1]: the first is read from -1 to 1 without repeating itself."""
    return (math.pi * 2.0 ** torch.arange(-1, octaves - 1, dtype=dtype, device=device))[:, None]


def with_direction(labels: Tensor, octaves: int) -> Tensor:
    """Returns labels [N, 25] with 6 `octaves` features of their direction of view behind them: [N, 25 + 6 octaves]."""
    if not octaves:
        return labels
    angles = (labels[:, None, FORWARD] * _frequencies(octaves, labels.dtype, labels.device)).flatten(1)
    return torch.cat([labels, LENGTH * angles.sin(), LENGTH * angles.cos()], dim=1)
