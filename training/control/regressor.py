"""Reads the coefficients of a morphable model off pictures: a small convolutional network, and the files that keep it.

It takes the place of the licensed face reconstruction network of CGOF (Deng et al. 2019). `training.control.fitting`
trains it on renders of the same model.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnnlib
from training.morphable.model import MODEL_BLOCKS, MorphableModel

FORMAT = 1
SLOPE = 0.1


@dataclass(frozen=True)
class RegressorConfig:
    """Describes a regressor, and what it was trained on."""

    model: str  # key of the morphable model
    sizes: Mapping[str, int]  # numbers of the model's blocks
    resolution: int = 64  # pixels of the pictures that it reads; others are resized
    width: int = 24  # channels of the first layer
    landmarks: int = 0  # of the model, whose places it learns to tell besides, with the camera's angles
    pictures: int = 12_000  # that it learnt from
    steps: int = 12_000
    batch: int = 32
    seed: int = 0


class Regressor(nn.Module):
    """Maps pictures to whitened coefficients. Places matter to it: the last features are not pooled."""

    def __init__(self, config: RegressorConfig):
        super().__init__()
        self.config, self.sizes = config, dict(config.sizes)
        widths = [config.width * k for k in (1, 2, 3, 4)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, 2, 2), nn.LeakyReLU(SLOPE)]
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1), nn.GroupNorm(4, outer), nn.LeakyReLU(SLOPE)]
            layers += [nn.Conv2d(outer, outer, 3, 1, 1), nn.GroupNorm(4, outer), nn.LeakyReLU(SLOPE)]
        edge = -(-config.resolution // 16)
        features = 8 * config.width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(widths[-1] * edge * edge, features), nn.LeakyReLU(SLOPE), nn.Linear(features, self.outputs)
        )
        self.aside = nn.Linear(widths[-1] * edge * edge, 2 * config.landmarks + 2)  # read in training alone

    @property
    def outputs(self) -> int:
        """Numbers of all blocks together."""
        return sum(self.sizes.values())

    def forward(self, images: Tensor) -> Tensor:
        """Returns whitened coefficients [N, outputs] of images [N, 3, R, R] in -1..1, block after block."""
        result: Tensor = self.head(self.seen(images))
        return result

    def seen(self, images: Tensor) -> Tensor:
        """Returns features [N, F] of images of any size."""
        size = self.config.resolution
        if images.shape[-1] != size:
            shrinks = images.shape[-1] > size
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        features: Tensor = self.features(images).flatten(1)
        return features

    def blocks(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the same by block, [N, n] each."""
        return dict(zip(self.sizes, self(images).split(list(self.sizes.values()), dim=1), strict=True))


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
            raise ValueError(f"its format is {record['format']}, and {FORMAT} is read")
        regressor = Regressor(RegressorConfig(**record["config"]))
        regressor.load_state_dict(record["state"])
    except FileNotFoundError:
        raise ValueError(f"--regressor={path}: no such file; fit_regressor.py makes one") from None
    except Exception as error:  # whatever an arbitrary file makes torch.load raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--regressor={path}: not a regressor as fit_regressor.py writes it ({reason})") from error
    return regressor.eval().requires_grad_(False), record["errors"]


def default_path(model_key: str) -> Path:
    """Returns where the regressor of a morphable model is kept, by the model's content."""
    return dnnlib.cache_dir("regressors") / f"regressor-{model_key}.pt"


def regressor_for(path: str, model: MorphableModel) -> Regressor:
    """Returns the regressor of a model, from a file, or from where fit_regressor.py keeps it if `path` is "".

    Raises ValueError if there is none, or if it is one of another model.
    """
    place = path or default_path(model.key)
    if not path and not Path(place).exists():
        raise ValueError(
            f"there is no regressor of this morphable model ({place}): run fit_regressor.py, name one with "
            "--regressor=FILE, or leave out what needs it with --recon=0"
        )
    regressor, _ = read_regressor(place)
    if regressor.config.model != model.key or regressor.sizes != {b: model.sizes[b] for b in MODEL_BLOCKS}:
        raise ValueError(
            f"--regressor={place}: reads the coefficients of the morphable model {regressor.config.model}, and this "
            f"one is {model.key}"
        )
    return regressor
