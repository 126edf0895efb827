"""Finds eyes, mouth and chin in a picture of a head, and where it was seen from: a small convolutional network.

Each map of the network sees 17 x 17 px around a place and nothing else, so that an eye is found where one is drawn and
not where the pose says that one should be. The pose has layers of its own, which see the whole picture. Places come as
in CenterNet (Zhou et al. 2019, "Objects as Points"): peaks of a map, and offsets within their cells. It was trained on
ray-cast heads, also on ones without eyes, with one or three, with two mouths, smeared and noisy, and on heads with
expressions (benchmarks/landmarks.py), and knows those alone: not photographs.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 64  # px, to which pictures are brought
KINDS = ("eye", "mouth", "chin")
CELL = 2  # px of a cell of the maps
MAX_PEAKS = 4  # of a kind in a picture
APART = 2  # cells within which the lower of two peaks is left out
WEIGHTS = Path(__file__).with_name("landmarks.npz")


class LandmarkNet(nn.Module):
    """Maps pictures [B, 3, 64, 64] in -1..1 to logits [B, 3, 32, 32], offsets [B, 3, 2, 32, 32] and directions [B, 3].

    Offsets: of the place from the middle of its cell, in cells. Directions: unit vectors from the head to the camera.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=CELL, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.maps = nn.Sequential(nn.Conv2d(48, 64, 1), nn.ReLU(), nn.Conv2d(64, 3 * len(KINDS), 1))
        self.pose = nn.Sequential(
            nn.Conv2d(48, 48, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(96 * 16, 64), nn.ReLU(), nn.Linear(64, 3),
        )  # fmt: skip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.trunk(images)
        logits, offsets = self.maps(shared).split((len(KINDS), 2 * len(KINDS)), dim=1)
        return logits, offsets.unflatten(1, (len(KINDS), 2)), F.normalize(self.pose(shared), dim=1)


@dataclass(frozen=True)
class Found:
    """Holds what was found in B pictures: up to MAX_PEAKS of each of KINDS, the surest first."""

    scores: Tensor  # [B, 3, MAX_PEAKS] 0..1; 0 where there is no further peak
    places: Tensor  # [B, 3, MAX_PEAKS, 2] in units of the picture, from its left and its top
    directions: Tensor  # [B, 3] unit vectors, from the head to the camera, in the head's axes


class LandmarkFinder:
    """Is the trained network, with a key that changes with its weights."""

    def __init__(self, network: LandmarkNet, key: str) -> None:
        self.network, self.key = network, key

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Found:
        """Looks at pictures uint8 [B, 3, R, R] of any resolution R; small things are lost in fewer than 64 px."""
        logits, offsets, directions = self.network(prepared(images))
        scores, cells = _peaks(logits.sigmoid())  # [B, 3, MAX_PEAKS]
        width = logits.shape[-1]
        within = offsets.flatten(3).gather(3, cells[:, :, None].expand(-1, -1, 2, -1)).mT  # [B, 3, MAX_PEAKS, 2]
        corners = torch.stack([cells % width, cells // width], dim=-1)
        return Found(scores, (corners + 0.5 + within) / width, directions)


def prepared(images: Tensor) -> Tensor:
    """Brings pictures uint8 [B, 3, R, R] to float [B, 3, 64, 64] in -1..1: larger ones by area, smaller bilinearly."""
    x = images.float() / 127.5 - 1
    if x.shape[-1] > SIZE:
        return F.adaptive_avg_pool2d(x, SIZE)
    return x if x.shape[-1] == SIZE else F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)


def _peaks(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the MAX_PEAKS largest local maxima of maps [B, C, H, W], and their flat cells: [B, C, MAX_PEAKS]."""
    largest = F.max_pool2d(scores, 2 * APART + 1, stride=1, padding=APART)
    tops, cells = (scores * (scores == largest)).flatten(2).topk(MAX_PEAKS, dim=2)
    return tops, cells


def save_weights(network: LandmarkNet, path: Path) -> None:
    """Writes the weights as float16 arrays, without pickle."""
    np.savez_compressed(
        path, **{name: value.numpy().astype(np.float16) for name, value in network.state_dict().items()}
    )


def read_network(path: Path) -> LandmarkNet:
    """Reads what `save_weights` wrote, into float32. Raises what NumPy and PyTorch raise for another file."""
    network = LandmarkNet()
    with np.load(path, allow_pickle=False) as file:
        network.load_state_dict({name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files})
    return network.eval().requires_grad_(False)


@functools.cache
def load_finder(device: torch.device) -> LandmarkFinder:
    """Returns the finder whose weights lie beside this file."""
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    network = read_network(WEIGHTS).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LandmarkFinder(network, f"sha256:{digest}")
