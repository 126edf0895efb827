"""Reads the coefficients of a morphable model off pictures: a small convolutional network, and the files that keep it.

It takes the place of the licensed face reconstruction network of CGOF (Deng et al. 2019). `training.control.fitting`
trains it on renders of the same model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnlib
from training.control.landmark_fit import ANGLES, LandmarkFit
from training.morphable.model import MODEL_BLOCKS, SHAPE_BLOCKS, MorphableModel
from training.networks.reading import resized

FORMAT = 2  # 1: a network without landmarks
FEATURES = 256  # of the whole picture
NEAR = 4  # rows and columns of fine features that are looked at about a landmark
TOLD = 16  # features of a landmark
STEP = 0.1  # half images that a landmark moves by when looked at closely, per unit of what is told of it
SHARP = 64.0**2  # precision of landmarks before anything is known of them: half a pixel of 64
TRUST = 6.0  # ln of the most that precisions change by
AT_MOST = 1.3  # radians of yaw and pitch


@dataclass(frozen=True)
class RegressorConfig:
    """Describes a regressor, and what it was trained on."""

    model: str  # key of the morphable model
    sizes: Mapping[str, int]  # numbers of the model's blocks
    resolution: int = 64  # pixels of the pictures that it reads; others are resized
    widths: tuple[int, int, int] = (24, 64, 128)  # channels at a half, a quarter and an eighth of the resolution
    landmarks: int = 68
    pictures: int = 24_000  # that it learnt from
    steps: int = 10_000
    batch: int = 32
    seed: int = 0


class Reading(NamedTuple):
    """Holds what is seen in N pictures. Places are 0 in the middle of the image, -1 and 1 at its edges."""

    z: Tensor  # [N, outputs] whitened coefficients, block after block
    fitted: Tensor  # [N, M] those of shape that explain the landmarks best
    rough: Tensor  # [N, L, 2] places of landmarks, at first sight
    landmarks: Tensor  # [N, L, 2] the same, looked at closely
    angles: Tensor  # [N, 2] yaw and pitch of the camera, radians


class Regressor(nn.Module):
    """Maps pictures to whitened coefficients.

    Landmarks are found as the means of maps (Sun et al. 2018, integral regression), looked at again in the finest
    features, and explained by the model (`LandmarkFit`). What that leaves, and colours and light, is told by two layers
    from the whole picture, what was seen at each landmark with its colour, and the fit.
    """

    def __init__(self, config: RegressorConfig):
        super().__init__()
        self.config, self.sizes = config, dict(config.sizes)
        fine, middle, coarse = config.widths
        edge, count, features = -(-config.resolution // 8), config.landmarks, FEATURES
        self.numbers = sum(self.sizes[block] for block in SHAPE_BLOCKS)
        self.fine = _conv(3, fine, 5, 2)
        self.middle = nn.Sequential(_conv(fine, middle, 3, 2), _Residual(middle), _Residual(middle))
        self.coarse = nn.Sequential(_conv(middle, coarse, 3, 2), _Residual(coarse), _Residual(coarse))
        self.back, self.joined = _conv(coarse, middle, 1), _Residual(middle)
        self.maps = nn.Conv2d(middle, count, 1)
        self.few = _conv(coarse, max(coarse // 4, 1), 1)
        self.whole = nn.Linear(max(coarse // 4, 1) * edge * edge, features)
        self.angles = nn.Linear(features, ANGLES)
        self.close = _Apart(count, fine * NEAR * NEAR + middle, TOLD)
        self.moves = _Apart(count, TOLD, 3)
        self.fit = LandmarkFit(count, self.numbers)
        self.level = nn.BatchNorm1d(2 * count)
        told = features + count * (TOLD + 2 + 3) + self.numbers + ANGLES
        self.head = nn.Sequential(
            nn.Linear(told, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU(),
            nn.Linear(features, self.outputs),
        )  # fmt: skip

    @property
    def outputs(self) -> int:
        """Numbers of all blocks together."""
        return sum(self.sizes.values())

    def forward(self, images: Tensor) -> Tensor:
        """Returns whitened coefficients [N, outputs] of images [N, 3, R, R] in -1..1, block after block."""
        return self.read(images).z

    def read(self, images: Tensor) -> Reading:
        """Returns all that is seen in images [N, 3, R, R] in -1..1, of any size."""
        images = resized(images, self.config.resolution)
        fine = self.fine(images)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        back = F.interpolate(self.back(coarse), middle.shape[-2:], mode="bilinear", align_corners=False)
        joined = self.joined(back + middle)
        whole = F.relu(self.whole(self.few(coarse).flatten(1)))
        angles = self.angles(whole).float()
        rough = _means(self.maps(joined))
        told = self._looked_at(fine, joined, rough.detach())  # [L, N, TOLD]
        moves = self.moves(told).float().transpose(0, 1)  # [N, L, 3]
        landmarks = rough + STEP * moves[..., :2]
        with torch.autocast(images.device.type, enabled=False):
            trust = SHARP * moves[..., 2].clamp(-TRUST, TRUST).exp()
            found = self.fit(landmarks, trust, angles.detach().clamp(-AT_MOST, AT_MOST))
        colours = _sampled(F.avg_pool2d(images, 2), landmarks.detach()[:, :, None]).flatten(1)
        parts = (whole, told.transpose(0, 1).flatten(1), self.level(landmarks.flatten(1)), found, colours)
        left = self.head(torch.cat([part.float() for part in parts], dim=1)).float()
        fitted = found[:, : self.numbers]
        return Reading(left + F.pad(fitted, (0, left.shape[1] - self.numbers)), fitted, rough, landmarks, angles)

    def _looked_at(self, fine: Tensor, joined: Tensor, places: Tensor) -> Tensor:
        """Returns what is told [L, N, TOLD] of the features about places [N, L, 2]."""
        edge = fine.shape[-1]
        ticks = (torch.arange(NEAR, device=places.device) - (NEAR - 1) / 2) * (2 / edge)
        about = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).flatten(0, 1)  # [NEAR^2, 2]
        near = _sampled(fine, places[:, :, None] + about)  # [N, C, L, NEAR^2]
        here = _sampled(joined, places[:, :, None])
        seen = torch.cat([near.permute(2, 0, 1, 3).flatten(2), here.permute(2, 0, 1, 3).flatten(2)], dim=2)
        return F.relu(self.close(seen))

    def blocks(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the same as `forward` by block, [N, n] each."""
        return dict(zip(self.sizes, self(images).split(list(self.sizes.values()), dim=1), strict=True))


