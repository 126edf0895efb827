"""Makes what the tests of metrics share: a generator of a few lines, a data set on disk, an evaluator's settings."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaussian import Cameras, Rendering
from metrics.generators import TrainingFacts

RESOLUTION = 32


class ToyGenerator:
    """Shows a disc on the background: its colour is the identity, its place follows the rendering camera.

    leak: how much of the conditioning camera's x position goes into the colour.
    """

    z_dim, resolution, num_classes = 4, RESOLUTION, 0
    device = torch.device("cpu")
    info: TrainingFacts | None = None

    def __init__(self, leak: float = 0.0, background: tuple[float, ...] | None = None, brightness: float = 0.5) -> None:
        self.leak, self.background, self.brightness = leak, background, brightness

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        ws = z[:, None].clone()  # [B, 1, 4]
        assert cameras is not None
        ws[:, :, 0] = ws[:, :, 0] + self.leak * cameras.positions[:, None, 0]
        return ws

    def synthesis(self, ws: Tensor) -> SimpleNamespace:
        assert ws.ndim == 3
        return SimpleNamespace(ws=ws)

    def render(
        self,
        scene: SimpleNamespace,
        cameras: Cameras,
        resolution: int | None = None,
        background: Tensor | None = None,
    ) -> Rendering:
        assert cameras.shape[1] == 1
        if self.background is not None:
            background = torch.tensor(self.background)
        assert background is not None
        background = background.expand(*cameras.shape, 3)[:, 0, :, None, None]  # [B, 3, 1, 1]
        colour = self.brightness + 0.15 * scene.ws[:, 0, :3].tanh()  # [B, 3]
        across = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION - 0.5
        x = cameras.positions[:, 0, 0, None, None] / 10
        alpha = ((across - x).square() + across[:, None].square() < 0.09).float()[:, None]  # [B, 1, R, R]
        rgb = alpha * colour[..., None, None] + (1 - alpha) * background
        return Rendering(rgb[:, None], alpha[:, None], alpha[:, None])


def write_dataset(root: Path, images: Tensor, masks: Tensor | None, cameras: Cameras) -> Path:
    """Writes the FFHQC layout: images uint8 [N, 3, R, R], masks uint8 [N, 1, R, R]. Returns the image folder."""
    folder = root / str(images.shape[-1])
    folder.mkdir(parents=True)
    if masks is not None:
        (root / "mask").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image).transpose(1, 2, 0)).save(folder / f"{i:05d}.png")
        if masks is not None:
            Image.fromarray(np.asarray(masks[i, 0])).save(root / "mask" / f"{i:05d}.png")
    labels = [[f"{i:05d}.png", row] for i, row in enumerate(cameras.labels.tolist())]
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@dataclass(frozen=True)
class Settings:
    """Holds what an evaluator reads of a configuration."""

    metrics: tuple[str, ...] = ("swd16", "fid20_full")
    detector: str | None = "tiny"
    detector_vgg: str | None = None
    shown_background: str = "white"
