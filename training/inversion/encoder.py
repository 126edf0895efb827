"""Reads a latent and a camera off a picture in one pass: an encoder of one network's heads, and the file that keeps it.

`training.inversion.encoder_training` trains it on heads of the network itself, of which everything is known.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gaussian import Cameras, Geometry
from training.inversion.fitting import Target
from training.networks.reading import SLOPE, num_features, picture_layers, resized

ANGLES = 2  # yaw and pitch
PITCH_SCALE = 0.25  # radians that one unit of the pitch's output stands for


@dataclass(frozen=True)
class EncoderConfig:
    """Describes an encoder, and what it was trained on."""

    network: str  # `network_key` of the generator
    coordinates: int  # of a latent, see `LatentSpace`
    yaw_limits: tuple[float, float]  # radians, of the cameras that the network learnt from
    background: tuple[float, float, float]  # RGB in 0..1, behind the heads
    resolution: int = 64  # pixels of the pictures that it reads; others are resized
    width: int = 24  # channels of the first layer
    heads: int = 6000  # that it learnt from
    views: int = 2  # pictures of each
    pictures: int = 0  # labelled ones that it learnt cameras from
    steps: int = 2500
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Guess:
    """Holds what an encoder makes of V pictures of one head."""

    coordinates: Tensor  # [D] of the latent
    cameras: Cameras  # [V] on the orbit of the data, in model units
    doubts: tuple[float, float]  # radians by which pitch and yaw were off on held-out heads, root mean square


class Encoder(nn.Module):
    """Maps pictures to coordinates of the latent, yaw and pitch. `errors` holds what it was off on held-out heads."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.errors: dict[str, float] = {}  # "yaw", "pitch": radians; "latent": share of the variance of w explained
        self.features = picture_layers(config.width)
        hidden = 8 * config.width
        self.head = nn.Sequential(
            nn.Linear(num_features(config.width, config.resolution), hidden),
            nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, ANGLES + config.coordinates),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns angles [N, 2] in radians, yaw and pitch, and coordinates [N, D] of images [N, 3, R, R] in 0..1."""
        low, high = self.config.yaw_limits
        seen = self.features(2 * resized(images, self.config.resolution) - 1).flatten(1)
        angles, coordinates = self.head(seen).split([ANGLES, self.config.coordinates], dim=1)
        middle = angles.new_tensor([(low + high) / 2, 0.0])
        return middle + angles * angles.new_tensor([(high - low) / 2, PITCH_SCALE]), coordinates

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `forward` does; the angles are means of those of pictures and mirror images, which err less."""
        angles, coordinates = self(images)
        return (angles + self(images.flip(3))[0] * angles.new_tensor([-1.0, 1.0])) / 2, coordinates

    @torch.no_grad()
    def guess(self, target: Target, geometry: Geometry) -> Guess:
        """Returns what it makes of pictures: the mean of their latents, and a camera for each."""
        images = target.images
        if target.masks is not None:  # pictures over another colour than those that it knows
            behind = images.new_tensor(self.config.background) - target.background
            images = images + (1 - target.masks) * behind[:, None, None]
        images = images.clamp(0, 1)
        angles, coordinates = self.read(images)
        cameras = geometry.orbit(*angles.double().unbind(1)).to(device=images.device, dtype=torch.float32)
        return Guess(coordinates.mean(0), cameras, (self.errors["pitch"], self.errors["yaw"]))


def default_path(network: str | os.PathLike[str]) -> Path:
    """Returns where the encoder of a checkpoint is kept: beside it."""
    path = Path(network)
    return path.with_name(f"{path.stem}-encoder.pt")


def save_encoder(path: str | os.PathLike[str], encoder: Encoder) -> None:
    """Writes an encoder with its recipe and its errors, as tensors and JSON-able values, or no file at all."""
    record = {
        "config": asdict(encoder.config),
        "state": encoder.state_dict(),
        "errors": dict(encoder.errors),
    }
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    torch.save(record, partial)
    os.replace(partial, path)


def read_encoder(path: str | os.PathLike[str], network: str) -> Encoder:
    """Opens what `save_encoder` wrote, frozen and in eval mode. network: the `network_key` that it must be of.

    Raises ValueError for another file, and for the encoder of another network.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        encoder = Encoder(EncoderConfig(**record["config"]))
        encoder.load_state_dict(record["state"])
        encoder.errors = {name: float(record["errors"][name]) for name in ("yaw", "pitch", "latent")}
    except FileNotFoundError:
        raise ValueError(f"--encoder={path}: no such file; invert.py --train-encoder makes one") from None
    except Exception as error:  # whatever an arbitrary file makes torch.load raise
        raise ValueError(f"--encoder={path}: not an encoder as --train-encoder writes it, or a damaged one") from error
    if encoder.config.network != network:
        raise ValueError(f"--encoder={path}: is the encoder of another network; --train-encoder makes one of this")
    return encoder.eval().requires_grad_(False)