def _conv(inner: int, outer: int, size: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, size, stride, size // 2, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = _conv(channels, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


class _Apart(nn.Module):
    """Applies a linear layer of its own to each of L inputs, [L, N, inner] to [L, N, outer]."""

    def __init__(self, count: int, inner: int, outer: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, inner, outer) / inner**0.5)
        self.bias = nn.Parameter(torch.zeros(count, 1, outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def _means(maps: Tensor) -> Tensor:
    """Returns the mean places [N, L, 2] of maps [N, L, H, W] of ln of shares, -1 and 1 being the edges."""
    height, width = maps.shape[-2:]
    shares = maps.float().flatten(2).softmax(-1).unflatten(2, (height, width))
    rows, columns = ((torch.arange(n, device=maps.device) + 0.5) * (2 / n) - 1 for n in (height, width))
    return torch.stack([(shares.sum(2) * columns).sum(-1), (shares.sum(3) * rows).sum(-1)], dim=-1)


def _sampled(features: Tensor, places: Tensor) -> Tensor:
    """Returns features [N, C, H, W] at places [N, L, P, 2], [N, C, L, P]."""
    return F.grid_sample(features.float(), places.float(), align_corners=False)


def save_regressor(path: str | os.PathLike[str], regressor: Regressor, errors: Mapping[str, Any]) -> None:
    """Writes a regressor with its recipe, and with its errors on held-out renders, as tensors and JSON-able values."""
    record = {
        "format": FORMAT,
        "config": {**asdict(regressor.config), "sizes": dict(regressor.sizes)},
        "state": regressor.state_dict(),
        "errors": dict(errors),
    }
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    torch.save(record, partial)
    os.replace(partial, path)


def read_regressor(path: str | os.PathLike[str]) -> tuple[Regressor, dict[str, Any]]:
    """Opens what `save_regressor` wrote, frozen and in eval mode, with its errors. Raises ValueError for others."""
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        if record["format"] != FORMAT:
            raise ValueError("another format")
        regressor = Regressor(RegressorConfig(**record["config"]))
        regressor.load_state_dict(record["state"])
    except FileNotFoundError:
        raise ValueError(f"--regressor={path}: no such file; fit_regressor.py makes one") from None
    except Exception as error:  # whatever an arbitrary file makes torch.load raise
        raise ValueError(
            f"--regressor={path}: not a regressor of format {FORMAT}, as fit_regressor.py writes it"
        ) from error
    return regressor.eval().requires_grad_(False), record["errors"]


def default_path(model_key: str) -> Path:
    """Returns where the regressor of a morphable model is kept, by the model's content."""
    return dnnlib.cache_dir("regressors") / f"regressor-{model_key}.pt"


def regressor_for(path: str, model: MorphableModel, otherwise: str = "name one with --regressor=FILE") -> Regressor:
    """Returns the regressor of a model, from a file, or from where fit_regressor.py keeps it if `path` is "".

    Raises ValueError if there is none, or if it is one of another model. otherwise: says what else can be done.
    """
    place = path or default_path(model.key)
    if not path and not Path(place).exists():
        raise ValueError(
            f"there is no regressor of this morphable model ({place}): run fit_regressor.py, or {otherwise}"
        )
    regressor, _ = read_regressor(place)
    if regressor.config.model != model.key or regressor.sizes != {b: model.sizes[b] for b in MODEL_BLOCKS}:
        raise ValueError(
            f"--regressor={place}: reads the coefficients of the morphable model {regressor.config.model}, and this "
            f"one is {model.key}"
        )
    return regressor
